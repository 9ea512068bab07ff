"""What each case comes to, for every client and server, and where a published peer differs from the protocol.

Rule: an exception names the peers that it is for, and its reason with upstream's issue where there is one.  What is
expected of it is compared as well, so an exception that no longer holds is found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from google.protobuf.message import Message

from tests.interop import conformance as c
from tests.interop.outcome import CLOSED
from tests.protos.conformance_pb2 import Failure, Nap, Pair, Pairs, Part, Payload, Size, Total

Traffic = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Expected:
    """What a client reports.  A `message` of None is of the client's own making and may be any."""

    sent: Traffic
    received: Traffic = (0, 0)
    code: int = 0
    message: str | None = ""
    statuses: tuple[tuple[int, str], ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    alive: bool = True
    problems: tuple[str, ...] = ()

    def differences(self, outcome: Mapping[str, Any]) -> list[str]:
        """Return what is otherwise in a client's report."""
        wanted = {name: _as_json(getattr(self, name)) for name in self.__slots__ if getattr(self, name) is not None}
        return [
            f"{name} is {_shorten(outcome.get(name))}, not {_shorten(value)}"
            for name, value in wanted.items()
            if outcome.get(name) != value
        ]


@dataclass(frozen=True, slots=True)
class Quirk:
    """Where published peers differ.  `changes` of None: what comes out says nothing, the case only has to end."""

    reason: str
    cases: frozenset[str]
    clients: frozenset[str]
    servers: frozenset[str]
    changes: Mapping[str, Any] | None = field(default=None)


def _traffic(messages: Iterable[Message]) -> Traffic:
    sizes = [message.ByteSize() for message in messages]
    return len(sizes), sum(sizes)


def _echo(*requests: Payload) -> Expected:
    return Expected(_traffic(requests), _traffic(map(c.plus_one, requests)))


def _sum(count: int) -> Expected:
    parts = c.parts_to_sum(count)
    return Expected(_traffic(parts), _traffic([c.sum_up(parts)]))


def _divide(count: int) -> Expected:
    request = Total(sum=1000003, count=count)
    return Expected(_traffic([request]), _traffic(c.divide(request)))


def _fail_stream(code: int, after: int) -> Expected:
    sent = _traffic([Failure(code=code, message="no more", after=after)])
    return Expected(sent, _traffic(Part(value=value) for value in range(1, after + 1)), code, "no more")


def _unknown(message: str) -> Expected:
    return Expected(_traffic([c.payload(1)]), code=12, message=message)


_NULLS: Final = _traffic(c.payload(i, 16) for i in range(100))
_CODES: Final = range(1, 17)
_SLEPT: Final = Expected(_traffic([Nap(milliseconds=1000)]), code=4, message=None)
_SERVED_METADATA: Final = (("other-key", "ü"), ("shim-test", "b"), ("shim-test", "a"), ("shim-test", "b"))

CASES: Final[Mapping[str, Expected]] = MappingProxyType(
    {
        "echo_empty": _echo(c.payload(0)),
        "echo_64": _echo(c.payload(1, 64)),
        "echo_1m": _echo(c.payload(1, 1 << 20)),
        "echo_max": _echo(c.payload(1, c.REQUEST_MAX)),
        "request_too_large": Expected(_traffic([c.payload(1, c.REQUEST_MAX + 1)]), code=8, message=None),
        "echo_stream": _echo(*(c.payload(i, i) for i in range(50))),
        "echo_stream_max": _echo(c.payload(1, c.MESSAGE_MAX)),
        "echo_stream_unread": _echo(*(c.payload(i, 1000) for i in range(60))),
        "echo_stream_bulk": _echo(*(c.payload(i, 256 << 10) for i in range(64))),
        "echo_stream_stalled": _echo(c.payload(1, 64)),
        "stream_message_too_large": replace(_echo(c.payload(1), c.payload(3)), statuses=((8, ""),)),
        "sum": _sum(202),
        "sum_none": _sum(0),
        "divide": _divide(30),
        "divide_none": _divide(0),
        "divide_backlog": _divide(5000),
        "echo_null": Expected(_NULLS, (1, 0)),
        "echo_null_stream": Expected(_NULLS, (100, 0)),
        "empty_request": Expected((1, 0), _traffic([c.payload(0), c.payload(1)])),
        "fail": Expected(
            _traffic(Failure(code=code, message=f"reason {code} ü") for code in _CODES),
            statuses=tuple((code, f"reason {code} ü") for code in _CODES),
        ),
        "fail_unknown_code": Expected(
            _traffic([Failure(code=99, message="unheard of")]), code=99, message="unheard of"
        ),
        "fail_stream": _fail_stream(5, 5),
        "fail_stream_at_once": _fail_stream(9, 0),
        "sleep": Expected(_traffic([Nap(milliseconds=50)]), (1, 0)),
        "sleep_deadline": _SLEPT,
        "sleep_deadline_of_server": replace(_SLEPT, message="context deadline exceeded"),
        "unknown_service": _unknown("service shim.conformance.v1.Nothing"),
        "unknown_method": _unknown("method Nothing"),
        "unknown_stream": _unknown("method NothingStream"),
        "metadata": Expected(
            (1, 0),
            _traffic([Pairs(pairs=[Pair(key=key, value=value) for key, value in _SERVED_METADATA])]),
            pairs=_SERVED_METADATA,
        ),
        "blob_max": Expected(_traffic([Size(bytes=c.RESPONSE_MAX)]), _traffic([c.payload(0, c.RESPONSE_MAX)])),
        "blob_too_large": Expected(_traffic([Size(bytes=c.RESPONSE_MAX + 3)]), code=8, message=None),
        "concurrent_calls": _echo(*(c.payload(i, i * 1000) for i in range(64))),
        "large_calls": _echo(*(c.payload(i, 200_000) for i in range(8) for _ in range(20))),
        "concurrent_streams": _echo(*(c.payload(n, n * 100 * i) for i in range(10) for n in range(20))),
        "abandoned": Expected(
            _traffic([Total(sum=1000003, count=50)]), _traffic(c.divide(Total(sum=1000003, count=50))[:2])
        ),
        "abandoned_bidi": _echo(*(c.payload(i) for i in range(3))),
    }
)

# A deadline that only the server keeps: of these clients, Go's alone can ask for that, in an interceptor.
ONLY_FOR: Final[Mapping[str, frozenset[str]]] = MappingProxyType({"sleep_deadline_of_server": frozenset({"go"})})

_OURS: Final = frozenset({"sync", "aio"})
_GO: Final = frozenset({"go"})
_RUST: Final = frozenset({"rust"})
_ALL: Final = _OURS | _GO | _RUST

QUIRKS: Final = (
    Quirk(
        "Go opens a client's stream without the flag 'no data'; a server in Rust takes that for an empty first message"
        " (ttrpc-rust#221)",
        frozenset(
            "echo_stream echo_stream_max echo_stream_unread echo_stream_bulk stream_message_too_large sum sum_none"
            " echo_null_stream concurrent_streams abandoned_bidi".split()
        ),
        _GO,
        _RUST,
    ),
    Quirk(
        "Rust keeps the code in an enum, and reads a number that it does not know as OK",
        frozenset({"fail_unknown_code"}),
        _RUST,
        _ALL,
        {"code": 0, "message": ""},
    ),
    Quirk(
        "a server in Rust answers an unknown service with INVALID_ARGUMENT",
        frozenset({"unknown_service"}),
        _ALL,
        _RUST,
        {"code": 3, "message": "shim.conformance.v1.Nothing service does not exist"},
    ),
    Quirk(
        "a server in Rust has other words for an unknown method",
        frozenset({"unknown_method"}),
        _ALL,
        _RUST,
        {"message": "Nothing method"},
    ),
    Quirk(
        "a server in Rust has other words for an unknown method",
        frozenset({"unknown_stream"}),
        _ALL,
        _RUST,
        {"message": "NothingStream method"},
    ),
    Quirk(
        "a server in Rust has other words for a deadline that has passed",
        frozenset({"sleep_deadline_of_server"}),
        _ALL,
        _RUST,
        {"message": "timeout"},
    ),
    Quirk(
        "a server in Rust answers with INVALID_ARGUMENT where its response is too large",
        frozenset({"blob_too_large"}),
        _ALL,
        _RUST,
        {"code": 3},
    ),
    Quirk(
        "a server in Go drops the connection where its response is too large (since 1.2.6)",
        frozenset({"blob_too_large"}),
        _ALL,
        _GO,
        {"code": CLOSED, "message": "closed", "alive": False},
    ),
)


def cases_for(client: str) -> list[str]:
    """Return the cases that a client can run."""
    return [case for case in CASES if client in ONLY_FOR.get(case, _ALL)]


def quirk_of(case: str, client: str, server: str) -> Quirk | None:
    """Return the exception that holds for a case between two peers."""
    return next((q for q in QUIRKS if case in q.cases and client in q.clients and server in q.servers), None)


def differences(outcome: Mapping[str, Any], client: str, server: str) -> list[str]:
    """Return how the report of a case is otherwise than expected."""
    case = str(outcome["case"])
    expected = CASES[case]
    quirk = quirk_of(case, client, server)
    if quirk is None:
        return expected.differences(outcome)
    return [] if quirk.changes is None else replace(expected, **quirk.changes).differences(outcome)


def _as_json(value: Any) -> Any:
    return [_as_json(item) for item in value] if isinstance(value, tuple) else value


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}..."
