"""Addresses, as containerd dials them."""

import socket

import pytest

from shim.ttrpc.address import MAX_UNIX_PATH, parse_address


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("unix:///run/x.sock", (socket.AF_UNIX, b"/run/x.sock")),
        ("/run/x.sock", (socket.AF_UNIX, b"/run/x.sock")),
        ("unix://relative", (socket.AF_UNIX, b"relative")),
        ("abstract/name", (socket.AF_UNIX, b"\0abstract/name")),
        ("@name", (socket.AF_UNIX, b"\0name")),
        ("unix://@name", (socket.AF_UNIX, b"\0name")),
        ("unix:///caf\udce9", (socket.AF_UNIX, b"/caf\xe9")),
        ("vsock://3:1024", (socket.AF_VSOCK, (3, 1024))),
        ("vsock://-1:1024", (socket.AF_VSOCK, (-1, 1024))),
        ("/" + "x" * (MAX_UNIX_PATH - 1), (socket.AF_UNIX, b"/" + b"x" * (MAX_UNIX_PATH - 1))),
    ],
)
def test_parse_address(address: str, expected: tuple[int, str | bytes | tuple[int, int]]) -> None:
    """A text without a scheme is a path or an abstract name."""
    assert expected == parse_address(address)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", "address '' is empty"),
        ("unix://", "address 'unix://' is empty"),
        ("vsock://3", "address 'vsock://3': want vsock://CID:PORT"),
        ("vsock://a:b", "address 'vsock://a:b': want vsock://CID:PORT"),
        ("tcp://1.2.3.4:5", "address 'tcp://1.2.3.4:5': unsupported protocol: tcp"),
        ("/" + "x" * MAX_UNIX_PATH, f"address '/{'x' * MAX_UNIX_PATH}' has 108 bytes, a unix socket takes 107"),
    ],
)
def test_parse_address_names_what_it_refuses(address: str, expected: str) -> None:
    """Before any system call."""
    with pytest.raises(ValueError, match=r"address") as caught:
        parse_address(address)

    assert expected == str(caught.value)
