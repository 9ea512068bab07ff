"""The shim daemon: serves ttrpc on a socket that was handed to it, reaps, publishes, and ends in good order.

Rule: everything it imports is imported before it serves; the binary's unpacked files may be gone by then.
Ends when the shim's `wait_shim` returns (the Shutdown call with no containers left, as a rule), or at SIGTERM and
SIGINT, live containers or not.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from shim import __version__
from shim.errors import UnsupportedSystemError
from shim.host import libc
from shim.runtime import tracing
from shim.runtime.address import Bound
from shim.runtime.daemon import HELD_SIGNALS
from shim.runtime.logger import Logger
from shim.runtime.monitor import Monitor
from shim.runtime.publisher import RemotePublisher
from shim.runtime.reaper import Reaper
from shim.runtime.shim import Shim
from shim.ttrpc.context import CallContext, Credentials
from shim.ttrpc.loop import EventLoop, Loop
from shim.ttrpc.loop_server import LoopServer
from shim.ttrpc.pool import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.runtime.flags import Flags
    from shim.ttrpc.service import Handler

_GRACE_S: Final = 3.0
_FLUSH_S: Final = 5.0
# Go's client may take an answer for lost if the connection ends right behind it, and containerd forgives that after the
# task's Shutdown only: after this call its clients have a moment to hang up.
_POLITE_CALL: Final = "containerd.runtime.sandbox.v1.Sandbox/ShutdownSandbox"
_HANG_UP_S: Final = 1.0


class Daemon:
    """What a shim may use of the process it lives in; this part is the same for blocking and for asyncio shims.

    `publisher` sends events, `monitor` tells of exits, `reaper` spawns processes, `logger` writes to the bundle's log,
    `loop` waits for descriptors and timers, `pool` runs what blocks.
    """

    def __init__(self, shim: Shim, bound: Bound, loop: EventLoop, stop: Callable[[], None]) -> None:
        self.shim = shim
        self._stop = stop
        self.flags: Flags = shim.flags
        self.runtime_id: str = shim.runtime_id
        level = shim.config.default_log_level
        self.logger: Logger = Logger.open("log", is_debug=self.flags.debug, level=level, runtime=self.runtime_id)
        self.loop = loop
        self.pool: WorkerPool = WorkerPool(on_error=lambda error: self.logger.fault("error in a worker", error))
        self.reaper: Reaper = Reaper(on_error=lambda error: self.logger.fault("error in what waits for an exit", error))
        self.monitor: Monitor = Monitor(self.reaper)
        address = os.environ.get("TTRPC_ADDRESS", "")
        self.publisher: RemotePublisher = RemotePublisher(loop, address, self.flags.namespace, self.logger)
        self.server: LoopServer | None = None
        self._bound = bound
        self._on_shutdown: list[Callable[[], None]] = []
        self._on_deserted: list[Callable[[], None]] = []
        self._is_ending = False
        self._is_polite = False
        self._is_waiting = False
        self._has_logging = False
        self._exit = shim.exit  # made here, before there are threads that might make one each
        shim._daemon = self

    def on_shutdown(self, callback: Callable[[], None]) -> None:
        """Call `callback()` on the loop when the daemon ends, after the last answer."""
        self._on_shutdown.append(callback)

    @property
    def is_deserted(self) -> bool:
        """True while nobody is connected: containerd has gone, or has not come yet."""
        return self.server is None or not self.server.connections

    def on_deserted(self, callback: Callable[[], None]) -> None:
        """Call `callback()` on the loop whenever the last connection has ended: containerd has gone, as a rule."""
        self._on_deserted.append(callback)

    def request_shutdown(self) -> None:
        """End the daemon once the calls in flight have been answered; safe from any thread, repeating is fine.

        New containers must be refused from here on: the socket is gone before anything slow, so that no `start` joins
        a daemon that is on its way out.
        """
        self._bound.remove()
        self.loop.call_soon(self._shutdown)

    def move_log(self, path: str) -> bool:
        """Log to another bundle's fifo from now on, since containerd reads one until its bundle goes; False if not."""
        is_moved = self.logger.move(path)
        if is_moved:
            os.dup2(self.logger.fd, 2)
        return is_moved

    def dump(self) -> None:
        """Write into the log where every thread is, what the shim does, and which calls wait for their answer."""
        logger = self.logger
        logger.raw("=== BEGIN goroutine stack dump ===\n")
        if logger.fd >= 0:
            faulthandler.dump_traceback(file=logger.fd, all_threads=True)
        for line in self._describe():
            logger.raw(f"{line}\n")
        logger.raw("=== END goroutine stack dump ===\n")

    def _describe(self) -> list[str]:
        now = time.monotonic()
        calls = self.server.open_calls() if self.server is not None else []
        lines = [f"events waiting for containerd: {self.publisher.pending}"]
        lines += [f"open call {call.method}: for {now - call.began:.3f} s, of pid {call.pid}" for call in calls]
        try:
            lines += self.shim.describe()
        except Exception as error:  # the author's, and the rest is worth having
            lines.append(f"error in describe: {type(error).__name__}: {error}")
        return lines

    # Steps of a subclass's life.

    def set_up(self, on_signal: Callable[[int, Callable[[], None]], object]) -> None:
        """Prepare the process: signals, children, faults, Python's logging."""
        config = self.shim.config
        if not config.no_sub_reaper:
            try:
                libc.set_child_subreaper()
            except UnsupportedSystemError:
                self.logger.debug("orphans of containers go to the system's init: there are no subreapers here")
        if self.logger.fd >= 0:
            faulthandler.enable(file=self.logger.fd)
        if not config.no_reaper:
            on_signal(signal.SIGCHLD, self.reaper.reap)
        on_signal(signal.SIGTERM, self._end)
        on_signal(signal.SIGINT, self._end)
        on_signal(signal.SIGUSR1, self.dump)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)
        self._set_up_logging()

    def _set_up_logging(self) -> None:
        """Take over Python's logging, once, when the shim has loaded it."""
        if self._has_logging or self.shim.config.no_setup_logger or "logging" not in sys.modules:
            return
        from shim.runtime.log_handler import set_up_logging

        self._has_logging = True
        set_up_logging(self.logger)

    def server_arguments(self) -> dict[str, Any]:
        """Return what every kind of server is made with."""
        return {
            "interceptors": [tracing.interceptor()],
            "on_fault": lambda method, error: self.logger.fault(f"error in {method}", error),
            "on_refused": self._refused,
        }

    def listen(self, server: LoopServer) -> None:
        """Serve: from here on nothing is imported."""
        self._set_up_logging()  # what makes the services may have been the first to load it
        self.server = server
        server.on_deserted = self._deserted
        for endpoint in server.table.endpoints:
            if endpoint.full_name == _POLITE_CALL:
                endpoint.handler = self._remember(endpoint.handler)
        server.add_listener(self._bound.listener)
        os.chdir("/")  # the bundle that happened to be first goes away before the daemon does
        gc.freeze()  # what is there by now stays: no collection needs to look at it
        gc.enable()
        self.logger.debug("daemon of containerd-shim", version=__version__, id=self.flags.id)
        self.logger.info("serving api on socket", socket=self._bound.path, pid=os.getpid())
        if self._is_ending:  # it was told to before it had a server to end
            self._shutdown()

    def _deserted(self) -> None:
        for callback in self._on_deserted:
            callback()

    def _end(self) -> None:
        """A signal came: the shim's own `wait_shim` may be waiting for its latch."""
        self._is_polite = False
        self.request_shutdown()
        self._exit.signal()

    def _refused(self, credentials: Credentials | None) -> None:
        peer = credentials or Credentials(0, -1, -1)
        self.logger.error("refusing connection of another user", pid=peer.pid, uid=peer.uid, gid=peer.gid)

    def _remember(self, handler: Handler) -> Handler:
        def run(context: CallContext, request: Any) -> Any:
            self._is_polite = True
            return handler(context, request)

        return run

    def _shutdown(self) -> None:
        self._is_ending = True
        if self._is_polite and not self.is_deserted:
            if not self._is_waiting:
                self._is_waiting = True
                self.on_deserted(lambda: self.loop.call_soon(self._shutdown))
                self.loop.call_later(_HANG_UP_S, self._waited)
            return
        server, self.server = self.server, None
        if server is not None:
            self.logger.info("shutting down shim instance")
            server.shutdown(_GRACE_S, self._drained)

    def _waited(self) -> None:
        self._is_polite = False
        self._shutdown()

    def _drained(self) -> None:
        self.logger.info("server stopped, connections closed")
        for callback in self._on_shutdown:
            try:
                callback()
            except Exception as error:  # the others must still run
                self.logger.fault("error in shutdown", error)
        self.publisher.flush(_FLUSH_S, self._flushed)

    def _flushed(self) -> None:
        self.logger.info("publisher stopped")
        if not self.shim.config.no_reaper:
            self.reaper.reap()
            self.logger.info("reaper stopped")
        self._stop()


class LoopDaemon(Daemon):
    """The daemon of blocking shims, on an epoll loop of its own."""

    def __init__(self, shim: Shim, bound: Bound) -> None:
        self._loop = Loop(on_error=lambda error: self.logger.fault("error in the event loop", error))
        super().__init__(shim, bound, self._loop, self._loop.stop)

    def serve(self) -> None:
        """Serve until shutdown."""
        shim = self.shim
        self.set_up(self._loop.on_signal)
        server = LoopServer(shim.services(self), self._loop, self.pool, **self.server_arguments())
        self.listen(server)
        if type(shim).wait_shim is Shim.wait_shim:
            self._exit.on_signal(self.request_shutdown)
        else:
            self.pool.submit(self._wait)
        self._loop.run()

    def _wait(self) -> None:
        try:
            self.shim.wait_shim()
        except Exception as error:  # the author's, and the daemon ends by it
            self.logger.fault("error in wait_shim", error)
        finally:
            self.request_shutdown()


def serve(shim: Shim, bound: Bound) -> None:
    """Be the daemon of a blocking shim."""
    LoopDaemon(shim, bound).serve()
