"""A process with a terminal: the console socket that the runtime sends the pty over, and the copying after that.

Rule: same life as `stdio.Streams`.  The socket's folder is short-lived and removed in every path; its path must fit a
unix socket, so a long temp folder is passed over.  Spec: contract 8.5; runc docs/terminals.md.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Final

from shim.engine.call import ChildFds
from shim.engine.pump import Pump
from shim.engine.stdio import DRAIN_LIMIT_S, OPEN_LIMIT_S, StdinHold, Stdio, close_all, open_output, scheme_of
from shim.errors import StdioError
from shim.host import tempfiles
from shim.ttrpc.address import MAX_UNIX_PATH
from shim.ttrpc.loop import EventLoop

if TYPE_CHECKING:
    from shim.engine.binary import BinaryLogger

_NAME: Final = "pty.sock"
_CLOSE_ON_EXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
# What the socket's path has below the temporary folder.
_ROOM: Final = len("/pty0123456789ab/") + len(_NAME)


class ConsoleSocket:
    """A listening socket in a folder of its own, for one pty."""

    def __init__(self) -> None:
        try:
            self._folder = tempfiles.make_folder(tempfiles.short_folder(MAX_UNIX_PATH - _ROOM), "pty")
        except OSError as error:
            raise StdioError(f"failed to create OCI runtime console socket: {error.strerror}") from None
        self.path: str = os.path.join(self._folder, _NAME)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.bind(self.path)
            if os.environ.get("XDG_RUNTIME_DIR"):
                # Sticky, so that nobody cleans it up there (XDG Base Directory Specification); its folder is private.
                os.chmod(self.path, 0o1755)  # noqa: S103
            self._sock.listen(1)
        except OSError as error:
            self.close()
            raise StdioError(f"failed to create OCI runtime console socket: {error.strerror}") from None

    def receive(self, timeout_s: float) -> int:
        """Return the pty's master, which the runtime has sent or will send.

        Raises:
            StdioError: Nothing came, or something else.
        """
        self._sock.settimeout(timeout_s)
        try:
            connection, _ = self._sock.accept()
            with connection:
                connection.settimeout(timeout_s)
                # Close-on-exec at once: other threads spawn runtimes meanwhile.
                _, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4 * 4), _CLOSE_ON_EXEC)
        except OSError as error:
            raise StdioError(f"failed to retrieve console master: {error}") from None
        fds: list[int] = [
            fd
            for level, kind, data in ancillary
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
            for (fd,) in struct.iter_unpack("i", data[: len(data) - len(data) % 4])
        ]
        if len(fds) != 1:
            close_all(tuple(fds))
            raise StdioError(f"failed to retrieve console master: got {len(fds)} descriptors")
        os.set_inheritable(fds[0], False)
        return fds[0]

    def close(self) -> None:
        """Remove socket and folder."""
        self._sock.close()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass  # it was not bound
        os.rmdir(self._folder)


class Console:
    """The stdio of one process that has a terminal; stderr is the terminal too.

    With a `logger` that gets the output; it ends by itself when its input does.
    """

    drain_limit_s: Final = DRAIN_LIMIT_S

    def __init__(self, loop: EventLoop, stdio: Stdio, logger: BinaryLogger | None = None) -> None:
        scheme, _ = scheme_of(stdio.stdout)
        if stdio.stdout and scheme != "fifo" and logger is None:
            raise StdioError(f"failed to create init process I/O: unknown STDIO scheme {scheme} for a terminal")
        self._loop = loop
        self._stdio = stdio
        self._logger = logger
        self._stdin = StdinHold(loop)
        self._socket: ConsoleSocket | None = None
        self._output: tuple[int, ...] = ()
        self._lock = threading.Lock()
        self._master: int | None = None
        self._pump: Pump | None = None
        self._has_exited = False
        self._drained = threading.Event()

    @property
    def console_socket(self) -> str | None:
        """Where the runtime shall send the pty."""
        return self._socket.path if self._socket is not None else None

    @property
    def child_fds(self) -> ChildFds:
        """None: the runtime gives the process the pty's other end."""
        return ChildFds()

    def open(self) -> None:
        """Open the client's fifos and the console socket; waits for the reader, or logger, OPEN_LIMIT_S at most.

        Raises:
            StdioError: One of them cannot be opened; the text names it.  `close` is still to be called.
        """
        if self._stdio.stdin:
            self._stdin.open(self._stdio.stdin)
        if self._logger is not None:
            try:
                self._logger.start()
            finally:
                self._output = self._logger.take_writers()
                self._logger.close_readers()  # so a logger that has gone is seen, and the terminal goes on
            for fd in self._output:
                os.set_blocking(fd, False)
        elif self._stdio.stdout:
            self._output = open_output(self._stdio.stdout, time.monotonic() + OPEN_LIMIT_S)
        else:  # nobody watches, but a pty that fills up would stop the process
            self._output = (os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC),)
        self._socket = ConsoleSocket()

    def start(self) -> None:
        """Take the pty from the runtime and copy from here on.

        Raises:
            StdioError: The pty did not come.
        """
        console_socket, self._socket = self._socket, None
        if console_socket is None:
            return
        try:
            master = console_socket.receive(OPEN_LIMIT_S)
        finally:
            console_socket.close()
        os.set_blocking(master, False)
        with self._lock:
            self._master = master
        # Copies have descriptors of their own, so that none is closed under another thread's hands.
        output, self._output = self._output, ()
        if output:
            source = os.dup(master)
            self._loop.call_soon(lambda: self._copy_output(source, output))
        else:
            self._drained.set()
        if self._stdio.stdin:
            self._stdin.start(os.dup(master))

    def _copy_output(self, source: int, fds: tuple[int, ...]) -> None:
        def done() -> None:
            close_all((source, *fds))
            self._drained.set()

        self._pump = Pump(self._loop, source, fds[0], done, is_tty=True)
        self._pump.start()
        if self._has_exited:
            self._pump.finish()

    def process_exited(self) -> None:
        """End the copy once what is left has come through; any thread."""
        self._has_exited = True
        self._loop.call_soon(self._finish)

    def _finish(self) -> None:
        if self._pump is not None:
            self._pump.finish()

    def resize(self, width: int, height: int) -> None:
        """Tell the terminal its size in characters; the kernel keeps 16 bits of each.

        Raises:
            OSError: The terminal refuses.
        """
        from termios import TIOCSWINSZ  # hardly ever needed; it comes from the binary itself, at any time

        with self._lock:
            if self._master is not None:
                size = struct.pack("HHHH", height & 0xFFFF, width & 0xFFFF, 0, 0)
                fcntl.ioctl(self._master, TIOCSWINSZ, size)

    def close_stdin(self) -> None:
        """Give up the shim's hold on the stdin fifo; any thread, any time."""
        self._stdin.release()

    def wait_drained(self, timeout_s: float) -> bool:
        """Wait until all output has been passed on; False when `timeout_s` came first."""
        return self._drained.wait(timeout_s)

    def close(self) -> None:
        """Stop copying and close everything, however far it got; any thread."""
        console_socket, self._socket = self._socket, None
        if console_socket is not None:
            console_socket.close()
        output, self._output = self._output, ()
        close_all(output)
        self._stdin.close()
        with self._lock:
            master, self._master = self._master, None
        if master is not None:
            os.close(master)
        self._loop.call_soon(self._stop)

    def _stop(self) -> None:
        if self._pump is not None:
            self._pump.stop()
            self._pump = None
