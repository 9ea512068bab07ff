"""The files that all containers of a pod share: /etc/hostname, /etc/hosts, /etc/resolv.conf and /dev/shm.

Rule: containerd makes them for pods of its own sandboxer only, and mounts what it made; for those of ours they are made
and mounted here, to the same effect.  They are on the root file system of the sandbox, which is a mount: whoever
unmounts that (the shim, its `delete`, or containerd itself) has removed them.
"""

from __future__ import annotations

import os
import posixpath
from typing import TYPE_CHECKING, Any, Final

from shim.errors import MountError, ShimError
from shim.host.mount import Mount, mount_all, unmount_recursive

if TYPE_CHECKING:
    from shim.engine.bundle import Bundle
    from shim.engine.pod import PodConfig

_FOLDERS: Final = ("dev", "proc", "shm")
_SHM: Final = "/dev/shm"  # noqa: S108  (a path inside containers)
_ETC: Final = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")
# Not noexec: the runtime looks whether it could run the sandbox's program.
_ROOT_MOUNT: Final = Mount("tmpfs", "pod", "", ("nosuid", "nodev", "mode=0711", "size=4m"))
_SHM_MOUNT: Final = Mount("tmpfs", "shm", "/shm", ("nosuid", "nodev", "noexec", "mode=1777", "size=64m"))


def make_pod_files(bundle: Bundle, config: PodConfig, pause: str) -> None:
    """Mount the root of a sandbox, with an empty program `pause`, and put the pod's files there.

    Raises:
        ShimError: Something failed; nothing is left mounted.
    """
    bundle.make_rootfs()
    mount_all([_ROOT_MOUNT], bundle.rootfs)
    try:
        for name in _FOLDERS:
            os.mkdir(os.path.join(bundle.rootfs, name), 0o755)
        _write(bundle, pause, b"", 0o755)
        for path, content in _contents(config).items():
            _write(bundle, posixpath.basename(path), content, 0o644)
        if not config.shares_ipc:
            mount_all([_SHM_MOUNT], bundle.rootfs)
    except BaseException as error:
        remove_pod_files(bundle)
        if isinstance(error, OSError):
            raise ShimError(f"make {error.filename}: {error.strerror}") from None
        raise


def remove_pod_files(bundle: Bundle) -> None:
    """Unmount them all; that they are gone is fine.

    Raises:
        MountError: Some stay.
    """
    try:
        unmount_recursive(bundle.rootfs)
    except MountError as error:
        raise MountError(f"failed rootfs umount: {error}") from None


def add_pod_files(bundle: Bundle, spec: dict[str, Any], sandbox: Bundle) -> None:
    """Mount the files of a sandbox in a container that is made from `bundle`, where CRI has not given it others.

    Raises:
        BundleError: The spec cannot be written.
    """
    given = spec.get("mounts")
    mounts: list[dict[str, Any]] = [dict(mount) for mount in given or ()]
    places = {posixpath.normpath(str(mount.get("destination"))): place for place, mount in enumerate(mounts)}
    root = spec.get("root")
    access = "ro" if isinstance(root, dict) and root.get("readonly") else "rw"
    mounts += [
        _bind(path, os.path.join(sandbox.rootfs, posixpath.basename(path)), access)
        for path in _ETC
        if path not in places
    ]
    shm = os.path.join(sandbox.rootfs, "shm")
    if os.path.ismount(shm):
        place = places.get(_SHM)
        if place is None:
            mounts.append(_bind(_SHM, shm, "rw"))
        elif mounts[place].get("type") == "tmpfs" and mounts[place].get("source") == "shm":
            mounts[place] = _bind(_SHM, shm, "rw")  # what containerd gives every container, for this one alone
    bundle.write_spec({**spec, "mounts": mounts})


def _bind(destination: str, source: str, access: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", access]}


def _contents(config: PodConfig) -> dict[str, bytes]:
    dns = config.dns
    name = config.hostname or os.uname().nodename
    if dns is None:
        resolv = _read("/etc/resolv.conf")
    else:
        lines = [("search", " ".join(dns.searches)), *(("nameserver", server) for server in dns.servers)]
        lines.append(("options", " ".join(dns.options)))
        resolv = "".join(f"{word} {rest}\n" for word, rest in lines if rest).encode()
    return dict(zip(_ETC, (f"{name}\n".encode(), _read("/etc/hosts"), resolv), strict=True))


def _read(path: str) -> bytes:
    """Return a file of the host; one that there is not is empty in the pod."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _write(bundle: Bundle, name: str, content: bytes, mode: int) -> None:
    path = os.path.join(bundle.rootfs, name)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
