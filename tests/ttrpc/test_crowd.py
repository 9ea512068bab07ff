"""Many threads on one connection: each gets its own answer, whatever becomes of the others' calls."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.ttrpc import Cancellation, Client, Code, RpcError
from tests.fakes import PATIENCE_S
from tests.ttrpc.echo import EchoServer, call
from tests.ttrpc.test_client import in_thread

_THREADS = 24
_CALLS = 150


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """Return a client of an echo server."""
    with EchoServer(tmp_path / "s") as echo, echo.connect() as client:
        yield client


def crowd(*work: Callable[[int, int], None]) -> None:
    """Run each kind of work, with the thread's number and the call's, in a third of the threads."""

    def repeat(number: int) -> None:
        for turn in range(_CALLS):
            work[number % len(work)](number, turn)

    threads = [in_thread(lambda number=number: repeat(number)) for number in range(_THREADS)]
    for thread, _ in threads:
        thread.join(PATIENCE_S)

    assert [] == [error for _, errors in threads for error in errors]
    assert not any(thread.is_alive() for thread, _ in threads)


@pytest.mark.timeout(60)
def test_deadlines_and_cancellations_disturb_nobody(client: Client) -> None:
    """Their threads leave the wait at any moment; nothing of theirs stays behind, and no request is left unsent."""
    ended: Counter[str] = Counter()

    def plain(number: int, turn: int) -> None:
        wanted = b"%d.%d" % (number, turn)
        assert wanted == call(client, ("Quick", "Echo")[turn % 2], wanted, timeout_s=(None, PATIENCE_S)[turn % 2])

    def hasty(_number: int, turn: int) -> None:
        try:
            call(client, "Echo", b"hasty", timeout_s=(turn % 40) * 1e-4)
            ended["in time"] += 1
        except RpcError as error:
            ended[Code(error.code).name] += 1

    def cancelled(_number: int, turn: int) -> None:
        cancellation = Cancellation()
        timer = threading.Thread(target=cancellation.cancel)
        try:
            if turn % 2:
                timer.start()
            client.call_raw("test.v1.Echo", "Echo", b"", timeout_s=PATIENCE_S, cancellation=cancellation)
            ended["faster"] += 1
        except RpcError as error:
            ended[Code(error.code).name] += 1
        finally:
            if turn % 2:
                timer.join()

    crowd(plain, hasty, cancelled)
    link = client._link

    assert (
        {"in time", "DEADLINE_EXCEEDED", "faster"}
        <= set(ended)
        <= {"in time", "DEADLINE_EXCEEDED", "faster", "CANCELED"}
    )
    assert {} == link._pending
    assert not link._followers
    assert not link._followers.is_relaying
    assert not link._has_put_off
    assert not link._outbox._queue
    assert b"x" == call(client, "Quick", b"x")


@pytest.mark.timeout(60)
def test_a_thread_that_does_something_else_keeps_nobody_waiting(client: Client) -> None:
    """It has been let go in the middle of the others, and calls no more."""
    busy = threading.Event()
    done: list[int] = []

    def call_once(number: int, turn: int) -> None:
        if turn == 0:
            call(client, "Quick", b"first")
            assert busy.wait(PATIENCE_S)

    def call_often(number: int, turn: int) -> None:
        assert b"%d" % turn == call(client, "Quick", b"%d" % turn, timeout_s=None)
        if turn == _CALLS - 1:
            done.append(number)
            if len(done) == _THREADS // 2:
                busy.set()

    crowd(call_once, call_often)
