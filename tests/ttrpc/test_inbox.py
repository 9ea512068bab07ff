"""The queue of one stream: order, bounds, and an end that stays."""

import sys

import pytest

from shim.ttrpc._inbox import MAX_BYTES, MAX_MESSAGES, Inbox
from shim.ttrpc.status import ConnectionClosedError, RpcError


def drain(inbox: Inbox) -> list[bytes]:
    """Take what is there, up to the end."""
    taken = []
    while inbox.is_ready and (payload := inbox.take()) is not None:
        taken.append(payload)
    return taken


def test_messages_leave_in_order_and_before_the_end() -> None:
    """Empty ones are messages too; after the end it is the end for ever."""
    inbox = Inbox()
    for payload in (b"a", b"", b"b"):
        inbox.put(payload)
    inbox.end()

    assert inbox.is_ended
    assert [b"a", b"", b"b"] == drain(inbox)
    assert [None, None] == [inbox.take(), inbox.take()]
    assert inbox.is_ready


def test_an_error_comes_after_the_messages_and_stays() -> None:
    """A Go client blocks when it is read again; this one says the same each time (trap T9)."""
    inbox = Inbox()
    inbox.put(b"a")
    inbox.end(RpcError(5, "nf"))

    assert b"a" == inbox.take()
    for _ in range(3):
        with pytest.raises(RpcError, match=r"^NOT_FOUND: nf$"):
            inbox.take()


def test_an_error_that_is_raised_often_does_not_grow() -> None:
    """Python adds to the traceback of an exception each time that it is raised again."""
    inbox = Inbox()
    error = RpcError(5, "nf")
    inbox.end(error)
    lengths = []
    for _ in range(3):
        with pytest.raises(RpcError) as caught:
            inbox.take()
        lengths.append(len(caught.traceback))

    assert 1 == len(set(lengths))


def test_the_first_end_counts() -> None:
    """The connection that closes after an answer changes nothing."""
    inbox = Inbox()
    inbox.end()
    inbox.end(ConnectionClosedError("ttrpc: closed"))
    inbox.put(b"late")

    assert inbox.take() is None
    assert inbox.error is None


def test_is_ready_only_when_there_is_something_to_say() -> None:
    """A message, or the end."""
    inbox = Inbox()
    states = [inbox.is_ready]
    inbox.put(b"")
    states.append(inbox.is_ready)
    inbox.take()
    states.append(inbox.is_ready)
    inbox.end()
    states.append(inbox.is_ready)

    assert [False, True, False, True] == states


@pytest.mark.parametrize(
    ("payload", "count"),
    [(b"", MAX_MESSAGES), (b"x", MAX_MESSAGES), (bytes(MAX_BYTES), 1), (bytes(MAX_BYTES // 4), 4)],
    ids=["empty", "small", "one of the largest", "large"],
)
def test_is_full_by_messages_or_bytes(payload: bytes, count: int) -> None:
    """200 messages to a handler that stands still would fill Go's 64 too; one message taken makes room."""
    inbox = Inbox()
    before = []
    for _ in range(count):
        before.append(inbox.is_full)
        inbox.put(payload)

    assert [False] * count == before
    assert inbox.is_full
    inbox.take()
    assert not inbox.is_full


def test_drop_forgets_messages_but_not_the_end() -> None:
    """What a caller gives up costs no memory."""
    inbox = Inbox()
    payload = bytes(MAX_BYTES)
    before = sys.getrefcount(payload)
    inbox.put(payload)
    inbox.end(RpcError(5, "nf"))
    inbox.drop()

    assert before == sys.getrefcount(payload)
    assert not inbox.is_full
    with pytest.raises(RpcError):
        inbox.take()
