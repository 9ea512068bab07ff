"""Where a ttrpc peer lives: `unix:///path`, a plain path, an abstract name, or `vsock://cid:port`.

Rule: text in, sockets out; as containerd dials (contract: pkg/shim/util and 2.x's bootstrap).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import time

# sun_path has 108 bytes, one of them the closing NUL.
MAX_UNIX_PATH = 107

BACKLOG_PAUSE_S = 0.01


def parse_address(address: str) -> tuple[int, str | bytes | tuple[int, int]]:
    """Return (family, address) for the socket module.

    A text without a scheme is a path when it starts with `/`, else an abstract name, as containerd takes it.

    Raises:
        ValueError: The address is empty, too long, or of another scheme.
    """
    scheme, separator, rest = address.partition("://")
    if separator and scheme == "vsock":
        cid, _, port = rest.rpartition(":")
        try:
            return socket.AF_VSOCK, (int(cid), int(port))
        except ValueError:
            raise ValueError(f"address {address!r}: want vsock://CID:PORT") from None
    if separator and scheme != "unix":
        raise ValueError(f"address {address!r}: unsupported protocol: {scheme}")
    path = rest if separator else address
    if not path:
        raise ValueError(f"address {address!r} is empty")
    target = path.encode("utf-8", "surrogateescape")
    if path.startswith("@"):
        target = b"\0" + target[1:]
    elif not path.startswith("/") and not separator:
        target = b"\0" + target
    if len(target) > MAX_UNIX_PATH:
        raise ValueError(f"address {address!r} has {len(target)} bytes, a unix socket takes {MAX_UNIX_PATH}")
    return socket.AF_UNIX, target


def dial(address: str | int | socket.socket, timeout_s: float | None = None) -> socket.socket:
    """Return a connected socket, blocking: of an address, an inherited descriptor's number, or the socket itself.

    Raises:
        ValueError: The text is no ttrpc address.
        OSError: Nobody answers there, or the descriptor is no socket; the message names it.
    """
    if isinstance(address, socket.socket):
        address.settimeout(None)
        return address
    if isinstance(address, int):
        try:
            sock = socket.socket(fileno=address)
        except OSError as error:
            raise type(error)(error.errno, f"descriptor {address} is no socket: {error.strerror}") from None
        sock.settimeout(None)
        return sock
    family, target = parse_address(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    until = None if timeout_s is None else time.monotonic() + timeout_s
    try:
        sock.settimeout(timeout_s)
        while True:
            try:
                sock.connect(target)
                break
            except BlockingIOError:  # the server's backlog is full, which a socket with a time limit does not wait for
                if until is not None and time.monotonic() > until:
                    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
                time.sleep(BACKLOG_PAUSE_S)
        sock.settimeout(None)
    except OSError as error:
        sock.close()
        raise named(error, f"cannot connect to {address}") from None
    return sock


def listen(address: str, backlog: int) -> socket.socket:
    """Return a socket that listens on an address; a socket file that nobody listens on any more is replaced.

    Raises:
        ValueError: The text is no ttrpc address.
        OSError: It cannot be bound; the message names the address.
    """
    family, target = parse_address(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        try:
            sock.bind(target)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_stale(family, target):
                raise
            os.unlink(target)  # type: ignore[arg-type]  # a path, since it is stale
            sock.bind(target)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise named(error, f"cannot listen on {address}") from None
    return sock


def end_connection(sock: socket.socket, pid: int) -> None:
    """Close a connection that the process `pid` has made.

    There the peer sees its end though a child has inherited the descriptor; a child that closes its copy ends nothing.
    """
    if os.getpid() == pid:
        try:
            sock.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads, too
        except OSError:
            pass  # the peer was faster
    sock.close()


def has_hung_up(sock: socket.socket, *, or_half: bool = False) -> bool:
    """Tell whether the peer has closed the connection (or at least its half), though there may be something to read."""
    poller = select.poll()
    poller.register(sock, getattr(select, "POLLRDHUP", 0) if or_half else 0)
    return bool(poller.poll(0))


SocketFile = tuple[str, int, int]
"""A socket's path, and the device and inode that it had when it was bound."""


def socket_file(sock: socket.socket) -> SocketFile | None:
    """Return the file of a listening socket, or None where it has none."""
    path = sock.getsockname() if sock.family == socket.AF_UNIX else ""
    if not isinstance(path, str) or not path:
        return None
    found = os.stat(path)
    return path, found.st_dev, found.st_ino


def remove_socket_file(file: SocketFile) -> None:
    """Remove a listening socket's file, unless another server has put its own in that place."""
    path, device, inode = file
    try:
        found = os.stat(path)
        if (found.st_dev, found.st_ino) == (device, inode):
            os.unlink(path)
    except FileNotFoundError:
        pass  # removed by somebody else


def named(error: OSError, what: str) -> OSError:
    """Return the same error with a message that says what failed."""
    return type(error)(error.errno, f"{what}: {error.strerror or error}")


def _is_stale(family: int, target: object) -> bool:
    if family != socket.AF_UNIX or not isinstance(target, bytes) or target.startswith(b"\0"):
        return False
    if not stat.S_ISSOCK(os.lstat(target).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(target)
        except ConnectionRefusedError:
            return True
    return False
