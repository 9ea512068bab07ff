"""The libc calls that Python lacks: prctl, mount, umount2, id-mapped mounts, namespaces, inotify.

Rule: the only module with ctypes, besides heap. Each call raises OSError (errno, text, path) as `os` does, or
UnsupportedSystemError where the system has no such call. The GIL is released during a call. Loading ctypes costs some
milliseconds: the daemon imports this module at its start, since nothing may be imported once it serves, and a `delete`
that finds nothing to unmount never does.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

from shim.errors import UnsupportedSystemError

CLONE_FS: Final = 0x200
CLONE_NEWNS: Final = 0x20000
MNT_DETACH: Final = 0x2
MOUNT_ATTR_RDONLY: Final = 0x1

# Since Linux 5.2 and 5.12; all architectures but Alpha, which counts from 110, have these numbers.
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_MOUNT_SETATTR: Final = 442
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_OPEN_TREE_CLONE: Final = 0x1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
_MOUNT_ATTR_IDMAP: Final = 0x100000
_MS_PRIVATE: Final = 1 << 18
_CLONE_VM: Final = 0x100
_CLONE_VFORK: Final = 0x4000
_CLONE_NEWUSER: Final = 0x10000000
_STACK_SIZE: Final = 64 << 10

IN_MODIFY: Final = 0x2
IN_ATTRIB: Final = 0x4
IN_MOVED_FROM: Final = 0x40
IN_DELETE: Final = 0x200
IN_DELETE_SELF: Final = 0x400
IN_MOVE_SELF: Final = 0x800

_PR_SET_MM: Final = 35
_PR_SET_MM_MAP: Final = 14
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SCHED_CORE: Final = 62
_PR_SCHED_CORE_CREATE: Final = 1
_PIDTYPE_PGID: Final = 2

_libc: Final = ctypes.CDLL(None, use_errno=True)

_Word = ctypes.c_char_p | ctypes.c_void_p | ctypes.c_int | ctypes.c_long | ctypes.c_ulong


class _MemoryMap(ctypes.Structure):
    """struct prctl_mm_map."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("start_code", "end_code", "start_data", "end_data", "start_brk", "brk")),
        *((name, ctypes.c_uint64) for name in ("start_stack", "arg_start", "arg_end", "env_start", "env_end", "auxv")),
        ("auxv_size", ctypes.c_uint32),
        ("exe_fd", ctypes.c_uint32),
    )


class _MountAttr(ctypes.Structure):
    """struct mount_attr."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


_shown: ctypes.Array[ctypes.c_char] | None = None
"""What the kernel reads the command line and environment from: must live on."""


def set_child_subreaper() -> None:
    """Make this process the parent of its orphaned descendants."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def sched_core_create() -> None:
    """Give this process group a core scheduling cookie of its own, which children inherit."""
    _prctl(_PR_SCHED_CORE, _PR_SCHED_CORE_CREATE, 0, _PIDTYPE_PGID, 0)


def set_memory_map(
    code: int, code_end: int, data: int, data_end: int, heap: int, stack: int, arguments: bytes, variables: bytes
) -> None:
    """Let /proc show these arguments and variables; the numbers are those of /proc/self/stat, and stay."""
    global _shown
    shown = ctypes.create_string_buffer(arguments + variables)
    start = ctypes.addressof(shown)
    middle, end = start + len(arguments), start + len(arguments) + len(variables)
    wanted = _MemoryMap(code, code_end, data, data_end, heap, 0, stack, start, middle, middle, end, 0, 0, 0xFFFFFFFF)
    size = ctypes.sizeof(wanted)
    words = [ctypes.c_ulong(word) for word in (_PR_SET_MM_MAP, ctypes.addressof(wanted), size, 0)]
    _libc.sbrk.restype = ctypes.c_void_p
    wanted.brk = _libc.sbrk(ctypes.c_long(0))  # last, since the kernel takes it as it is, and allocating may move it
    _call("prctl", None, ctypes.c_int(_PR_SET_MM), *words)
    _shown = shown


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


def clone_mount(path: str, *, is_recursive: bool) -> int:
    """Return a descriptor of a copy of the mount at `path`, which no path leads to yet, with those below if wanted."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if is_recursive else 0)
    return _syscall("open_tree", _SYS_OPEN_TREE, path, _AT_FDCWD, os.fsencode(path), flags)


def map_ids(mount_fd: int, userns_fd: int, *, attributes: int = 0, is_recursive: bool) -> None:
    """Let a mount of `clone_mount` show the ids of its files as a user namespace maps them; set MOUNT_ATTR_* too.

    It is private from then on: what is mounted or unmounted in it does not come to the mount that it is a copy of.
    """
    wanted = _MountAttr(_MOUNT_ATTR_IDMAP | attributes, 0, _MS_PRIVATE, userns_fd)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if is_recursive else 0)
    size = ctypes.sizeof(wanted)
    _syscall("mount_setattr", _SYS_MOUNT_SETATTR, None, mount_fd, b"", flags, ctypes.addressof(wanted), size)


def attach_mount(mount_fd: int, target: str) -> None:
    """Mount what `clone_mount` has copied on `target`."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH
    _syscall("move_mount", _SYS_MOVE_MOUNT, target, mount_fd, b"", _AT_FDCWD, os.fsencode(target), flags)


def make_user_namespace() -> int:
    """Return the pid of a process in a new user namespace, which has ended: `os.waitpid(pid, WALL)` when done with it.

    The child is as posix_spawn has them, in this memory and while the calling thread stands still, but runs _exit(2) at
    once.  It sends no signal, and no wait but one with WALL sees it.
    """
    stack = ctypes.create_string_buffer(_STACK_SIZE)
    top = (ctypes.addressof(stack) + _STACK_SIZE) & ~0xF
    function = ctypes.cast(_libc._exit, ctypes.c_void_p)
    flags = _CLONE_NEWUSER | _CLONE_VM | _CLONE_VFORK
    return _call("clone", None, function, ctypes.c_void_p(top), ctypes.c_int(flags), ctypes.c_void_p(0))


def inotify_open() -> int:
    """Return a new inotify descriptor, non-blocking and close-on-exec."""
    return _call("inotify_init1", None, ctypes.c_int(os.O_NONBLOCK | os.O_CLOEXEC))


def inotify_watch(fd: int, path: str, mask: int) -> None:
    """Let `fd` tell of the events in `mask` (IN_*) that happen to `path`."""
    _call("inotify_add_watch", path, ctypes.c_int(fd), ctypes.c_char_p(os.fsencode(path)), ctypes.c_int(mask))


def _prctl(option: int, *arguments: int) -> None:
    _call("prctl", None, ctypes.c_int(option), *(ctypes.c_ulong(argument) for argument in arguments))


def _syscall(name: str, number: int, path: str | None, *arguments: int | bytes) -> int:
    """Make a call that the C library may be too old for."""
    words = [ctypes.c_char_p(word) if isinstance(word, bytes) else ctypes.c_long(word) for word in arguments]
    return _call("syscall", path, ctypes.c_long(number), *words, name=name)


def _call(function_name: str, path: str | None, *arguments: _Word, name: str = "") -> int:
    # macOS has a mount(2) too, with other arguments.
    function = getattr(_libc, function_name, None) if sys.platform == "linux" else None
    name = name or function_name
    if function is None:
        raise UnsupportedSystemError(f"this system has no {name} call")
    result: int = function(*arguments)
    if result >= 0:
        return result
    errno = ctypes.get_errno()
    if path is None:
        raise OSError(errno, f"{name}: {os.strerror(errno)}")
    raise OSError(errno, os.strerror(errno), path)
