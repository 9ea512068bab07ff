"""The daemon of asyncio shims: the same steps as the blocking one's, on asyncio's loop.

Rule: the daemon ends when its loop has done what is to be done, whatever the shim's tasks and threads still do.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from shim.runtime.serve import Daemon
from shim.ttrpc.aio_server import AsyncioLoop, Server

if TYPE_CHECKING:
    from shim.runtime.address import Bound
    from shim.runtime.aio_shim import Adapter

_CANCEL_S: Final = 1.0


def serve(adapter: Adapter, bound: Bound) -> None:
    """Serve until shutdown.

    Not by `asyncio.run`, which waits for tasks that ignore their cancellation and for the threads of `to_thread`, as
    those that wait for a container's end: the daemon's process would stay.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(_serve(adapter, bound))
    finally:
        loop.run_until_complete(_cancel_tasks())


async def _serve(adapter: Adapter, bound: Bound) -> None:
    shim = adapter.inner
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    daemon = Daemon(adapter, bound, AsyncioLoop(loop), stopped.set)
    shim._daemon = daemon
    shim.flags = daemon.flags  # with the debug switch that may have come on stdin

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
    waiting = asyncio.create_task(_wait(adapter, daemon))
    await stopped.wait()
    waiting.cancel()


async def _wait(adapter: Adapter, daemon: Daemon) -> None:
    try:
        await adapter.inner.wait_shim()
    except Exception as error:
        daemon.logger.fault("error in wait_shim", error)
    finally:
        daemon.request_shutdown()


async def _cancel_tasks() -> None:
    """Let tasks end in good order, for a moment."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CANCEL_S)
