"""Id-mapped mounts, which show the owners of files as a user namespace maps them.

Rule: nothing but the mounts outlives a context: no process, no descriptor, no folder.  Linux 5.12 and later; overlays
on mapped layers since 5.19.  Meaning as in containerd's core/mount (2.0 and later): an overlay has its layers mapped,
any other file system itself.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from shim.errors import MountError
from shim.host.mount_options import IdMaps, IdRange, split_lowerdirs

_WALL: Final = 0x40000000
_UNSUPPORTED: Final = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP)


@contextmanager
def user_namespace(maps: IdMaps) -> Iterator[int]:
    """Make a user namespace with these maps, and lend a descriptor of it.

    Raises:
        MountError: The system does not let us, or does not take the maps.
    """
    from shim.host import libc

    # A signal's handler must not run in the child, which shares our memory.
    mask = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        pid = libc.make_user_namespace()
    except OSError as error:
        raise MountError(f"cannot make a user namespace: {os.strerror(error.errno or 0).lower()}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        for kind, ranges in (("uid", maps.uids), ("gid", maps.gids)):
            _write_map(f"/proc/{pid}/{kind}_map", kind, ranges)
        fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    finally:
        os.waitpid(pid, _WALL)
    try:
        yield fd
    finally:
        os.close(fd)


def layers_folder(rootfs: str) -> str:
    """Return where the layers of an overlay on `rootfs` are id-mapped for a moment.

    Beside it, in the bundle, so that `delete` finds them after a shim that was killed in that moment.
    """
    return os.path.join(os.path.dirname(os.path.abspath(rootfs)), "ovl-idmapped")


@contextmanager
def mapped_layers(options: Sequence[str], userns_fd: int, folder: str) -> Iterator[tuple[str, ...]]:
    """Lend the options of an overlay with each lowerdir read through `folder`, which is there within the context.

    Raises:
        MountError: The lowerdirs have no folder in common, or ids cannot be mapped there.
        OSError: The folder cannot be made.
    """
    from shim.host import libc

    parent, layers, others = split_lowerdirs(options)
    if not parent:
        raise MountError("the lowerdirs of an id-mapped overlay need a folder in common, other than /")
    os.mkdir(folder, 0o700)
    try:
        attach_mapped(parent, folder, userns_fd, attributes=libc.MOUNT_ATTR_RDONLY, is_recursive=True)
        try:
            yield (*others, "lowerdir=" + ":".join(f"{folder}/{layer}" for layer in layers))
        finally:
            libc.umount(folder, libc.MNT_DETACH)  # the overlay has its own hold on the layers
    finally:
        os.rmdir(folder)


def attach_mapped(source: str, target: str, userns_fd: int, *, attributes: int = 0, is_recursive: bool = False) -> None:
    """Mount an id-mapped copy of the mount at `source` on `target`, with those below if wanted, and MOUNT_ATTR_* set.

    Raises:
        MountError: Ids cannot be mapped there.
    """
    from shim.host import libc

    try:
        mount_fd = libc.clone_mount(source, is_recursive=is_recursive)
        try:
            libc.map_ids(mount_fd, userns_fd, attributes=attributes, is_recursive=is_recursive)
            libc.attach_mount(mount_fd, target)
        finally:
            os.close(mount_fd)
    except OSError as error:
        hint = ": its file system, or this kernel, has no id-mapped mounts" if error.errno in _UNSUPPORTED else ""
        raise MountError(f"cannot map ids of {source}: {os.strerror(error.errno or 0).lower()}{hint}") from error


def _write_map(path: str, kind: str, ranges: Sequence[IdRange]) -> None:
    lines = "".join(f"{inside} {outside} {size}\n" for inside, outside, size in ranges)
    # One write: the kernel takes no second one.
    try:
        fd = os.open(path, os.O_WRONLY)
        try:
            os.write(fd, lines.encode())
        finally:
            os.close(fd)
    except OSError as error:
        words = ",".join(":".join(map(str, numbers)) for numbers in ranges)
        raise MountError(f'the system takes no {kind}map "{words}": {os.strerror(error.errno or 0).lower()}') from error
