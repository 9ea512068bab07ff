"""The shim daemon: serves ttrpc on a socket that was handed to it, reaps, publishes, and ends in good order.

Rule: everything it imports is imported before it serves; the binary's unpacked files may be gone by then.
Ends at `request_shutdown` (the Shutdown call with no containers left) or SIGTERM and SIGINT, live containers or not.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
from typing import TYPE_CHECKING, Final

from shim.host import libc
from shim.runtime.daemon import HELD_SIGNALS
from shim.runtime.logger import Logger
from shim.runtime.publisher import Publisher
from shim.runtime.reaper import Reaper
from shim.ttrpc.context import Credentials
from shim.ttrpc.loop import Loop
from shim.ttrpc.loop_server import LoopServer
from shim.ttrpc.pool import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.runtime.address import Bound
    from shim.runtime.flags import Flags
    from shim.runtime.shim import Shim

_GRACE_S: Final = 3.0
_FLUSH_S: Final = 5.0


class Daemon:
    """What a shim's services may use of the process they live in."""

    def __init__(self, flags: Flags, runtime_id: str, bound: Bound) -> None:
        self.flags = flags
        self.runtime_id = runtime_id
        self.logger = Logger.open("log", is_debug=flags.debug, runtime=runtime_id)
        self.loop = Loop(on_error=lambda error: self.logger.fault("error in the event loop", error))
        self.pool = WorkerPool(on_error=lambda error: self.logger.fault("error in a worker", error))
        self.reaper = Reaper()
        address = os.environ.get("TTRPC_ADDRESS", "")
        self.publisher = Publisher(self.loop, address, flags.namespace, self.logger)
        self.server: LoopServer | None = None
        self._bound = bound
        self._on_shutdown: list[Callable[[], None]] = []

    def on_shutdown(self, callback: Callable[[], None]) -> None:
        """Call `callback()` on the loop when the daemon ends, after the last answer."""
        self._on_shutdown.append(callback)

    def request_shutdown(self) -> None:
        """End the daemon once the calls in flight have been answered; safe from any thread, repeating is fine.

        New containers must be refused from here on: the socket is gone before anything slow, so that no `start` joins
        a daemon that is on its way out.
        """
        self._bound.remove()
        self.loop.call_soon(self._shutdown)

    def serve(self, shim: Shim) -> None:
        """Serve until shutdown."""
        loop, logger = self.loop, self.logger
        libc.set_child_subreaper()
        if self.logger.fd >= 0:
            faulthandler.enable(file=self.logger.fd)
        loop.on_signal(signal.SIGCHLD, self.reaper.reap)
        loop.on_signal(signal.SIGTERM, self.request_shutdown)
        loop.on_signal(signal.SIGINT, self.request_shutdown)
        loop.on_signal(signal.SIGUSR1, self.dump_stacks)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)
        self.server = LoopServer(
            shim.services(self),
            loop,
            self.pool,
            on_fault=lambda method, error: logger.fault(f"error in {method}", error),
            on_refused=self._refused,
        )
        self.server.add_listener(self._bound.listener)
        os.chdir("/")  # the bundle that happened to be first goes away before the daemon does
        gc.freeze()  # what is there by now stays: no collection needs to look at it
        gc.enable()
        logger.debug("serving api on socket", socket=self._bound.path, pid=os.getpid())
        loop.run()

    def dump_stacks(self) -> None:
        """Write where every thread is into the log."""
        self.logger.raw("=== BEGIN goroutine stack dump ===\n")
        if self.logger.fd >= 0:
            faulthandler.dump_traceback(file=self.logger.fd, all_threads=True)
        self.logger.raw("=== END goroutine stack dump ===\n")

    def _refused(self, credentials: Credentials | None) -> None:
        peer = credentials or Credentials(0, -1, -1)
        self.logger.error("refusing connection of another user", pid=peer.pid, uid=peer.uid, gid=peer.gid)

    def _shutdown(self) -> None:
        server, self.server = self.server, None
        if server is not None:
            self.logger.debug("shutting down")
            server.shutdown(_GRACE_S, self._drained)

    def _drained(self) -> None:
        for callback in self._on_shutdown:
            try:
                callback()
            except Exception as error:  # the others must still run
                self.logger.fault("error in shutdown", error)
        self.publisher.flush(_FLUSH_S, self.loop.stop)
