"""A client's call that has not ended: what has come for it, and who waits.

Rule: a table entry without behaviour of its own; its owner's lock guards it.
"""

from __future__ import annotations

import time
from typing import Any, Final

from shim.ttrpc._events import EndReceived, FaultReceived, ResponseReceived
from shim.ttrpc._inbox import Inbox
from shim.ttrpc.status import Code, LocalProtocolError, RemoteProtocolError, RpcError, TtrpcError

_LONGEST_S: Final = 1e6  # what locks and poll take at a time; callers may name any deadline


class AnsweredError(TtrpcError):
    """The call that wanted to send has its answer already: what is left to send is others'."""


_ANSWERED: Final = AnsweredError("answered")


class Pending:
    """A call that has not ended: what has come for it, and who waits."""

    __slots__ = ("answer", "deadline", "error", "gates", "has_sent_end", "inbox", "is_cancellable", "name", "stream_id")

    def __init__(self, name: str, deadline: float | None, inbox: Inbox | None = None) -> None:
        self.name: str = name
        self.deadline: float | None = deadline
        self.inbox: Inbox | None = inbox  # of a stream; a unary call has one answer
        self.stream_id: int = 0
        self.answer: bytes | None = None
        self.error: Exception | None = None
        self.gates: list[Any] = []  # locks, each held by a thread that waits for it
        self.is_cancellable: bool = inbox is not None
        self.has_sent_end: bool = False

    @property
    def is_ready(self) -> bool:
        """True when there is something to return or to raise."""
        return self.answer is not None or self.error is not None if self.inbox is None else self.inbox.is_ready

    def remaining(self) -> float | None:
        """Return the seconds to wait for at most, None for ever."""
        return None if self.deadline is None else min(_LONGEST_S, max(0.0, self.deadline - time.monotonic()))

    def fail(self, error: Exception) -> None:
        """End with an error, unless it has ended."""
        if self.inbox is not None:
            self.inbox.end(error)
        elif not self.is_ready:
            self.error = error

    def finish(self, event: ResponseReceived | EndReceived | FaultReceived) -> None:
        """End as the server said."""
        inbox = self.inbox
        if isinstance(event, ResponseReceived):
            if event.code != Code.OK:
                self.fail(RpcError(event.code, event.message, self.name, event.details))
            elif inbox is None:
                self.answer = event.payload
            else:
                inbox.put(event.payload)
                inbox.end()
        elif isinstance(event, FaultReceived):
            self.fail(RemoteProtocolError(event.message, self.name))
        elif inbox is not None:
            inbox.end()

    def ended(self) -> Exception | None:
        """Return what one that still sends has to be told: the call has ended, and how."""
        if self.inbox is None:
            return self.error if self.answer is None else _ANSWERED
        if not self.inbox.is_ended:
            return None
        return self.inbox.error or LocalProtocolError(f"{self.name}: cannot send message: the stream is finished")

    def expired(self) -> RpcError:
        """Return what a call ends with that had no answer in time."""
        return RpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded", self.name)


def named(error: LocalProtocolError | RpcError, name: str) -> LocalProtocolError | RpcError:
    """Return the same error, with the method that it belongs to."""
    if isinstance(error, RpcError):
        return RpcError(error.code, error.message, name)
    return LocalProtocolError(f"{name}: {error}")
