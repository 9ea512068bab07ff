"""The calls of libc.py, made by ctypes: where the interpreter has no `_shim_libc` built in.

Rule: same names, arguments and errors as build/launch/libc.c; tests/host/test_libc.py runs over both.  Only libc.py
imports it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from shim.errors import UnsupportedSystemError

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
_CLONE_FS: Final = 0x200
_CLONE_VFORK: Final = 0x4000
_CLONE_NEWUSER: Final = 0x10000000
_STACK_SIZE: Final = 64 << 10

_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SCHED_CORE: Final = 62
_PR_SCHED_CORE_CREATE: Final = 1
_PIDTYPE_PGID: Final = 2

_SETPGROUP: Final = 0x02
_SETSIGDEF: Final = 0x04
_SETSIGMASK: Final = 0x08
_SETSID: Final = 0x80
_ROOM: Final = 1024  # three times what posix_spawn's structures take, in glibc and in musl
_SIGNAL_WORDS: Final = 16  # libc's signal set, whose first word is the kernel's
_ACTIONS: Final[Mapping[object, str]] = {
    os.POSIX_SPAWN_OPEN: "posix_spawn_file_actions_addopen",
    os.POSIX_SPAWN_DUP2: "posix_spawn_file_actions_adddup2",
    os.POSIX_SPAWN_CLOSE: "posix_spawn_file_actions_addclose",
}

_libc: Final = ctypes.CDLL(None, use_errno=True)

_Action = tuple[int | str, ...]
_Word = ctypes.c_char_p | ctypes.c_void_p | ctypes.c_int | ctypes.c_long | ctypes.c_ulong


class _MountAttr(ctypes.Structure):
    """struct mount_attr."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


def set_child_subreaper() -> None:
    """Make this process the parent of its orphaned descendants."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def sched_core_create() -> None:
    """Give this process group a core scheduling cookie of its own, which children inherit."""
    _prctl(_PR_SCHED_CORE, _PR_SCHED_CORE_CREATE, 0, _PIDTYPE_PGID, 0)


def mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    """Mount `source` on `target`, with MS_* flags."""
    words = [_text(word) for word in (source, target, fstype, data)]
    _call("mount", target, *words[:3], ctypes.c_ulong(flags), words[3])


def umount(target: str, flags: int = 0) -> None:
    """Unmount the topmost mount on `target`."""
    _call("umount2", target, _text(target), ctypes.c_int(flags))


def unshare(flags: int) -> None:
    """Give the calling thread its own copy of what `flags` (CLONE_*) names."""
    _call("unshare", None, ctypes.c_int(flags))


def clone_mount(path: str, *, is_recursive: bool) -> int:
    """Return a descriptor of a copy of the mount at `path`, which no path leads to yet, with those below if wanted."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if is_recursive else 0)
    return _syscall("open_tree", _SYS_OPEN_TREE, path, _AT_FDCWD, _encode(path), flags)


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
    _syscall("move_mount", _SYS_MOVE_MOUNT, target, mount_fd, b"", _AT_FDCWD, _encode(target), flags)


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
    _call("inotify_add_watch", path, ctypes.c_int(fd), _text(path), ctypes.c_int(mask))


def spawn(
    file: str,
    argv: Sequence[str],
    env: Sequence[str],
    *,
    fds: Sequence[tuple[int, int]],
    folder: str | None,
    blocked: int,
    new_group: bool,
    new_session: bool,
    told: bytearray,
) -> tuple[int, int]:
    """Start `file` and return its pid and a pidfd, -1 where there is none.  Each signal has its default action there.

    `env` has NAME=VALUE; `fds` pairs of a number in the child, and ours or -1 for /dev/null; `blocked` is the kernel's
    mask of signals.  `told`, of the size of an int, gets the pid before the child runs the program, so before it can
    end: for other threads, while this one waits.  Only here, with ctypes, it gets -1, unknown.

    Raises:
        OSError: The file cannot be run, or there is no such folder; the path says which.
    """
    told[:] = (-1).to_bytes(len(told), sys.byteorder, signed=True)
    words = [[_encode(word) for word in words] for words in (argv, env)]
    call = partial(_spawn, file, words[0], words[1], _plan(fds), blocked, new_group=new_group, new_session=new_session)
    pid = call() if folder is None else _call_in(folder, call)
    # Where a thread waits for all children, it may have come first: there the descriptor is of no use (see Reaper).
    try:
        return pid, os.pidfd_open(pid)
    except (AttributeError, OSError):  # neither on macOS, nor on Linux before 5.3, nor without a free descriptor
        return pid, -1


def _plan(fds: Sequence[tuple[int, int]]) -> list[_Action]:
    """Return the file actions that give a child these descriptors, whatever their order and numbers."""
    targets = {target for target, _ in fds}
    free = max((number for pair in fds for number in pair), default=0) + 1
    moved: list[_Action] = []
    placed: list[_Action] = []
    closed: list[_Action] = []
    for target, source in fds:
        if source < 0:
            placed.append((os.POSIX_SPAWN_OPEN, target, os.devnull, os.O_RDWR, 0))
        elif source != target and source in targets:
            moved.append((os.POSIX_SPAWN_DUP2, source, free))
            placed.append((os.POSIX_SPAWN_DUP2, free, target))
            closed.append((os.POSIX_SPAWN_CLOSE, free))
            free += 1
        else:
            placed.append((os.POSIX_SPAWN_DUP2, source, target))
    return moved + placed + closed


def _spawn(
    file: str,
    argv: list[bytes],
    env: list[bytes],
    actions: list[_Action],
    blocked: int,
    *,
    new_group: bool,
    new_session: bool,
) -> int:
    if sys.platform != "linux":  # with the GIL
        mask = [signum for signum in signal.valid_signals() if blocked >> (signum - 1) & 1]
        defaults = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
        variables = dict(line.split(b"=", 1) for line in env)
        call = partial(os.posix_spawn, file, argv, variables, file_actions=actions, setsigmask=mask, setsigdef=defaults)
        return call(setsid=True) if new_session else call(setpgroup=0) if new_group else call()
    attributes, files = ctypes.create_string_buffer(_ROOM), ctypes.create_string_buffer(_ROOM)
    flags = _SETSIGDEF | _SETSIGMASK | (_SETSID if new_session else 0) | (_SETPGROUP if new_group else 0)
    pid = ctypes.c_int()
    call = partial(_call_for, file)
    call("posix_spawnattr_init", attributes)
    call("posix_spawn_file_actions_init", files)
    try:
        # All of them: sigfillset leaves out those that libc keeps to itself, and a child would ignore these.
        call(
            "posix_spawnattr_setsigdefault", attributes, (ctypes.c_uint64 * _SIGNAL_WORDS)(*[2**64 - 1] * _SIGNAL_WORDS)
        )
        call("posix_spawnattr_setsigmask", attributes, (ctypes.c_uint64 * _SIGNAL_WORDS)(blocked))
        call("posix_spawnattr_setflags", attributes, ctypes.c_short(flags))
        for kind, *rest in actions:
            numbers = [ctypes.c_char_p(each.encode()) if isinstance(each, str) else ctypes.c_int(each) for each in rest]
            call(_ACTIONS[kind], files, *numbers)
        arrays = [(ctypes.c_char_p * (len(words) + 1))(*words, None) for words in (argv, env)]
        call("posix_spawn", ctypes.byref(pid), _text(file), files, attributes, *arrays)
    finally:
        call("posix_spawn_file_actions_destroy", files)
        call("posix_spawnattr_destroy", attributes)
    return pid.value


def _call_for(file: str, name: str, *arguments: object) -> None:
    """Make one of posix_spawn's calls, which return their errno."""
    errno: int = getattr(_libc, name)(*arguments)
    if errno:
        raise OSError(errno, os.strerror(errno), file)


def _call_in(folder: str, call: Callable[[], int]) -> int:
    """Call with another working directory, which not every posix_spawn has an action for; other threads keep theirs."""
    unshare(_CLONE_FS)
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(folder)
        try:
            return call()
        finally:
            os.fchdir(before)
    finally:
        os.close(before)


def _encode(word: str) -> bytes:
    encoded = os.fsencode(word)
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    return encoded


def _text(word: str) -> ctypes.c_char_p:
    return ctypes.c_char_p(_encode(word))


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
