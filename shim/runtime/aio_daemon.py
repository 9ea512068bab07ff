"""The daemon of asyncio shims: the same steps as the blocking one's, on asyncio's loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from shim.runtime.serve import Daemon
from shim.ttrpc.aio_server import AsyncioLoop, Server

if TYPE_CHECKING:
    from shim.runtime.address import Bound
    from shim.runtime.aio_shim import Adapter


def serve(adapter: Adapter, bound: Bound) -> None:
    """Serve until shutdown."""
    asyncio.run(_serve(adapter, bound))


async def _serve(adapter: Adapter, bound: Bound) -> None:
    shim = adapter.inner
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    daemon = Daemon(adapter, bound, AsyncioLoop(loop), stopped.set)
    shim._daemon = daemon

    def on_error(_loop: asyncio.AbstractEventLoop, about: dict[str, Any]) -> None:
        error = about.get("exception")
        if isinstance(error, Exception):
            daemon.logger.fault(f"error in the event loop: {about['message']}", error)
        else:
            daemon.logger.error("error in the event loop", error=about["message"])

    loop.set_exception_handler(on_error)
    daemon.set_up(loop.add_signal_handler)
    server = Server(await shim.services(daemon), **daemon.server_arguments())
    daemon.listen(server)
    ending = asyncio.create_task(_wait(adapter, daemon))
    await stopped.wait()
    ending.cancel()


async def _wait(adapter: Adapter, daemon: Daemon) -> None:
    try:
        await adapter.inner.wait_shim()
    finally:
        daemon.request_shutdown()
