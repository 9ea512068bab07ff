"""All servers behind one synchronous face, each in a thread of its own.

Rule: nothing of the protocol is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from shim import ttrpc
from shim.ttrpc import Service, aio
from shim.ttrpc.loop_server import LoopServer
from tests.fakes import PATIENCE_S, wait_until
from tests.protos.conformance_ttrpc import conformance_service
from tests.ttrpc.conformance.scene import BlockingHandlers, CoroutineHandlers, Scene
from tests.ttrpc.conformance.threads import AsyncioThread, in_thread

T = TypeVar("T")

# Blocking handlers on the blocking server, coroutines on asyncio's, blocking handlers on asyncio's.
STYLES: Final = ("threads", "coroutines", "asyncio-threads")


class ServerEnd:
    """A server in a thread of its own, with the conformance service; the other arguments are those of the servers."""

    def __init__(self, style: str, address: str, *, inline: Sequence[str] = (), **options: Any) -> None:
        self.style = style
        self.address = address
        self.scene = Scene()
        self.faults: list[tuple[str, BaseException]] = []
        self.refused: list[Any] = []
        handlers = CoroutineHandlers(self.scene) if style == "coroutines" else BlockingHandlers(self.scene)
        options.setdefault("on_fault", lambda method, error: self.faults.append((method, error)))
        options.setdefault("on_refused", self.refused.append)
        services = [conformance_service(handlers, inline=inline)]
        self.thread: AsyncioThread | None = None
        self._stopping: Future[None] | None = None
        self.server: LoopServer
        if style == "threads":
            self.blocking = ttrpc.Server(services, **options)
            self.server = self.blocking
            self.server.listen(address)
            self.serving = in_thread(self.blocking.serve)
        else:
            self.thread = AsyncioThread()
            self.asyncio = self.thread.run(_make_aio(services, options))
            self.server = self.asyncio
            self.thread.call(lambda: self.asyncio.listen(address))
            self.serving = self.thread.start(self.asyncio.serve())

    def on_loop(self, function: Callable[[], T]) -> T:
        """Return what `function` returns on the server's loop; nothing else runs there meanwhile."""
        result: Future[T] = Future()
        self.server.loop.call_soon(lambda: result.set_result(function()))
        return result.result(PATIENCE_S)

    def settle(self) -> None:
        """Wait until the loop has gone round."""
        for _ in range(2):
            self.on_loop(lambda: None)

    @property
    def calls(self) -> int:
        """How many calls are in flight on all connections."""
        return self.on_loop(lambda: sum(len(peer._calls) for peer in self.server._peers))

    @property
    def unsent(self) -> int:
        """How many bytes wait to be written on all connections."""
        return self.on_loop(lambda: sum(peer._out.size for peer in self.server._peers))

    def stop(self, grace_s: float = PATIENCE_S) -> None:
        """Begin to end it; see `wait`."""
        if self.thread is None:
            self.blocking.stop(grace_s)
        elif self._stopping is None:
            self._stopping = self.thread.start(self.asyncio.stop(grace_s))

    def wait(self) -> None:
        """Wait until `serve` has returned."""
        self.serving.result(PATIENCE_S)
        if self._stopping is not None:
            self._stopping.result(PATIENCE_S)

    def dispose(self) -> None:
        """Let the handlers go and end it."""
        self.scene.finish()
        self.stop(0.0)
        self.wait()
        pool = self.server.pool
        pool.idle_s = 0.0  # each thread ends with its next job; idle ones would wait for ten seconds

        def is_empty() -> bool:
            if pool.threads:
                pool.submit(lambda: None)
            return not pool.threads

        assert wait_until(is_empty)
        if self.thread is not None:
            self.thread.close()


async def _make_aio(services: list[Service], options: dict[str, Any]) -> aio.Server:
    return aio.Server(services, **options)
