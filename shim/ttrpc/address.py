"""Where a ttrpc peer lives: `unix:///path`, a plain path, an abstract name, or `vsock://cid:port`.

Rule: text in, socket family and address out; as containerd dials (contract: pkg/shim/util and 2.x's bootstrap).
"""

from __future__ import annotations

import socket

# sun_path has 108 bytes, one of them the closing NUL.
MAX_UNIX_PATH = 107


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
