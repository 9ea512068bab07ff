"""The blocking server: an event loop of its own for all connections, a growing pool of threads for handlers that block.

Rule: starts and ends what `LoopServer` does; nothing of the protocol is here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Final, Self

from shim.ttrpc.context import Credentials
from shim.ttrpc.loop import Loop
from shim.ttrpc.loop_server import Limits, LoopServer, same_user
from shim.ttrpc.pool import WorkerPool
from shim.ttrpc.service import Interceptor, Service

_GRACE_S: Final = 5.0


class Server(LoopServer):
    """Serves services on addresses.

    `with Server([service]) as server: server.listen("unix:///run/x.sock")` serves in a thread of its own; `serve()`
    serves in the caller's.  A server serves once.  The other arguments are those of `LoopServer`.
    """

    def __init__(
        self,
        services: Iterable[Service] = (),
        *,
        interceptors: Sequence[Interceptor] = (),
        authorize: Callable[[Credentials | None], bool] = same_user,
        limits: Limits | None = None,
        on_fault: Callable[[str, BaseException], None] = lambda _method, _error: None,
        on_refused: Callable[[Credentials | None], None] = lambda _credentials: None,
    ) -> None:
        self._own_loop = Loop(on_error=lambda error: self.report("loop", error))
        super().__init__(
            services,
            self._own_loop,
            WorkerPool(on_error=lambda error: self.report("worker", error)),
            interceptors=interceptors,
            authorize=authorize,
            limits=limits,
            on_fault=on_fault,
            on_refused=on_refused,
        )
        self._thread: threading.Thread | None = None
        self._is_serving = False
        self._is_stopped = False

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve, name="ttrpc server", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def serve(self) -> None:
        """Run until `stop`, in this thread; then every socket is closed, and those that `listen` bound are removed.

        Raises:
            RuntimeError: It has been called before.
        """
        with self._lock:
            if self._is_serving:
                raise RuntimeError("the server has served already")
            self._is_serving = True
            is_stopped = self._is_stopped
        try:
            if not is_stopped:
                self._own_loop.run()
        finally:
            self.close()
            self._own_loop.close()

    def stop(self, grace_s: float = _GRACE_S) -> None:
        """Make `serve` return: no new calls, and those in flight may finish for `grace_s` seconds; from any thread.

        Returns at once; repeating it is fine, and so is calling it before `serve`.
        """
        with self._lock:
            if self._is_stopped:
                return
            self._is_stopped = True
            if not self._is_serving:
                return
        self.loop.call_soon(lambda: self.shutdown(grace_s, self._own_loop.stop))
