"""How a zygote spends its life: it keeps one spare worker ready, and looks whether it is still of use.

Rule: the zygote itself talks to nobody; the spare accepts, and the zygote learns only that it is busy, done or dead.
"""

from __future__ import annotations

import os
import select
import socket
import time
from typing import TYPE_CHECKING, Final

from shim.host import libc
from shim.runtime import zygote_protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.runtime.address import Bound

# A spare that dies young tells of trouble that the next would meet too.
_MAX_DEATHS: Final = 3
# How long a busy spare has the machine for itself, unless somebody else asks; after that the next one is made anyway.
_COURTESY_S: Final = 0.05


def has_own_folder(folder: str) -> bool:
    """Make the folder for sockets; say whether it is ours, and ours alone, and can be written to."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    except OSError:
        return False
    status = os.lstat(folder)
    return (status.st_mode, status.st_uid) == (0o40700, os.geteuid()) and os.access(folder, os.W_OK)


class Zygote:
    """Keeps one spare worker ready: a forked copy that waits for the next request, and tells when it has taken it."""

    def __init__(self, bound: Bound, founder: int, idle_s: float, serve: Callable[[socket.socket], None]) -> None:
        self._bound = bound
        self._founder = founder
        self._idle_s = idle_s
        self._serve = serve
        self._watch = Watch(bound)

    def run(self) -> None:
        """Serve until there is no more use in it."""
        deaths = 0
        while deaths < _MAX_DEATHS:
            with self._fork_spare() as spare:
                if not self._is_asked(spare):
                    return
                is_busy = spare.recv(1) == zygote_protocol.BUSY
                deaths = 0 if is_busy else deaths + 1
                if is_busy:
                    select.select([spare, self._bound.listener], [], [], _COURTESY_S)

    def _is_asked(self, spare: socket.socket) -> bool:
        """Wait until the spare has a caller, or has died; or say no when the zygote shall end."""
        poll = select.poll()
        for fd in (spare.fileno(), self._founder, self._watch.fd):
            poll.register(fd, select.POLLIN)
        deadline = time.monotonic() + self._idle_s
        while True:
            left_s = deadline - time.monotonic()
            ready = {fd for fd, _ in poll.poll(max(0, left_s) * 1e3)}
            if spare.fileno() in ready:
                return True
            if not ready or self._founder in ready or not self._watch.is_current():
                return False

    def _fork_spare(self) -> socket.socket:
        """Return the zygote's end of what connects it to a new spare, which is an orphan like every daemon."""
        ours, theirs = (socket.socket(fileno=each.detach()) for each in socket.socketpair())
        pid = os.fork()
        if pid:
            theirs.close()
            os.waitpid(pid, 0)
            return ours
        try:
            if os.fork() == 0:
                ours.close()
                self._watch.close()
                self._serve(theirs)
        finally:
            os._exit(0)


class Watch:
    """Tells when the binary or the socket is no longer what it was."""

    def __init__(self, bound: Bound) -> None:
        self._bound = bound
        self._program = os.readlink("/proc/self/exe")
        self._was = self._now()
        self.fd = libc.inotify_open()
        gone = libc.IN_ATTRIB | libc.IN_DELETE_SELF | libc.IN_MOVE_SELF
        libc.inotify_watch(self.fd, self._program, gone)
        libc.inotify_watch(self.fd, os.path.dirname(bound.path), gone | libc.IN_DELETE | libc.IN_MOVED_FROM)

    def is_current(self) -> bool:
        """Read what has happened and look whether it matters."""
        try:
            os.read(self.fd, 64 << 10)
        except BlockingIOError:
            pass
        return self._now() == self._was

    def close(self) -> None:
        """Watch no more."""
        os.close(self.fd)

    def _now(self) -> object:
        try:
            program, bound = os.stat(self._program), os.stat(self._bound.path)
        except OSError:
            return None
        return (program.st_dev, program.st_ino, program.st_ctime_ns, bound.st_dev, bound.st_ino)
