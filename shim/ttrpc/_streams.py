"""Stream bookkeeping for ttrpc connections.

Rule: every change of a stream's state is in TRANSITIONS. No sockets, threads or clocks here.
Spec: containerd/ttrpc PROTOCOL.md, "Streaming"; a unary call is a stream whose client half is closed from the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from shim.ttrpc.status import LocalProtocolError


class State(Enum):
    """Where one stream stands, seen from this side."""

    OPEN = "open"
    LOCAL_CLOSED = "local closed"
    REMOTE_CLOSED = "remote closed"
    FINISHED = "finished"


class Step(Enum):
    """What moves a stream."""

    SEND_END = "send the end"
    RECV_END = "receive the end"


TRANSITIONS: Final[Mapping[State, Mapping[Step, State]]] = MappingProxyType(
    {
        State.OPEN: {Step.SEND_END: State.LOCAL_CLOSED, Step.RECV_END: State.REMOTE_CLOSED},
        State.LOCAL_CLOSED: {Step.RECV_END: State.FINISHED},
        State.REMOTE_CLOSED: {Step.SEND_END: State.FINISHED},
        State.FINISHED: {},
    }
)


def advance(state: State, step: Step) -> State:
    """Return the next state.

    Raises:
        LocalProtocolError: The step is not allowed in this state, which stays as it is.
    """
    try:
        return TRANSITIONS[state][step]
    except KeyError:
        raise LocalProtocolError(f"cannot {step.value} while {state.value}") from None
