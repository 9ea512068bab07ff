"""Log targets that are programs: `binary://` and `binary-v2://`.

Rule: the process writes straight into the pipes that its logger reads.  The shim holds both ends of them, and reads
them itself once the logger has gone, so that a logger that dies early neither blocks nor kills the container.
Spec: contract 8.6; containerd cmd/containerd-shim-runc-v2/process/io.go, core/runtime/v2/logging.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import threading
import time
from typing import TYPE_CHECKING, Final

from shim.engine.call import ChildFds, exec_failure
from shim.engine.pump import Pump
from shim.engine.stdio import close_all, scheme_of
from shim.errors import StdioError

if TYPE_CHECKING:
    from shim.runtime.logger import Logger
    from shim.runtime.reaper import Child, Reaper
    from shim.ttrpc.loop import EventLoop

SCHEMES: Final = frozenset({"binary", "binary-v2"})

# How long a logger may take until it is ready, as long as a fifo's reader.
READY_LIMIT_S: Final = 30.0
# Between the end of its input and SIGTERM: most loggers end by themselves, with all that they read written.
END_OF_INPUT_S: Final = 1.0
# Between SIGTERM and SIGKILL (containerd#12490).
STOP_LIMIT_S: Final = 12.0

_POLL_S: Final = 0.005


def logger_command(uri: str) -> list[str]:
    """Return the words that start the logger: its path, then each key of the query and its first value.

    Raises:
        StdioError: The path is not absolute or badly escaped; the text names the URI.
    """
    _, rest = scheme_of(uri)
    path, _, query = rest.partition("#")[0].partition("?")
    try:
        program = _unescape(path)
    except ValueError:
        raise StdioError(f"failed to create init process I/O: {uri}: bad escape in the path of the binary") from None
    if not program.startswith("/"):
        raise StdioError(f"failed to create init process I/O: {uri}: path of the binary is not absolute")
    values: dict[str, str] = {}
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if not pair or ";" in pair:
            continue
        try:
            values.setdefault(_unescape(key.replace("+", " ")), _unescape(value.replace("+", " ")))
        except ValueError:
            continue  # Go leaves out what it cannot read
    return [program, *(word for pair in values.items() for word in pair)]


def _unescape(text: str) -> str:
    first, *others = os.fsencode(text).split(b"%")
    for piece in others:
        if len(piece) < 2 or not piece[:2].isalnum():
            raise ValueError(text)
        first += bytes((int(piece[:2], 16),)) + piece[2:]
    if b"\0" in first:
        raise ValueError(text)
    return os.fsdecode(first)


class BinaryLogger:
    """One logger: its process and its two pipes.  Its descriptors are closed under a lock: any thread may do it."""

    def __init__(self, reaper: Reaper, uri: str, process_id: str, namespace: str) -> None:
        self._reaper = reaper
        self._scheme, _ = scheme_of(uri)
        self._command = logger_command(uri)
        self._env = {"CONTAINER_ID": process_id, "CONTAINER_NAMESPACE": namespace}
        self._lock = threading.Lock()
        self._readers: tuple[int, ...] = ()
        self._writers: tuple[int, ...] = ()
        self.child: Child | None = None

    @property
    def path(self) -> str:
        """The program."""
        return self._command[0]

    @property
    def writers(self) -> tuple[int, ...]:
        """The ends for the process's stdout and stderr, while they are open."""
        return self._writers

    def start(self, uid: int = 0, gid: int = 0) -> None:
        """Start the logger and wait until it is ready.

        Raises:
            StdioError: It cannot be started, or was not ready in time; the text names it.  `close` is still due.
        """
        ready_read = ready_write = -1
        try:
            pipes = []
            for _ in range(2):
                pipes.append(os.pipe())
                self._readers, self._writers = tuple(pipe[0] for pipe in pipes), tuple(pipe[1] for pipe in pipes)
            if uid or gid:
                for fd in self._writers:
                    os.fchown(fd, uid, gid)
            ready_read, ready_write = os.pipe()
            passed = dict(zip((3, 4, 5), (*self._readers, ready_write), strict=True))
            self.child = self._reaper.spawn(self._command, env=self._env, pass_fds=passed)
            os.close(ready_write)
            ready_write = -1
            self._await_ready(ready_read)
        except OSError as error:
            reason = exec_failure(self.path, error)
            raise StdioError(f"failed to create init process I/O: failed to start binary process: {reason}") from None
        finally:
            close_all(tuple(fd for fd in (ready_read, ready_write) if fd >= 0))

    def _await_ready(self, fd: int) -> None:
        """Wait for a byte; a logger of the first version may also just close its end, even by dying."""
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        if not poller.poll(READY_LIMIT_S * 1000):
            self.kill(signal.SIGKILL)
            raise StdioError(f"logging binary {self.path} did not call ready within {READY_LIMIT_S:g} s")
        if not os.read(fd, 1) and self._scheme != "binary":
            self.kill(signal.SIGKILL)
            raise StdioError(
                f"logging binary {self.path} did not call ready (it may have crashed or exited prematurely)"
            )

    def kill(self, signum: int) -> None:
        """Send a signal to the logger, if it still lives."""
        if self.child is not None:
            self.child.kill(signum)

    def pending(self) -> int:
        """Return how many bytes the logger has not read yet."""
        with self._lock:
            return sum(_unread(fd) for fd in self._writers)

    def close_readers(self) -> None:
        """Close the shim's copies of the reading ends: writing then fails once the logger has gone."""
        with self._lock:
            readers, self._readers = self._readers, ()
        close_all(readers)

    def take_readers(self) -> tuple[int, ...]:
        """Give the reading ends to the caller."""
        with self._lock:
            readers, self._readers = self._readers, ()
        return readers

    def take_writers(self) -> tuple[int, ...]:
        """Give the writing ends to the caller."""
        with self._lock:
            writers, self._writers = self._writers, ()
        return writers

    def close_writers(self) -> None:
        """Let the logger see the end of its input."""
        close_all(self.take_writers())


def _unread(fd: int) -> int:
    from termios import FIONREAD  # hardly ever needed; it comes from the binary itself, at any time

    count: int = struct.unpack("i", fcntl.ioctl(fd, FIONREAD, bytes(4)))[0]
    return count


class Farewell:
    """The loggers that have been told to go and have not gone yet.  All methods belong to the loop's thread."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._loggers: set[BinaryLogger] = set()

    def stop(self, logger: BinaryLogger, grace_s: float) -> None:
        """Send a logger SIGTERM after a while, and SIGKILL in the end, if it needs them."""
        child = logger.child
        if child is None or child.wait(0) is not None:
            return
        self._loggers.add(logger)
        child.on_exit(lambda _exit: self._loggers.discard(logger))
        self._loop.call_later(grace_s, lambda: logger.kill(signal.SIGTERM))
        self._loop.call_later(grace_s + STOP_LIMIT_S, lambda: logger.kill(signal.SIGKILL))

    def end(self) -> None:
        """Kill them all: nobody will be there when their time is up."""
        for logger in [*self._loggers]:
            logger.kill(signal.SIGKILL)


class LoggedStreams:
    """The stdio of a process without a terminal whose output goes to a logger; the same life as `stdio.Streams`."""

    console_socket: str | None = None
    drain_limit_s: Final = END_OF_INPUT_S + STOP_LIMIT_S + 1.0

    def __init__(
        self, loop: EventLoop, log: Logger, farewell: Farewell, logger: BinaryLogger, uid: int = 0, gid: int = 0
    ) -> None:
        self._loop = loop
        self._farewell = farewell
        self._log = log
        self._logger = logger
        self._owner = (uid, gid)
        self._lock = threading.Lock()
        self._is_stopping = False
        self._is_closed = False
        self._pumps: list[Pump] = []

    @property
    def child_fds(self) -> ChildFds:
        """The logger's pipes; nothing comes in."""
        return ChildFds(None, *self._logger.writers)

    def open(self) -> None:
        """Start the logger and wait until it is ready.

        Raises:
            StdioError: It cannot be started, or was not ready in time.  `close` is still to be called.
        """
        self._logger.start(*self._owner)
        child = self._logger.child
        if child is not None:
            child.on_exit(lambda _exit: self._loop.call_soon(self._ended))

    def start(self) -> None:
        """Nothing to do: the process writes into the logger's pipes."""

    def _ended(self) -> None:
        """Read in the logger's place if it was not told to go: its pipes must not fill up, nor break."""
        child = self._logger.child
        if self._is_stopping or self._is_closed or child is None:
            return
        exit_ = child.wait(0)
        status = exit_.status if exit_ is not None else -1
        self._log.warning("logging binary has ended early", binary=self._logger.path, status=status)
        for source in self._logger.take_readers():
            os.set_blocking(source, False)
            sink = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            pump = Pump(self._loop, source, sink, lambda fds=(source, sink): close_all(fds))  # type: ignore[misc]
            self._pumps.append(pump)
            pump.start()

    def close_stdin(self) -> None:
        """Nothing to do: there is no input."""

    def resize(self, width: int, height: int) -> None:
        """Nothing to do: there is no console."""

    def process_exited(self) -> None:
        """Nothing to do: the logger goes on until Delete."""

    def wait_drained(self, timeout_s: float) -> bool:
        """Let the logger read what is left, end its input, and wait for its end; False when `timeout_s` came first."""
        child = self._logger.child
        if child is None:
            return True
        deadline = time.monotonic() + timeout_s
        while child.wait(0) is None and self._logger.pending():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        self._end_input()
        return child.wait(max(0.0, deadline - time.monotonic())) is not None

    def _end_input(self, grace_s: float = END_OF_INPUT_S) -> None:
        with self._lock:
            is_first, self._is_stopping = not self._is_stopping, True
        self._logger.close_writers()
        self._logger.close_readers()
        if is_first:
            self._loop.call_soon(lambda: self._farewell.stop(self._logger, grace_s))

    def close(self) -> None:
        """Close everything and stop the logger, which may take a while and goes on in the background."""
        self._is_closed = True
        self._end_input(0.0)
        self._loop.call_soon(self._stop_pumps)

    def _stop_pumps(self) -> None:
        for pump in self._pumps:
            pump.stop()
        self._pumps.clear()
