"""Mounting a container's root file system, and unmounting it with all that is below.

Rule: what a failed `mount_all` mounted is unmounted again; targets never leave the root file system; the process's own
working directory never changes. libc is imported only where something is really to be done, see there.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from shim.errors import MountError, ShimError
from shim.host import idmap, loopdev, mountinfo
from shim.host.mount_options import (
    ID_MAPS,
    MS_BIND,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_REMOUNT,
    compact_lowerdirs,
    parse_options,
)

# In a user namespace a remount may not drop these. statvfs shows them with the kernel's numbers, but for one.
_LOCKED: Final = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME
_ST_RELATIME: Final = 4096

# The helper of each kind of FUSE type; what stands behind the dot is the helper's business.
_HELPERS: Final = {"fuse.": "mount.fuse", "fuse3.": "mount.fuse3"}
_LINKS: Final = 255
_COMPACT_BELOW: Final = 512
_BUSY_RETRIES: Final = 50
_BUSY_PAUSE_S: Final = 0.05


# Runs a program to its end and returns its exit status and what it wrote; MountError if it cannot be started.
RunHelper = Callable[[list[str]], tuple[int, str]]


class Mount(NamedTuple):
    """One component of a root file system, as containerd sends it."""

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()


def resolve_inside(root: str, path: str) -> str:
    """Return where `path` is when `root` is the root folder: no link and no `..` leads out of it."""
    rest, resolved, links = path.split("/")[::-1], [root], 0
    while rest:
        name = rest.pop()
        if name == "..":
            del resolved[max(1, len(resolved) - 1) :]
        elif name not in ("", "."):
            resolved.append(name)
            try:
                link = os.readlink("/".join(resolved))
            except OSError:
                continue  # no link, or nothing at all: mounting will tell
            links += 1
            if links > _LINKS:
                raise MountError(f"too many symbolic links in {path}")
            del resolved[1 if link.startswith("/") else -1 :]
            rest += link.split("/")[::-1]
    return "/".join(resolved)


def mount_all(mounts: Sequence[Mount], rootfs: str, run_helper: RunHelper | None = None) -> None:
    """Mount each in order, on `rootfs` or on its target inside; if one fails, undo the others.

    FUSE file systems are mounted by a program of their own, which `run_helper` runs: who reaps children has to.

    Raises:
        MountError: It names the mount, and what could not be undone.
    """
    done: list[tuple[str, int]] = []
    for mount in mounts:
        target = os.path.abspath(rootfs)
        try:
            target = resolve_inside(target, mount.target)
            if mount.type.startswith(tuple(_HELPERS)):
                _mount_by_helper(mount, target, run_helper)
                done.append((target, 0))
            else:
                _mount_one(mount, target, done, idmap.layers_folder(rootfs))
        except (OSError, MountError) as error:
            left = "".join(_undo(target, flags) for target, flags in reversed(done))
            text = f"failed to mount rootfs component: {mount.type} on {target}: {_reason(error, target)}{left}"
            raise MountError(text) from error


def unmount_recursive(path: str) -> None:
    """Unmount everything at and below `path`; that nothing is there is success.

    Raises:
        MountError: The outermost mount stays.
    """
    patience = _Patience()
    # Again and again, since a mount may have hidden others.
    while targets := mountinfo.find_below(path):
        unmounted = 0
        failure = None
        for target in targets:
            try:
                unmounted += _unmount_all(target, patience)
                failure = None
            except OSError as error:
                failure = MountError(f"failed to unmount target {target}: {_reason(error, target)}")
        if failure is not None:
            raise failure
        if not unmounted:
            return


def _mount_by_helper(mount: Mount, target: str, run_helper: RunHelper | None) -> None:
    kind, _, name = mount.type.partition(".")
    helper = _HELPERS[f"{kind}."]
    if run_helper is None:
        raise MountError(f"nobody runs {helper} here")
    options = [word for option in mount.options for word in ("-o", option)]
    status, output = run_helper([helper, mount.source, target, *options, "-t", name])
    if status:
        raise MountError(f"{helper} failed: exit status {status}: {output.strip()}")


def _mount_one(mount: Mount, target: str, done: list[tuple[str, int]], layers_folder: str) -> None:
    parsed = parse_options(mount.options)
    if parsed.id_maps is None:
        _mount_plain(mount, target, done)
        return
    mount = mount._replace(options=tuple(option for option in mount.options if not option.startswith(ID_MAPS)))
    with idmap.user_namespace(parsed.id_maps) as namespace:
        if mount.type == "overlay":
            # Its layers are mapped, not itself: what the container writes goes to a folder of its own as it is.
            with idmap.mapped_layers(mount.options, namespace, layers_folder) as options:
                _mount_plain(mount._replace(options=options), target, done)
        elif parsed.flags & MS_REMOUNT:
            _mount_plain(mount, target, done)
        elif parsed.flags & MS_BIND:
            idmap.attach_mapped(mount.source, target, namespace, is_recursive=bool(parsed.flags & MS_REC))
            done.append((target, parsed.flags))
            _make_read_only(target, parsed.flags)
        else:
            _mount_plain(mount, target, done)
            idmap.attach_mapped(target, target, namespace)
            done.append((target, parsed.flags))


def _mount_plain(mount: Mount, target: str, done: list[tuple[str, int]]) -> None:
    from shim.host import libc

    folder, options = "", mount.options
    page_size = os.sysconf("SC_PAGE_SIZE")
    if mount.type == "overlay" and sum(len(os.fsencode(option)) for option in options) >= page_size - _COMPACT_BELOW:
        folder, options = compact_lowerdirs(options)
    parsed = parse_options(options)
    flags, words = parsed.flags, list(parsed.data)
    direct_io = parsed.is_loop and "direct-io" in words
    if direct_io:
        words.remove("direct-io")
    data = ",".join(words)
    if len(os.fsencode(data)) > page_size:
        raise MountError("mount options is too long")

    # A remount without data is left to the second call, which is for read-only binds alone: moby#34077.
    if not flags & MS_REMOUNT or data:
        if parsed.is_loop:
            source, device = loopdev.attach(mount.source, read_only=bool(flags & MS_RDONLY), direct_io=direct_io)
            try:
                libc.mount(source, target, mount.type, flags, data)
            finally:
                os.close(device)
        elif folder:
            _mount_from(folder, mount, target, flags, data)
        else:
            libc.mount(mount.source, target, mount.type, flags, data)
        if not flags & MS_REMOUNT:
            done.append((target, flags))
    _make_read_only(target, flags)


def _make_read_only(target: str, flags: int) -> None:
    """Make a bind read-only, if it is to be: the kernel ignores that flag of a new one."""
    from shim.host import libc

    if flags & MS_BIND and flags & MS_RDONLY:
        libc.mount("", target, "", flags | MS_REMOUNT | _read_locked_flags(target), "")


def _mount_from(folder: str, mount: Mount, target: str, flags: int, data: str) -> None:
    """Mount on a thread with a working directory of its own, to which relative paths in the data belong."""
    import threading

    from shim.host import libc

    failures: list[OSError | ShimError] = []

    def run() -> None:
        try:
            libc.unshare(libc.CLONE_FS)
            os.chdir(folder)
            libc.mount(mount.source, target, mount.type, flags, data)
        except (OSError, ShimError) as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="mount")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _read_locked_flags(path: str) -> int:
    with open("/proc/self/uid_map") as uid_map:
        if uid_map.read().split() == ["0", "0", "4294967295"]:
            return 0
    shown = os.statvfs(path).f_flag
    return shown & _LOCKED | (MS_RELATIME if shown & _ST_RELATIME else 0)


def _undo(target: str, flags: int) -> str:
    """Unmount what was just mounted; return what to add to the error if that fails."""
    from shim.host import libc

    patience = _Patience()
    try:
        if flags & MS_REC:
            # Else unmounting the copies below would reach the originals where these are shared.
            libc.mount("", target, "", MS_PRIVATE | MS_REC, "")
            for path in mountinfo.find_below(target)[:-1]:
                _unmount_all(path, patience)
        patience.umount(target)
    except OSError as error:
        return f"; {target} stays mounted: {_reason(error, target)}"
    return ""


def _unmount_all(target: str, patience: _Patience) -> int:
    """Unmount `target` until it is no mount point; return how many mounts there were."""
    count = 0
    while True:
        try:
            patience.umount(target)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return count
            raise
        count += 1


class _Patience:
    """Retries of busy mounts, counted over all of them: `delete` has five seconds in all."""

    def __init__(self) -> None:
        self._retries = _BUSY_RETRIES

    def umount(self, target: str) -> None:
        """Unmount the topmost mount on `target`, waiting while it is busy."""
        from shim.host import libc

        while True:
            try:
                libc.umount(target)
            except OSError as error:
                if error.errno != errno.EBUSY or not self._retries:
                    raise
            else:
                return
            self._retries -= 1
            time.sleep(_BUSY_PAUSE_S)


def _reason(error: Exception, target: str) -> str:
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    place = f"{error.filename}: " if error.filename not in (None, target) else ""
    return place + os.strerror(error.errno).lower()
