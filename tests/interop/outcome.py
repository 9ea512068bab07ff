"""What a client's case came to: the line of JSON that every peer prints and the driver compares."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import Message

from shim.ttrpc import ConnectionClosedError, RpcError
from tests.interop.conformance import plus_one
from tests.protos.conformance_pb2 import Payload

CLOSED = -1
"""The code, outside gRPC's, that says the connection has ended."""
NO_CODE = -2
"""The code, outside gRPC's, of an error that has none."""

MessageT = TypeVar("MessageT", bound=Message)

_counting = threading.Lock()


@dataclass
class Outcome:
    """One case on a connection of its own.  `alive`: the connection answered one more call at the end."""

    case: str
    code: int = 0
    message: str = ""
    sent: list[int] = field(default_factory=lambda: [0, 0])
    received: list[int] = field(default_factory=lambda: [0, 0])
    statuses: list[tuple[int, str]] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    alive: bool = False

    def as_line(self) -> str:
        """Return the line that all peers print."""
        return json.dumps(vars(self))

    def count_sent(self, message: MessageT) -> MessageT:
        """Count a message that is sent, or has been."""
        _count(self.sent, message)
        return message

    def count_received(self, message: MessageT | None) -> MessageT:
        """Count a message that came; None is the end of a stream, where a message should have been."""
        if message is None:
            raise EOFError("the end where a message should be")
        _count(self.received, message)
        return message

    def expect(self, expected: Message, actual: Message) -> None:
        """Note it when a message is not as it should be."""
        if expected != actual:
            self.problems.append(f"{_shorten(actual)} instead of {_shorten(expected)}")

    def expect_echo(self, request: Payload, answer: Payload) -> None:
        """Note it when an answer is not the request's."""
        self.expect(plus_one(request), answer)

    def expect_end(self, message: Message | None) -> None:
        """Note it when a stream goes on."""
        if message is not None:
            self.count_received(message)
            self.problems.append("a message where the end should be")

    def fail(self, error: Exception) -> None:
        """Keep what the case ended with."""
        self.code, self.message = describe(error)


def describe(error: Exception) -> tuple[int, str]:
    """Return an error's code and message."""
    if isinstance(error, ConnectionClosedError):
        return CLOSED, "closed"
    if isinstance(error, RpcError):
        return int(error.code), error.message
    return NO_CODE, repr(error)


def _count(counter: list[int], message: Message) -> None:
    with _counting:
        counter[0] += 1
        counter[1] += message.ByteSize()


def _shorten(message: Message) -> str:
    text = str(message).replace("\n", " ")
    return f"{{{text[:60]}}} of {message.ByteSize()} bytes"
