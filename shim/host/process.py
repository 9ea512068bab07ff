"""Processes: how this one was started, and the one place where children are spawned.

Rule: every child gets its environment from `child_env`, default signals, an empty signal mask, and only the descriptors
named; all else is close-on-exec.  Nothing is forked: that is unsafe in a process with threads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

# What PyInstaller's bootloader sets for itself, and what must not change the meaning of an engine's own start.
_FREEZER_PREFIX = "_PYI_"
_BLOCK = 4096
_DROPPED = frozenset({"NOTIFY_SOCKET", "PYINSTALLER_RESET_ENVIRONMENT", "PYINSTALLER_SUPPRESS_SPLASH_SCREEN"})


def is_frozen() -> bool:
    """True inside a PyInstaller binary."""
    return bool(getattr(sys, "frozen", False))


def unpacked_folder() -> str | None:
    """Return the temporary folder that a binary runs from which has to unpack itself, or None."""
    folder = getattr(sys, "_MEIPASS", None)
    return folder if is_frozen() and isinstance(folder, str) else None


def has_bootloader() -> bool:
    """Say whether our parent is the onefile bootloader that unpacked us, and will remove what it unpacked.

    By path: a bootloader that has been replaced in the meantime starts, as its child, what is there now.
    """
    if unpacked_folder() is None:
        return False
    try:
        parent, own = (os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)") for pid in (os.getppid(), "self"))
    except OSError:
        return False
    return parent == own


def remove_abandoned_folder() -> None:
    """Remove the folder that this process was unpacked to, if its bootloader has been killed and will not do it.

    containerd kills a `start` or `delete` that takes too long; that hits the bootloader alone.
    """
    folder = unpacked_folder()
    if folder is not None and not has_bootloader():
        import shutil  # heavy, and hardly ever needed

        shutil.rmtree(folder, ignore_errors=True)


def child_env(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for any child: ours, less what the freezer and systemd meant for us alone."""
    env = dict(os.environ if environ is None else environ)
    original = env.pop("LD_LIBRARY_PATH_ORIG", None)
    if original is not None:
        env["LD_LIBRARY_PATH"] = original
    elif unpacked_folder() is not None:
        env.pop("LD_LIBRARY_PATH", None)
    for name in list(env):
        if name.startswith(_FREEZER_PREFIX) or name in _DROPPED:
            del env[name]
    return env


def own_command() -> list[str]:
    """Return the words that start this program again: the binary itself, or the interpreter and its arguments."""
    if is_frozen():
        return [sys.executable]
    count = len(sys.orig_argv) - len(sys.argv) + 1
    return [sys.executable, *sys.orig_argv[1:count]]


def invoker_pid() -> int:
    """Return the pid of who ran us: our parent, or the parent of the onefile bootloader that is our parent."""
    parent = os.getppid()
    if not has_bootloader():
        return parent
    try:
        with open(f"/proc/{parent}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return parent


def find_executable(name: str) -> str | None:
    """Return the file that `name` means on PATH (a name with a slash means itself), or None."""
    folders = [""] if "/" in name else (os.environ.get("PATH") or os.defpath).split(os.pathsep)
    for folder in folders:
        file = os.path.join(folder, name)
        if os.access(file, os.X_OK) and not os.path.isdir(file):
            return file
    return None


class Spawned(NamedTuple):
    """A child: its pid, and a close-on-exec descriptor of it, -1 where the system has none to give."""

    pid: int
    pidfd: int


class Spawning:
    """A spawn under way, for other threads: which exit may be its child's, while the spawning one still waits."""

    __slots__ = ("told",)

    def __init__(self) -> None:
        self.told = bytearray(4)

    @property
    def pid(self) -> int:
        """The child's pid, 0 while there is none; -1 if only the end of the spawn will tell, as with ctypes."""
        return int.from_bytes(self.told, sys.byteorder, signed=True)


def spawn(
    file: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    pass_fds: Mapping[int, int] | None = None,
    new_group: bool = False,
    new_session: bool = False,
    blocked: Collection[int] = (),
    folder: str | None = None,
    under_way: Spawning | None = None,
) -> Spawned:
    """Start `file` and return its pid and pidfd; the caller closes the one and reaps the other.

    A descriptor left None is /dev/null.  `pass_fds` maps a number in the child, above 2, to a descriptor of ours.
    Signals that are `blocked` wait until the child wants them; each has its default action.  It works in `folder`, else
    where we do.

    Raises:
        OSError: The file cannot be run, or there is no such folder; errno says why.
    """
    from shim.host import libc  # a `delete` that runs nothing does not pay for it

    placed = {**dict(enumerate((stdin, stdout, stderr))), **(pass_fds or {})}
    pid, pidfd = libc.spawn(
        file,
        list(argv),
        [f"{name}={value}" for name, value in env.items()],
        fds=[(target, -1 if source is None else source) for target, source in placed.items()],
        folder=folder,
        blocked=sum(1 << (signum - 1) for signum in set(blocked)),
        new_group=new_group,
        new_session=new_session,
        told=(under_way or Spawning()).told,
    )
    return Spawned(pid, pidfd)


def find_by_arguments(*words: str) -> list[int]:
    """Return the pids of all processes that have each of `words` among their arguments."""
    wanted = {os.fsencode(word) for word in words}
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                # Not by a file object, whose making and looking takes three times as many system calls.
                cmdline = os.open(f"/proc/{name}/cmdline", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if wanted.issubset(_read_whole(cmdline).split(b"\0")):
                        found.append(int(name))
                finally:
                    os.close(cmdline)
            except OSError:
                continue  # it has just ended
    return found


def _read_whole(fd: int) -> bytes:
    """Read to the end, which a short read is in /proc; by small blocks, since nearly all command lines are short."""
    data = chunk = os.read(fd, _BLOCK)
    while len(chunk) == _BLOCK:
        chunk = os.read(fd, _BLOCK)
        data += chunk
    return data


def find_descendants(pid: int) -> dict[int, int]:
    """Return the children of a process, theirs, and so on: the times they were started at, by pid."""
    parents: dict[int, tuple[int, int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _read_stat(int(name))
            if fields is not None:
                parents[int(name)] = fields
    found: dict[int, int] = {}
    above = {pid}
    while above:
        above = {each for each, (parent, _) in parents.items() if parent in above and each not in found}
        found.update({each: parents[each][1] for each in above})
    return found


def send_signal(pid: int, started_at: int, signum: int) -> None:
    """Send a signal to the process that was started then, not to another that has got its pid since."""
    fields = _read_stat(pid)
    if fields is not None and fields[1] == started_at:
        try:
            os.kill(pid, signum)
        except OSError:
            return  # it has gone, or become another user's


def _read_stat(pid: int) -> tuple[int, int] | None:
    """Return a process's parent and when it was started; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
        return int(fields[1]), int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def set_command_line(argv: Sequence[str]) -> None:
    """Show other words in `ps`, where there is room for them; a nicety, so it fails in silence.

    Needed where a daemon is forked, not executed: operators look for `-namespace … -id …` of the daemon.
    """
    try:
        with open("/proc/self/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        text = b"\0".join(os.fsencode(word) for word in argv) + b"\0"
        if len(text) <= end - start:
            with open("/proc/self/mem", "r+b", buffering=0) as memory:
                memory.seek(start)
                memory.write(text.ljust(end - start, b"\0"))
    except (OSError, ValueError, IndexError):
        return


def raise_oom_score(by: int = 1) -> None:
    """Make this process, and who it forks, a likelier victim than the one that ran it (containerd).

    Raises:
        OSError: The score cannot be read or written; refused writes of an unprivileged process are ignored, and so is
            all of it on a system without scores.
    """
    if sys.platform != "linux":
        return
    with open(f"/proc/{invoker_pid()}/oom_score_adj", "rb", buffering=0) as parent:
        score = int(parent.read())
    with open("/proc/self/oom_score_adj", "wb", buffering=0) as own:
        try:
            own.write(b"%d" % max(-1000, min(1000, score + by)))
        except PermissionError:
            if os.geteuid() == 0 and not _in_user_namespace():
                raise


def _in_user_namespace() -> bool:
    with open("/proc/self/uid_map") as uid_map:
        return uid_map.read().split() != ["0", "0", "4294967295"]
