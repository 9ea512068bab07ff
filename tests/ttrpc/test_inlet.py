"""What the blocking client reads from: how it waits, and for what it stops waiting."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from shim.ttrpc.inlet import Inlet
from shim.ttrpc.pending import Pending
from tests.fakes import PATIENCE_S


class Counted(socket.socket):
    """A socket that knows how often something was looked for in vain, or slept for."""

    vain = 0
    slept = 0

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Count, and receive."""
        if flags != socket.MSG_DONTWAIT:
            self.slept += 1
            return super().recv(size, flags)
        try:
            return super().recv(size, flags)
        except BlockingIOError:
            self.vain += 1
            raise


@pytest.fixture
def pair() -> Iterator[tuple[Counted, socket.socket]]:
    """Return two ends, the first of which counts."""
    ours, theirs = socket.socketpair()
    with Counted(fileno=ours.detach()) as counted, theirs:
        yield counted, theirs


def unanswered() -> Pending:
    """Return a call whose time is over, so that its reader never sleeps."""
    return Pending("a.B/C", time.monotonic())


def test_what_is_there_needs_no_sleep(pair: tuple[Counted, socket.socket]) -> None:
    """Not even the attempt."""
    ours, theirs = pair
    theirs.sendall(b"answer")

    assert b"answer" == Inlet(ours).receive(Pending("a.B/C", None), is_alone=True)
    assert (0, 0) == (ours.vain, ours.slept)


def test_a_slow_answer_is_slept_for(pair: tuple[Counted, socket.socket]) -> None:
    """After some tens of vain looks."""
    ours, theirs = pair
    found: list[bytes | None] = []
    inlet = Inlet(ours)
    reader = threading.Thread(target=lambda: found.append(inlet.receive(Pending("a.B/C", None), is_alone=True)))
    reader.start()
    deadline = time.monotonic() + PATIENCE_S
    while not ours.slept and time.monotonic() < deadline:
        time.sleep(0.001)
    theirs.sendall(b"late")
    reader.join(PATIENCE_S)

    assert [b"late"] == found
    assert 1 == ours.slept
    assert 10 <= ours.vain <= 100


def test_vain_looks_become_rare(pair: tuple[Counted, socket.socket]) -> None:
    """The more of them, the longer until the next, so that a slow server's client does not burn its processor."""
    ours, _ = pair
    inlet = Inlet(ours)
    vain = []
    for _ in range(2000):
        before = ours.vain
        assert inlet.receive(unanswered(), is_alone=True) is None
        vain.append(ours.vain - before)
    looked = [at for at, count in enumerate(vain) if count]

    assert [0, 2, 6, 14, 30, 62, 126] == looked[:7]
    assert len(looked) < 20


def test_one_success_makes_looking_worth_it_again(pair: tuple[Counted, socket.socket]) -> None:
    """Servers are slow at times."""
    ours, theirs = pair
    inlet = Inlet(ours)
    for _ in range(14):
        inlet.receive(unanswered(), is_alone=True)
    theirs.sendall(b"quick")
    found = inlet.receive(unanswered(), is_alone=True)  # the fifteenth, which looks
    counts = []
    for _ in range(3):
        before = ours.vain
        inlet.receive(unanswered(), is_alone=True)
        counts.append(ours.vain > before)

    assert b"quick" == found
    assert [True, False, True] == counts


def test_who_reads_for_others_does_not_look(pair: tuple[Counted, socket.socket]) -> None:
    """The interpreter has better things to do then."""
    ours, _ = pair

    assert Inlet(ours).receive(unanswered(), is_alone=False) is None
    assert (0, 0) == (ours.vain, ours.slept)


@pytest.mark.parametrize("is_alone", [True, False])
def test_the_end_of_the_connection_is_empty(pair: tuple[Counted, socket.socket], is_alone: bool) -> None:
    """As sockets say it."""
    ours, theirs = pair
    theirs.close()

    assert b"" == Inlet(ours).receive(Pending("a.B/C", None), is_alone=is_alone)


def test_a_closed_socket_is_the_end(pair: tuple[Counted, socket.socket]) -> None:
    """Another thread closes the client."""
    ours, _ = pair
    inlet = Inlet(ours)
    ours.close()

    assert b"" == inlet.receive(Pending("a.B/C", None), is_alone=True)
    assert b"" == inlet.receive_now()


def test_an_interruption_ends_the_wait(pair: tuple[Counted, socket.socket]) -> None:
    """Of a call that may be cancelled; the descriptors for it are given back."""
    ours, _ = pair
    inlet = Inlet(ours)
    pending = Pending("a.B/C", None)
    pending.is_cancellable = True
    inlet.allow_interruption()
    timer = threading.Timer(0.05, inlet.interrupt)
    timer.start()

    assert inlet.receive(pending, is_alone=True) is None
    timer.join()
    inlet.close()
    inlet.interrupt()  # of nobody
