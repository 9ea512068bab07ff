"""Becoming a daemon: the process that `start` leaves behind, holding the listening socket.

Two ways with one result.  Re-exec: the program starts itself again with the socket on descriptor 3 (Go's way).  Fork:
the process that is already loaded goes on as the daemon, which saves the second launch; a frozen binary takes it,
since its unpacked folder then belongs to `start` alone and is removed when that ends.
CONTAINERD_SHIM_SPAWN=reexec|fork chooses.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from shim.host import process

if TYPE_CHECKING:
    from typing import NoReturn

    from shim.runtime.address import Bound
    from shim.runtime.flags import Flags

LISTEN_FD: Final = 3
# Held back until the daemon can act on them: one that comes early must not end it with its socket left behind.
HELD_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SPAWN_VARIABLE: Final = "CONTAINERD_SHIM_SPAWN"
# Present in each of our unpacked folders (build/spec puts it there), so that we never sweep another program's.
UNPACK_MARKER: Final = "containerd-shim.marker"
_STALE_S: Final = 3600.0


def should_fork() -> bool:
    """Say which of the two ways this process takes."""
    wanted = os.environ.get(SPAWN_VARIABLE, "")
    return process.is_frozen() if wanted not in ("fork", "reexec") else wanted == "fork"


def reexec(flags: Flags, bound: Bound) -> int:
    """Start this program again as the daemon and return its pid."""
    env = process.child_env()
    env["OTEL_SERVICE_NAME"] = f"containerd-shim-{flags.id}"
    if process.is_frozen():
        env["PYINSTALLER_RESET_ENVIRONMENT"] = "1"  # else the new bootloader takes itself for our child
    command = [*process.own_command(), *flags.daemon_arguments()]
    passed = {LISTEN_FD: bound.listener.fileno()}
    child = process.spawn(command[0], command, env, pass_fds=passed, new_group=True, blocked=HELD_SIGNALS)
    if child.pidfd >= 0:
        os.close(child.pidfd)
    return child.pid


def fork(flags: Flags, bound: Bound, serve: Callable[[], None]) -> int:
    """Go on as the daemon in a child process, and return its pid in this one.

    Safe only while this process has one thread, which is so in `start`.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    return os.fork() or _become(flags, serve)


def _become(flags: Flags, serve: Callable[[], None]) -> NoReturn:
    status = 1
    try:
        os.setpgid(0, 0)
        detach_stdio()
        process.set_command_line([process.own_command()[-1], *flags.daemon_arguments()])
        os.environ["OTEL_SERVICE_NAME"] = f"containerd-shim-{flags.id}"
        serve()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())  # into the log, by send_errors_to_log
    finally:
        os._exit(status)  # nothing of `start` may run on in the daemon


def detach_stdio() -> None:
    """Put /dev/null on descriptors 0 to 2: containerd waits for the end of start's output."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


def send_errors_to_log() -> None:
    """Put the bundle's log on descriptor 2, so that whatever ends this daemon is told there."""
    try:
        fd = os.open("log", os.O_RDWR | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # a daemon by hand may have none
    os.dup2(fd, 2)
    os.close(fd)


def load_extensions() -> None:
    """Load all that a frozen shim has in its unpacked folder, which goes when `start` ends.

    Python modules come from the binary itself and can wait, so the daemon imports them while `start` already ends.
    """
    import shim_extensions  # type: ignore[import-not-found]  # noqa: F401  (build/spec writes it)


def disown_unpacked_folder() -> None:
    """Remove the folder that this frozen daemon was unpacked to, and end the bootloader that waits to do it.

    Only after everything has been imported, and only in a re-executed daemon: so no SIGKILL, of whichever process,
    leaves a folder behind, and the bootloader's memory is free.
    """
    folder = process.unpacked_folder()
    if folder is None:
        return
    load_extensions()
    import shutil  # heavy, and needed nowhere else

    shutil.rmtree(folder, ignore_errors=True)
    if process.has_bootloader():
        os.kill(os.getppid(), signal.SIGKILL)


def sweep_unpacked_folders(folder: str) -> None:
    """Remove unpacked folders that killed `start` or `delete` processes left next to `folder`, once they are old.

    None of ours that is in use is older than the longest `delete`, a few seconds.
    """
    parent = os.path.dirname(folder)
    try:
        entries = [entry for entry in os.scandir(parent) if entry.name.startswith("_MEI")]
    except OSError:
        return
    for entry in entries:
        try:
            marked = os.stat(os.path.join(entry.path, UNPACK_MARKER))
        except OSError:
            continue
        if time.time() - marked.st_ctime > _STALE_S and entry.path != folder:
            import shutil  # as above

            shutil.rmtree(entry.path, ignore_errors=True)
