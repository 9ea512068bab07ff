"""A process's stdin, stdout and stderr: fifos of the client, files, or a console; and the copying between.

Rule: the process gets pipes (or a console), the client's fifos stay the shim's, opened on both sides, so that a
client or a containerd that goes away breaks nothing.  Opening may wait for the client and so belongs to worker
threads; copying is done on the loop.  Spec: contract section 8.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from typing import Final, NamedTuple

from shim.engine.call import ChildFds
from shim.engine.pump import Pump
from shim.errors import StdioError
from shim.ttrpc.loop import EventLoop

# How long a fifo's reader may take to appear before the operation fails (Go's limit).
OPEN_LIMIT_S: Final = 30.0
# How long Delete waits for the last output.  CRI gives a whole Delete ten seconds (containerd#13377).
DRAIN_LIMIT_S: Final = 9.0
_POLL_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02)


class Stdio(NamedTuple):
    """Where a process's stdio goes, as the client asked."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False

    @property
    def is_null(self) -> bool:
        """True when nothing is wanted: the process gets /dev/null."""
        return not (self.stdin or self.stdout or self.stderr)


def scheme_of(target: str) -> tuple[str, str]:
    """Return (scheme, path) of a stdout target: a bare path is a fifo."""
    scheme, separator, rest = target.partition("://")
    return (scheme, rest) if separator else ("fifo", target)


class Streams:
    """The stdio of one process that has no terminal.

    Life: `open` the client's ends, give `child_fds` to the runtime, `start` copying, `close_stdin` on CloseIO,
    `wait_drained` in Delete; `close` at any point, from any thread.
    """

    console_socket: str | None = None
    drain_limit_s: Final = DRAIN_LIMIT_S

    def __init__(self, loop: EventLoop, stdio: Stdio, uid: int = 0, gid: int = 0) -> None:
        self._loop = loop
        scheme, path = scheme_of(stdio.stdout)
        if stdio.stdout and scheme not in ("fifo", "file"):
            raise StdioError(f"failed to create init process I/O: unknown STDIO scheme {scheme}")
        self._is_file = scheme == "file"
        self._stdin_path = stdio.stdin
        self._outputs = [path, path if self._is_file else stdio.stderr]
        self._owner = (uid, gid)
        self._child: list[int | None] = [None, None, None]
        self._stdin = StdinHold(loop)
        self._stdin_pipe: int | None = None
        self._copies: list[tuple[int, tuple[int, ...]]] = []
        self._pumps: list[Pump] = []
        self._running = 0
        self._drained = threading.Event()

    @property
    def child_fds(self) -> ChildFds:
        """The ends for the process."""
        return ChildFds(*self._child)

    def open(self) -> None:
        """Open the client's fifos and make the process's pipes; waits for fifos' readers, OPEN_LIMIT_S at most.

        Raises:
            StdioError: A fifo cannot be opened; the text names it.  `close` is still to be called.
        """
        deadline = time.monotonic() + OPEN_LIMIT_S
        if self._stdin_path:
            self._stdin.open(self._stdin_path)
            self._stdin_pipe = self._make_pipe(0)
        opened: dict[str, int] = {}
        for number, path in enumerate(self._outputs, start=1):
            if not path:
                continue
            if path in opened:
                fds: tuple[int, ...] = (os.dup(opened[path]),)  # one description, so that the two append in turn
            else:
                fds = open_output(path, deadline, make=self._is_file)
                if len(fds) == 1:  # no fifo, whose reading end has to be held for each
                    opened[path] = fds[0]
            try:
                self._copies.append((self._make_pipe(number), fds))
            except BaseException:
                close_all(fds)
                raise

    def _make_pipe(self, number: int) -> int:
        """Make the pipe for one of the process's descriptors and return the shim's end."""
        own = -1
        try:
            read_end, write_end = os.pipe()
            own, child = (write_end, read_end) if number == 0 else (read_end, write_end)
            self._child[number] = child
            os.set_blocking(own, False)
            if any(self._owner):
                os.fchown(child, *self._owner)
        except OSError as error:
            if own >= 0:
                os.close(own)
            raise StdioError(f"failed to create init process I/O: {_reason(error)}") from None
        return own

    def start(self) -> None:
        """Copy from here on; the runtime has the process's ends, so ours are closed, and the end can be seen."""
        self._close_child_ends()
        copies, self._copies = self._copies, []
        self._running = len(copies)
        if not copies:
            self._drained.set()
        for source, fds in copies:
            self._loop.call_soon(lambda source=source, fds=fds: self._copy(source, fds))  # type: ignore[misc]
        sink, self._stdin_pipe = self._stdin_pipe, None
        if sink is not None:
            self._stdin.start(sink)

    def _copy(self, source: int, fds: tuple[int, ...]) -> None:
        def done() -> None:
            close_all((source, *fds))
            self._running -= 1
            if not self._running:
                self._drained.set()

        pump = Pump(self._loop, source, fds[0], done)
        self._pumps.append(pump)
        pump.start()

    def close_stdin(self) -> None:
        """Let the process see the end of its input once the client has closed its own end; any thread, any time."""
        self._stdin.release()

    def wait_drained(self, timeout_s: float) -> bool:
        """Wait until all output has been passed on; False when `timeout_s` came first."""
        return self._drained.wait(timeout_s)

    def process_exited(self) -> None:
        """Nothing to do: pipes end by themselves."""

    def resize(self, width: int, height: int) -> None:
        """Nothing to do: there is no console."""

    def close(self) -> None:
        """Stop copying and close everything, however far it got."""
        self._close_child_ends()
        copies, self._copies = self._copies, []
        for source, fds in copies:
            close_all((source, *fds))
        sink, self._stdin_pipe = self._stdin_pipe, None
        if sink is not None:
            os.close(sink)
        self._stdin.close()
        self._loop.call_soon(self._stop_pumps)

    def _close_child_ends(self) -> None:
        for number, fd in enumerate(self._child):
            if fd is not None:
                os.close(fd)
                self._child[number] = None

    def _stop_pumps(self) -> None:
        for pump in self._pumps:
            pump.stop()
        self._pumps.clear()


class StdinHold:
    """The client's stdin fifo: read from, and held open for writing until CloseIO.

    So a client may detach and another one attach; only CloseIO, and then the last writer's end, is the end of input.
    """

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._read: int | None = None
        self._hold: int | None = None
        self._is_released = False
        self._pump: Pump | None = None

    def open(self, path: str) -> None:
        """Open both ends; never waits.

        Raises:
            StdioError: There is no such fifo.
        """
        try:
            self._read = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            if stat.S_ISFIFO(os.fstat(self._read).st_mode):
                # Taken even if a CloseIO came first (nerdctl#5042): a fifo that never had a writer has no end either.
                hold = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                with self._lock:
                    is_kept = not self._is_released
                    self._hold = hold if is_kept else None
                if not is_kept:
                    os.close(hold)
        except OSError as error:
            self.close()
            raise StdioError(f"failed to open stdin fifo {path}: {_reason(error)}") from None

    def start(self, sink: int) -> None:
        """Copy the fifo to `sink`, which is closed at the end of input."""
        read, self._read = self._read, None
        if read is None:
            return

        def done() -> None:
            close_all((read, sink))

        def begin() -> None:
            self._pump = Pump(self._loop, read, sink, done)
            self._pump.start()

        self._loop.call_soon(begin)

    def release(self) -> None:
        """Give up the writing end: CloseIO.  Repeating is fine."""
        with self._lock:
            self._is_released = True
            hold, self._hold = self._hold, None
        if hold is not None:
            os.close(hold)

    def close(self) -> None:
        """Stop copying and close both ends; any thread."""
        self.release()
        read, self._read = self._read, None
        if read is not None:
            os.close(read)
        self._loop.call_soon(self._stop)

    def _stop(self) -> None:
        if self._pump is not None:
            self._pump.stop()
            self._pump = None


def open_output(path: str, deadline: float, *, make: bool = False) -> tuple[int, ...]:
    """Open a fifo for writing once it has a reader, and hold its reading end too; other files are appended to.

    Raises:
        StdioError: It cannot be opened, or no reader came before `deadline` (a `time.monotonic()` value).
    """
    try:
        if make:
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            return (os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644),)
        if not stat.S_ISFIFO(os.stat(path).st_mode):
            return (os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC),)
        write_end = _open_when_read(path, deadline)
    except OSError as error:
        raise StdioError(f"failed to open {path}: {_reason(error)}") from None
    try:
        # By its descriptor: the client may have removed the name meanwhile.
        return (write_end, os.open(f"/proc/self/fd/{write_end}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        os.close(write_end)
        raise StdioError(f"failed to open {path}: {_reason(error)}") from None


def _open_when_read(path: str, deadline: float) -> int:
    tries = 0
    while True:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > deadline:
                raise OSError(errno.ETIMEDOUT, "nobody opened it for reading") from None
        time.sleep(_POLL_S[min(tries, len(_POLL_S) - 1)])
        tries += 1


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def close_all(fds: tuple[int, ...]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
