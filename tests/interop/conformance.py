"""The rpcs of tests/protos/conformance.proto, and what all peers fill their messages with.

The peers in go/ and rust/ do the same; tests.interop.expected says what comes out.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.empty_pb2 import Empty

from shim.ttrpc import Kind, Rpc
from tests.protos.conformance_pb2 import Failure, Nap, Pairs, Part, Payload, Size, Total

SERVICE: Final = "shim.conformance.v1.Conformance"

ECHO: Final = Rpc(SERVICE, "Echo", Payload, Payload)
ECHO_STREAM: Final = Rpc(SERVICE, "EchoStream", Payload, Payload, Kind.BIDI)
SUM: Final = Rpc(SERVICE, "Sum", Part, Total, Kind.CLIENT_STREAM)
DIVIDE: Final = Rpc(SERVICE, "Divide", Total, Part, Kind.SERVER_STREAM)
ECHO_NULL: Final = Rpc(SERVICE, "EchoNull", Payload, Empty, Kind.CLIENT_STREAM)
ECHO_NULL_STREAM: Final = Rpc(SERVICE, "EchoNullStream", Payload, Empty, Kind.BIDI)
EMPTY_REQUEST: Final = Rpc(SERVICE, "EmptyRequest", Empty, Payload, Kind.SERVER_STREAM)
FAIL_STREAM: Final = Rpc(SERVICE, "FailStream", Failure, Part, Kind.SERVER_STREAM)
FAIL: Final = Rpc(SERVICE, "Fail", Failure, Empty)
SLEEP: Final = Rpc(SERVICE, "Sleep", Nap, Empty)
BLOB: Final = Rpc(SERVICE, "Blob", Size, Payload)
METADATA: Final = Rpc(SERVICE, "Metadata", Empty, Pairs)

RPCS: Final[tuple[Rpc[Any, Any], ...]] = (
    ECHO,
    ECHO_STREAM,
    SUM,
    DIVIDE,
    ECHO_NULL,
    ECHO_NULL_STREAM,
    EMPTY_REQUEST,
    FAIL_STREAM,
    FAIL,
    SLEEP,
    BLOB,
    METADATA,
)
NOTHING_STREAM: Final = Rpc(SERVICE, "NothingStream", Payload, Payload, Kind.SERVER_STREAM)
"""Which no server has."""

# With these, the frame's body has 4 MiB to the byte: a request around a payload, a response around one, a bare message.
# A server in Rust adds an empty status of 2 bytes to its responses.
REQUEST_MAX: Final = (4 << 20) - 51
RESPONSE_MAX: Final = (4 << 20) - 10 - 2
MESSAGE_MAX: Final = (4 << 20) - 7

SENT_METADATA: Final = (("shim-test", "b"), ("shim-test", "a"), ("Other-Key", "ü"), ("shim-test", "b"))

_PATTERN: Final = bytes(range(251)) * ((5 << 20) // 251)


def pattern(size: int) -> bytes:
    """Return the bytes that payloads are filled with."""
    return _PATTERN[:size]


def payload(seq: int, size: int = 0) -> Payload:
    """Return a filled payload."""
    return Payload(seq=seq, data=pattern(size))


def plus_one(request: Payload) -> Payload:
    """Return what Echo answers."""
    return Payload(seq=request.seq + 1, data=request.data)


def divide(total: Total) -> list[Part]:
    """Return what Divide sends: nothing in the first of several parts, what is left over in the last."""
    if total.count < 2:
        return [Part(value=total.sum)] * total.count
    share, rest = divmod(total.sum, total.count - 1)
    return [Part(), *[Part(value=share)] * (total.count - 2), Part(value=share + rest)]


def parts_to_sum(count: int) -> list[Part]:
    """Return what is sent to Sum: every other part empty, the rest from negative to positive."""
    return [Part(value=i * i - 10000 if i % 2 else 0) for i in range(count)]


def sum_up(parts: list[Part]) -> Total:
    """Return what Sum answers."""
    return Total(sum=sum(part.value for part in parts), count=len(parts))
