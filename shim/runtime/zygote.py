"""The zygote: a warm process that forks the next daemons, so that a launch need not start an interpreter.

Rule: a cache.  Losing it at any moment, by any signal, costs time and nothing else, so it tells nobody of trouble: it
ends, and the plain path serves.  One thread, no state of any container, nothing open but what `Zygote` names.
One for each binary, user, set of namespaces and parent (containerd): founded by a plain `start`, ended when it is idle,
when containerd is, or when its binary or its socket is no longer there.  CONTAINERD_SHIM_FASTPATH=off is its switch.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Final

from shim.host import identity, process
from shim.runtime import address, zygote_protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.runtime.shim import Shim

    Perform = Callable[[list[str]], int]

# A spare that dies young tells of trouble that the next would meet too.
_MAX_DEATHS: Final = 3
# After eight calls Python has compiled a function for the types that it meets.
_REHEARSALS: Final = 12
# How long a busy spare has the machine for itself, unless somebody else asks; after that the next one is made anyway.
_COURTESY_S: Final = 0.05


def is_possible() -> bool:
    """Say whether callers of this binary would look for a zygote."""
    if not process.is_frozen() or os.environ.get(zygote_protocol.OFF_VARIABLE) == "off":
        return False
    from shim_revision import HAS_FASTPATH  # type: ignore[import-not-found]  # written by build/spec

    return bool(HAS_FASTPATH)


def found(shim: Shim, perform: Perform) -> None:
    """Leave a zygote behind, unless there is one or cannot be one; called by a `start` that has still its own identity.

    `perform` does what a command line says and returns the exit code.
    """
    parent = process.invoker_pid()
    folder = zygote_protocol.folder(os.geteuid(), os.environ)
    path = os.path.join(folder, zygote_protocol.socket_name(identity.numbers(parent)))
    if parent <= 0 or address.is_alive(path):
        return
    founder = os.pidfd_open(parent)
    if process.invoker_pid() != parent or os.fork():
        os.close(founder)
        return
    try:
        _be_zygote(shim, perform, parent, founder, path)
    finally:
        os._exit(0)


def _be_zygote(shim: Shim, perform: Perform, parent: int, founder: int, path: str) -> None:
    from shim.host import appearance
    from shim.runtime import daemon

    idle_s = zygote_protocol.idle_s(os.environ)
    os.setpgid(0, 0)
    daemon.detach_stdio()
    os.closerange(3, founder)  # whatever `start` had open: its socket, above all
    os.closerange(founder + 1, 1 << 30)
    for number in (signal.SIGTERM, signal.SIGINT):  # `start` ignores them
        signal.signal(number, signal.SIG_DFL)
    sys.argv[:] = [process.own_command()[-1], "zygote", path]
    # Fails where the kernel does not do it: there daemons could not show whose they are.
    appearance.show(sys.argv, {})
    os.environ.clear()
    os.chdir("/")
    shim.preload()
    runner = shim.daemon_runner()
    from shim.runtime import serve, worker

    process.forget_unpacked_folder()
    for _ in range(_REHEARSALS):
        worker.rehearse()
        if runner is serve.serve:
            serve.rehearse(shim)
    if len(os.listdir("/proc/self/task")) != 1 or not _has_own_folder(os.path.dirname(path)):
        return  # an import has started a thread, or somebody else made the folder
    bound = address.bind(path)
    if bound is None:
        return
    gc.collect()
    gc.freeze()  # what is there by now stays, and a collection would write to every page of it
    try:
        Zygote(bound, founder, idle_s, lambda guard: worker.serve(bound, guard, founder, parent, perform)).run()
    finally:
        bound.remove()


def _has_own_folder(folder: str) -> bool:
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    except OSError:
        return False
    status = os.lstat(folder)
    return (status.st_mode, status.st_uid) == (0o40700, os.geteuid())


class Zygote:
    """Keeps one spare worker ready: a forked copy that waits for the next request, and tells when it has taken it."""

    def __init__(
        self, bound: address.Bound, founder: int, idle_s: float, serve: Callable[[socket.socket], None]
    ) -> None:
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

    def __init__(self, bound: address.Bound) -> None:
        from shim.host import libc

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
