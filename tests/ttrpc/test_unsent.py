"""What a socket has not taken yet."""

import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shim.ttrpc.unsent import Unsent


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a socket that takes little."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    yield ours, theirs
    ours.close()
    theirs.close()


def drain(unsent: Unsent, ours: socket.socket, theirs: socket.socket, size: int) -> bytes:
    """Send and receive until everything is there."""
    received = b""
    while len(received) < size:
        unsent.send(ours)
        received += theirs.recv(1 << 20)
    return received


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.integers(0, 70_000), min_size=1, max_size=100))
def test_everything_arrives_in_order(ends: tuple[socket.socket, socket.socket], sizes: list[int]) -> None:
    """Whatever the sizes, joined or as a list of buffers."""
    unsent = Unsent()
    frames = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    unsent.extend(frames)
    size = sum(sizes)

    assert size == unsent.size
    assert b"".join(frames) == drain(unsent, *ends, size)
    assert 0 == unsent.size


def test_a_frame_that_has_begun_is_not_dropped(ends: tuple[socket.socket, socket.socket]) -> None:
    """The others are: what follows on the connection needs the whole of the first."""
    unsent = Unsent()
    unsent.extend([b"a" * 100_000, b"b", b"a", b"c"])
    unsent.send(ends[0])
    was_any = unsent.drop(lambda frame: bytes(frame[:1]) == b"a")

    assert was_any
    assert b"a" * 100_000 + b"bc" == drain(unsent, *ends, 100_002)


def test_the_first_frame_is_dropped_if_it_has_not_begun() -> None:
    """Nothing of it has been sent, so nobody waits for the rest."""
    unsent = Unsent()
    unsent.extend([b"a", b"b"])

    assert unsent.drop(lambda frame: bytes(frame) == b"a")
    assert not unsent.drop(lambda frame: bytes(frame) == b"a")
    assert 1 == unsent.size


def test_the_rest_of_a_frame_counts_as_begun() -> None:
    """The caller has sent some of it."""
    unsent = Unsent()
    unsent.add(b"abc", 1)

    assert not unsent.drop(lambda _frame: True)
    assert 2 == unsent.size


def test_a_socket_that_is_gone_raises(ends: tuple[socket.socket, socket.socket]) -> None:
    """The owner closes the connection."""
    unsent = Unsent()
    unsent.add(b"abc")
    ends[1].close()
    with pytest.raises(BrokenPipeError):
        unsent.send(ends[0])
