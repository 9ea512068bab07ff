"""The libc calls that Python lacks: prctl, mount, umount2, unshare, inotify.

Rule: the only module with ctypes. Each call raises OSError (errno, text, path) as `os` does, or UnsupportedSystemError
where the system has no such call. The GIL is released during a call. Loading ctypes costs some milliseconds: the daemon
imports this module at its start, since nothing may be imported once it serves, and a `delete` that finds nothing to
unmount never does.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

from shim.errors import UnsupportedSystemError

CLONE_FS: Final = 0x200
CLONE_NEWNS: Final = 0x20000

IN_MODIFY: Final = 2

_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SCHED_CORE: Final = 62
_PR_SCHED_CORE_CREATE: Final = 1
_PIDTYPE_PGID: Final = 2

_libc: Final = ctypes.CDLL(None, use_errno=True)


def set_child_subreaper() -> None:
    """Make this process the parent of its orphaned descendants."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def sched_core_create() -> None:
    """Give this process group a core scheduling cookie of its own, which children inherit."""
    _prctl(_PR_SCHED_CORE, _PR_SCHED_CORE_CREATE, 0, _PIDTYPE_PGID, 0)


def mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    """Mount `source` on `target`, with MS_* flags."""
    words = [ctypes.c_char_p(os.fsencode(word)) for word in (source, target, fstype, data)]
    _call("mount", target, *words[:3], ctypes.c_ulong(flags), words[3])


def umount(target: str, flags: int = 0) -> None:
    """Unmount the topmost mount on `target`."""
    _call("umount2", target, ctypes.c_char_p(os.fsencode(target)), ctypes.c_int(flags))


def unshare(flags: int) -> None:
    """Give the calling thread its own copy of what `flags` (CLONE_*) names."""
    _call("unshare", None, ctypes.c_int(flags))


def inotify_open() -> int:
    """Return a new inotify descriptor, non-blocking and close-on-exec."""
    return _call("inotify_init1", None, ctypes.c_int(os.O_NONBLOCK | os.O_CLOEXEC))


def inotify_watch(fd: int, path: str, mask: int) -> None:
    """Let `fd` tell of the events in `mask` (IN_*) that happen to `path`."""
    _call("inotify_add_watch", path, ctypes.c_int(fd), ctypes.c_char_p(os.fsencode(path)), ctypes.c_int(mask))


def _prctl(option: int, *arguments: int) -> None:
    _call("prctl", None, ctypes.c_int(option), *(ctypes.c_ulong(argument) for argument in arguments))


def _call(name: str, path: str | None, *arguments: ctypes.c_char_p | ctypes.c_int | ctypes.c_ulong) -> int:
    # macOS has a mount(2) too, with other arguments.
    function = getattr(_libc, name, None) if sys.platform == "linux" else None
    if function is None:
        raise UnsupportedSystemError(f"this system has no {name} call")
    result: int = function(*arguments)
    if result >= 0:
        return result
    errno = ctypes.get_errno()
    if path is None:
        raise OSError(errno, f"{name}: {os.strerror(errno)}")
    raise OSError(errno, os.strerror(errno), path)
