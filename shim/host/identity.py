"""Whether two processes would start a child in the same way: all that exec inherits, as far as /proc shows it.

Rule: what cannot be read counts as what it is, an error that both must share.  Compared byte for byte, as text.
Not visible in /proc: session keyring, securebits, I/O priority, NUMA policy, core-scheduling cookie, subreapers among
the ancestors.  They too are inherited, so whoever compares should also insist on one common parent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, NamedTuple

Facts = Mapping[str, object]

NAMESPACES: Final = (
    "cgroup",
    "ipc",
    "mnt",
    "net",
    "pid",
    "pid_for_children",
    "time",
    "time_for_children",
    "user",
    "uts",
)
# Of those, which have a part in `numbers`, in this order.
NUMBERED: Final = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_LASTING_FILES: Final = ("attr/current", "loginuid", "personality", "sessionid")
_CHANGING_FILES: Final = ("cgroup", "coredump_filter", "limits", "oom_score_adj")
FILES: Final = (*_LASTING_FILES, *_CHANGING_FILES)
# Of all this, what nobody but the process itself can change.
LASTING: Final = (*(f"ns/{name}" for name in NAMESPACES), *_LASTING_FILES, "root", "exe")
# Of /proc/PID/status: the names of the lines.  The kernel may have fewer of them; both processes then have.
STATUS: Final = frozenset(
    {
        b"Uid",
        b"Gid",
        b"Groups",
        b"CapInh",
        b"CapPrm",
        b"CapEff",
        b"CapBnd",
        b"CapAmb",
        b"NoNewPrivs",
        b"Seccomp",
        b"Seccomp_filters",
        b"Speculation_Store_Bypass",
        b"SpeculationIndirectBranch",
        b"SigBlk",
        b"Cpus_allowed",
        b"Mems_allowed",
        b"THP_enabled",
    }
)
# Of /proc/PID/stat, counted from the state, which follows the name.
_STAT: Final = {"session": 3, "terminal": 4, "nice": 16, "rt_priority": 37, "policy": 38}
_PARENT: Final = 1
# Python ignores SIGPIPE and SIGXFSZ for itself, so a process of ours has them whatever it was started with; and the C
# library takes its own two signals, 32 and 33, with the first thread.
_TAKEN: Final = 1 << 12 | 1 << 24 | 1 << 31 | 1 << 32
_NO_SECCOMP: Final = b"0"
# More than any of these files has: what is shorter is all of it.
_READ_SIZE: Final = 64 << 10


class Caller(NamedTuple):
    """A process: what of it must be equal, and what is of use besides."""

    facts: Facts
    parent: int
    umask: int


def numbers(parent: int, program: str = "/proc/self/exe") -> list[int]:
    """Return what a process has in common with others of its program, namespaces and parent.  Raises OSError."""
    status = os.stat(program)
    seconds, rest = divmod(status.st_ctime_ns, 1_000_000_000)
    spaces = [_inode(f"/proc/self/ns/{name}") for name in NUMBERED]
    return [status.st_dev, status.st_ino, seconds, rest, status.st_size, *spaces, parent]


def read(pid: int | str, known: Facts | None = None) -> Caller:
    """Return what /proc says of a process, or of `self`.

    `known` are its facts of some time ago, if it has changed nothing of itself since: those that last are taken from
    there.

    Raises:
        OSError: It is gone, or may not be looked at.
        ValueError: /proc is not as it should be.
    """
    place = f"/proc/{pid}"
    facts = _lasting(place) if known is None else {name: known[name] for name in LASTING}
    facts |= {name: _content(f"{place}/{name}") for name in _CHANGING_FILES}
    stat = read_file(f"{place}/stat").rpartition(b")")[2].split()
    for name, index in _STAT.items():
        facts[name] = stat[index]
    umask = -1
    for line in read_file(f"{place}/status").splitlines():
        field, _, value = line.partition(b":")
        if field in STATUS:
            facts[field.decode()] = value
        elif field == b"SigIgn":
            facts["SigIgn"] = int(value, 16) | _TAKEN
        elif field == b"Umask":
            umask = int(value, 8)
    if umask < 0:
        raise ValueError(f"{place}/status has no umask")
    return Caller(facts, int(stat[_PARENT]), umask)


def _lasting(place: str) -> dict[str, object]:
    root, program = os.stat(f"{place}/root"), os.stat(f"{place}/exe")
    return {
        **{f"ns/{name}": _link(f"{place}/ns/{name}") for name in NAMESPACES},
        **{name: _content(f"{place}/{name}") for name in _LASTING_FILES},
        "root": (root.st_dev, root.st_ino),
        "exe": (os.readlink(f"{place}/exe"), program.st_dev, program.st_ino),
    }


def differences(ours: Facts, theirs: Facts) -> list[str]:
    """Return the names of what is not equal, or cannot be compared: two seccomp filters look alike."""
    found = {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)}
    seccomp = theirs.get("Seccomp")
    if isinstance(seccomp, bytes) and seccomp.strip() != _NO_SECCOMP:
        found.add("Seccomp")
    return sorted(found)


def read_file(path: str) -> bytes:
    """Return the content of a file of /proc.  Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = chunk = os.read(fd, _READ_SIZE)
        while len(chunk) == _READ_SIZE:
            chunk = os.read(fd, _READ_SIZE)
            content += chunk
        return content
    finally:
        os.close(fd)


def _content(path: str) -> object:
    try:
        return read_file(path)
    except OSError as error:
        return error.errno


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _link(path: str) -> object:
    try:
        return os.readlink(path)
    except OSError as error:
        return error.errno
