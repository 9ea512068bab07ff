"""Stream bookkeeping for ttrpc connections.

Rule: every change of a stream's state is in TRANSITIONS. No sockets, threads or clocks here.
Spec: containerd/ttrpc PROTOCOL.md, "Streaming"; a unary call is a stream whose client half is closed from the start.
The server's last frame finishes a stream whatever the client's half is: Go's handlers may return early.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from shim.ttrpc.status import LocalProtocolError


class Kind(IntEnum):
    """Which sides of a method send a stream of messages rather than one."""

    UNARY = 0
    SERVER_STREAM = 1
    CLIENT_STREAM = 2
    BIDI = 3

    @property
    def has_server_stream(self) -> bool:
        """True when the server sends any number of messages."""
        return bool(self & 1)

    @property
    def has_client_stream(self) -> bool:
        """True when the client sends any number of messages."""
        return bool(self & 2)


class Side(IntEnum):
    """Which end of the connection this is."""

    CLIENT = 0
    SERVER = 1


class State(IntEnum):
    """Where one stream stands, seen from this side."""

    OPEN = 0
    LOCAL_CLOSED = 1
    REMOTE_CLOSED = 2
    FINISHED = 3


class Step(IntEnum):
    """What moves a stream; the final step is the server's response, error or end of data."""

    SEND_MESSAGE = 0
    SEND_END = 1
    SEND_FINAL = 2
    RECV_MESSAGE = 3
    RECV_END = 4
    RECV_FINAL = 5


Rules = Mapping[State, Mapping[Step, State]]

_CLIENT: Final[Rules] = {
    State.OPEN: {
        Step.SEND_MESSAGE: State.OPEN,
        Step.SEND_END: State.LOCAL_CLOSED,
        Step.RECV_MESSAGE: State.OPEN,
        Step.RECV_FINAL: State.FINISHED,
    },
    State.LOCAL_CLOSED: {Step.RECV_MESSAGE: State.LOCAL_CLOSED, Step.RECV_FINAL: State.FINISHED},
    State.FINISHED: {},
}
_SERVER: Final[Rules] = {
    State.OPEN: {
        Step.RECV_MESSAGE: State.OPEN,
        Step.RECV_END: State.REMOTE_CLOSED,
        Step.SEND_MESSAGE: State.OPEN,
        Step.SEND_FINAL: State.FINISHED,
    },
    State.REMOTE_CLOSED: {Step.SEND_MESSAGE: State.REMOTE_CLOSED, Step.SEND_FINAL: State.FINISHED},
    State.FINISHED: {},
}


def _without(rules: Rules, step: Step | None) -> Rules:
    kept = {
        state: {known: then for known, then in steps.items() if known is not step} for state, steps in rules.items()
    }
    return MappingProxyType({state: MappingProxyType(steps) for state, steps in kept.items()})


# A method without a stream of the server's has no messages from it, only the final step.  Without one of the client's
# a stream begins past its OPEN state, see START.
TRANSITIONS: Final[Mapping[tuple[Side, Kind], Rules]] = MappingProxyType(
    {
        (Side.CLIENT, Kind.UNARY): _without(_CLIENT, Step.RECV_MESSAGE),
        (Side.CLIENT, Kind.CLIENT_STREAM): _without(_CLIENT, Step.RECV_MESSAGE),
        (Side.CLIENT, Kind.SERVER_STREAM): _without(_CLIENT, None),
        (Side.CLIENT, Kind.BIDI): _without(_CLIENT, None),
        (Side.SERVER, Kind.UNARY): _without(_SERVER, Step.SEND_MESSAGE),
        (Side.SERVER, Kind.CLIENT_STREAM): _without(_SERVER, Step.SEND_MESSAGE),
        (Side.SERVER, Kind.SERVER_STREAM): _without(_SERVER, None),
        (Side.SERVER, Kind.BIDI): _without(_SERVER, None),
    }
)

START: Final[Mapping[tuple[Side, Kind], State]] = MappingProxyType(
    {
        (Side.CLIENT, Kind.UNARY): State.LOCAL_CLOSED,
        (Side.CLIENT, Kind.SERVER_STREAM): State.LOCAL_CLOSED,
        (Side.CLIENT, Kind.CLIENT_STREAM): State.OPEN,
        (Side.CLIENT, Kind.BIDI): State.OPEN,
        (Side.SERVER, Kind.UNARY): State.REMOTE_CLOSED,
        (Side.SERVER, Kind.SERVER_STREAM): State.REMOTE_CLOSED,
        (Side.SERVER, Kind.CLIENT_STREAM): State.OPEN,
        (Side.SERVER, Kind.BIDI): State.OPEN,
    }
)

# One stream in a connection's table: what rules it, and where it stands.
Stream = tuple[Rules, State]
NEW: Final[Mapping[tuple[Side, Kind], Stream]] = MappingProxyType(
    {key: (rules, START[key]) for key, rules in TRANSITIONS.items()}
)


_SEND_MESSAGE: Final = Step.SEND_MESSAGE  # Python 3.11 runs a property for each use of an enum's member


def check_may_send(streams: Mapping[int, Stream], stream_id: int) -> None:
    """Do nothing if a message may be sent on the stream, which does not move it.

    Raises:
        LocalProtocolError: The stream is finished, or this side's half of it.
    """
    stream = streams.get(stream_id)
    if stream is None:
        raise LocalProtocolError("cannot send message: the stream is finished")
    rules, state = stream
    if _SEND_MESSAGE not in rules[state]:
        advance(rules, state, _SEND_MESSAGE)


def advance(rules: Rules, state: State, step: Step) -> State:
    """Return the next state.

    Raises:
        LocalProtocolError: The step is not allowed in this state, which stays as it is.
    """
    try:
        return rules[state][step]
    except KeyError:
        does, stands = step.name.lower().replace("_", " "), state.name.lower().replace("_", " ")
        raise LocalProtocolError(f"cannot {does}: the stream is {stands}") from None
