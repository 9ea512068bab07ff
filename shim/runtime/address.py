"""The shim's socket: its name, binding it, meeting a living or a dead one, removing it.

Rule: the name follows from containerd's address, the namespace and the group, so that everybody computes the same one
(`ctr shim` does).  A lock on the folder keeps two starts of one group from stealing each other's socket.
Spec: containerd pkg/shim/util_unix.go; contract section 3.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
from typing import Final, NamedTuple

from shim.errors import SocketError
from shim.ttrpc.address import MAX_UNIX_PATH

SOCKET_DIR: Final = "/run/containerd/s"
_PROBE_S: Final = 0.1


def socket_path(containerd_address: str, namespace: str, group: str, folder: str = "") -> str:
    """Return the path of a group's socket: the SHA-256 of Go's `filepath.Join` of the three names."""
    joined = "/".join(part for part in (containerd_address, namespace, group) if part)
    cleaned = os.path.normpath(joined) if joined else ""
    # POSIX keeps two leading slashes apart, Go's Clean does not.
    cleaned = "/" + cleaned.lstrip("/") if cleaned.startswith("/") else cleaned
    name = hashlib.sha256(os.fsencode(cleaned)).hexdigest()
    return os.path.join(folder or SOCKET_DIR, name)


def socket_address(containerd_address: str, namespace: str, group: str, folder: str = "") -> str:
    """Return the address of a group's shim, as `start` prints it; `folder` is where containerd wants sockets."""
    return "unix://" + socket_path(containerd_address, namespace, group, folder)


class Bound(NamedTuple):
    """A listening socket and the identity of its file, by which it is removed again."""

    listener: socket.socket
    path: str
    inode: tuple[int, ...]

    @property
    def address(self) -> str:
        """The text that containerd dials."""
        return "unix://" + self.path

    def remove(self) -> None:
        """Unlink the socket's file, unless another shim has put its own there since."""
        remove_socket(self.path, self.inode)


def bind(path: str) -> Bound | None:
    """Listen on `path`, or return None when a living shim already does.

    Raises:
        SocketError: The path is too long or cannot be bound; the text names it.
    """
    if len(os.fsencode(path)) > MAX_UNIX_PATH:
        size = len(os.fsencode(path))
        raise SocketError(f"create new shim socket: path {path} has {size} bytes, a unix socket takes {MAX_UNIX_PATH}")
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SocketError(f"create new shim socket: {folder}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _bind_locked(path)
    finally:
        os.close(lock)


def _bind_locked(path: str) -> Bound | None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if is_alive(path):
                listener.close()
                return None
            os.unlink(path)  # its shim was killed
            listener.bind(path)
        try:
            os.chmod(path, 0o600)
            listener.listen(128)
            return Bound(listener, path, _identity(path))
        except OSError:
            os.unlink(path)
            raise
    except OSError as error:
        listener.close()
        raise SocketError(f"create new shim socket: {path}: {error.strerror or error}") from None


def remove_dead(path: str) -> None:
    """Unlink a socket whose shim was killed; one that somebody listens on stays, and so does one being bound."""
    try:
        lock = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_alive(path):
            os.unlink(path)
    except OSError:
        return  # somebody else has removed it, or it is not ours
    finally:
        os.close(lock)


def is_alive(path: str) -> bool:
    """Say whether somebody accepts connections on `path`; the connection is closed at once."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # somebody listens, but is too busy to accept
        except OSError:
            return False
        return True


def adopt(fd: int) -> Bound:
    """Take over the listening socket that `start` left on a descriptor.

    Raises:
        SocketError: The descriptor is no listening unix socket.
    """
    try:
        listener = socket.socket(fileno=fd)
        listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise SocketError(f"descriptor {fd} is no listening socket: {error.strerror}") from None
    if not listening or listener.family != socket.AF_UNIX:
        listener.detach()
        raise SocketError(f"descriptor {fd} is no listening {'unix ' if listening else ''}socket")
    os.set_inheritable(fd, False)
    path = os.fsdecode(listener.getsockname())
    return Bound(listener, path, _identity(path))


def _identity(path: str) -> tuple[int, ...]:
    """Return what tells a file from a later one of its name; file systems use inode numbers again, so its age too."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return (status.st_dev, status.st_ino, status.st_mtime_ns)


def remove_socket(path: str, inode: tuple[int, ...]) -> None:
    """Unlink `path` if it still is the file with this identity."""
    try:
        if _identity(path) == inode:
            os.unlink(path)
    except OSError:
        return
