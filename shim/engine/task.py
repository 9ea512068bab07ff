"""The life of a container's processes, as tables.

Rule: every change of state is in INIT or EXEC; what a state refuses, and in which words, is in REFUSALS.  Pure.
Spec: containerd cmd/containerd-shim-runc-v2/process (init_state.go, exec_state.go), whose words clients match on.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from shim.errors import FailedPreconditionError, NotFoundError, ProcessStateError, ShimError


class State(Enum):
    """Where a process stands; `...ing` states are steps under way that may still fail."""

    CREATED = "created"
    CHECKPOINTED = "created from a checkpoint"
    STARTING = "starting"
    RESTORING = "restoring"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    STOPPED = "stopped"
    DELETING = "deleting"
    DELETED = "deleted"
    FAILED = "failed"


class Step(Enum):
    """What moves a process."""

    START = "start"
    STARTED = "started"
    START_FAILED = "start failed"
    PAUSE = "pause"
    PAUSED = "paused"
    PAUSE_FAILED = "pause failed"
    RESUME = "resume"
    EXIT = "exit"
    DELETE = "delete"
    DELETED = "deleted"
    DELETE_FAILED = "delete failed"


Table = Mapping[State, Mapping[Step, State]]

INIT: Final[Table] = MappingProxyType(
    {
        State.CREATED: {Step.START: State.STARTING, Step.EXIT: State.STOPPED},
        State.STARTING: {Step.STARTED: State.RUNNING, Step.START_FAILED: State.CREATED, Step.EXIT: State.STOPPED},
        # The runtime knows nothing of it before its start, so nothing can exit and deleting is no more than forgetting.
        State.CHECKPOINTED: {Step.START: State.RESTORING, Step.DELETE: State.DELETING},
        State.RESTORING: {
            Step.STARTED: State.RUNNING,
            Step.START_FAILED: State.CHECKPOINTED,
            Step.EXIT: State.STOPPED,
        },
        State.RUNNING: {Step.PAUSE: State.PAUSING, Step.EXIT: State.STOPPED},
        State.PAUSING: {Step.PAUSED: State.PAUSED, Step.PAUSE_FAILED: State.RUNNING, Step.EXIT: State.STOPPED},
        State.PAUSED: {Step.RESUME: State.RUNNING, Step.EXIT: State.STOPPED},
        State.STOPPED: {Step.DELETE: State.DELETING},
        State.DELETING: {Step.DELETED: State.DELETED, Step.DELETE_FAILED: State.STOPPED},
        State.DELETED: {},
    }
)

EXEC: Final[Table] = MappingProxyType(
    {
        State.CREATED: {Step.START: State.STARTING, Step.DELETE: State.DELETING},
        State.STARTING: {Step.STARTED: State.RUNNING, Step.START_FAILED: State.FAILED, Step.EXIT: State.STOPPED},
        State.RUNNING: {Step.EXIT: State.STOPPED},
        State.FAILED: {Step.DELETE: State.DELETING},
        State.STOPPED: {Step.DELETE: State.DELETING},
        State.DELETING: {Step.DELETED: State.DELETED},
        State.DELETED: {},
    }
)


class Act(Enum):
    """What a client may ask of a process."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    UPDATE = "update"
    CHECKPOINT = "checkpoint"
    EXEC = "exec"
    KILL = "kill"
    DELETE = "delete"
    RESIZE = "resize"


# How a state is called in answers: a step under way answers as the state before it.
_WORDS: Final = MappingProxyType(
    {
        State.CHECKPOINTED: "created",
        State.STARTING: "created",
        State.RESTORING: "created",
        State.PAUSING: "running",
        State.FAILED: "stopped",
        State.DELETING: "deleted",
    }
)

_UNSTARTED: Final = frozenset({State.CREATED, State.STARTING})
_STARTED: Final = frozenset({State.RUNNING, State.PAUSING})
_UNRESTORED: Final = frozenset({State.CHECKPOINTED, State.RESTORING})
_ALIVE: Final = _UNSTARTED | _UNRESTORED | _STARTED | {State.PAUSED}

INIT_ALLOWS: Final[Mapping[Act, frozenset[State]]] = MappingProxyType(
    {
        Act.START: frozenset({State.CREATED, State.CHECKPOINTED}),
        Act.PAUSE: frozenset({State.RUNNING}),
        Act.RESUME: frozenset({State.PAUSED}),
        Act.UPDATE: _ALIVE,
        Act.CHECKPOINT: _STARTED | {State.PAUSED},
        Act.EXEC: _UNSTARTED | _STARTED,
        Act.KILL: _ALIVE | {State.STOPPED},
        Act.DELETE: frozenset({State.CREATED, State.CHECKPOINTED, State.STOPPED}),
        Act.RESIZE: _ALIVE | {State.STOPPED},
    }
)

EXEC_ALLOWS: Final[Mapping[Act, frozenset[State]]] = MappingProxyType(
    {
        Act.START: frozenset({State.CREATED}),
        Act.KILL: _STARTED,
        Act.DELETE: frozenset({State.CREATED, State.FAILED, State.STOPPED}),
        Act.RESIZE: _UNSTARTED | _STARTED | {State.FAILED},
    }
)

# (act, word of the state) -> text, where it is not "cannot <act> a <word> process".
_TEXTS: Final = MappingProxyType(
    {
        (Act.PAUSE, "created"): "cannot pause task in created state",
        (Act.PAUSE, "running"): "cannot pause a container that is pausing",
        (Act.PAUSE, "paused"): "cannot pause a paused container",
        (Act.PAUSE, "stopped"): "cannot pause a stopped container",
        (Act.RESUME, "created"): "cannot resume task in created state",
        (Act.RESUME, "stopped"): "cannot resume a stopped container",
        (Act.UPDATE, "stopped"): "cannot update a stopped container",
        (Act.CHECKPOINT, "created"): "cannot checkpoint a task in created state",
        (Act.CHECKPOINT, "stopped"): "cannot checkpoint a stopped container",
        (Act.RESIZE, "stopped"): "cannot resize a stopped container",
    }
)


def advance(table: Table, state: State, step: Step) -> State:
    """Return the next state.

    Raises:
        ProcessStateError: The table has no such step from here; nothing has changed.
    """
    try:
        return table[state][step]
    except KeyError:
        raise ProcessStateError(f"cannot {step.value} while {state.value}") from None


def refusal(act: Act, state: State, *, is_init: bool) -> ShimError | None:
    """Return what to answer when a process in `state` is asked for `act`, or None when it may."""
    allows = INIT_ALLOWS if is_init else EXEC_ALLOWS
    if state in allows.get(act, frozenset()):
        return None
    word = _WORDS.get(state, state.value)
    if act is Act.KILL:
        if word == "deleted":
            return NotFoundError("cannot kill a deleted process: not found")
        if word == "created" or state is State.FAILED:
            return FailedPreconditionError("process not created: failed precondition")
        return NotFoundError("process already finished: not found")
    if act is Act.DELETE and word == "deleted":
        return NotFoundError("cannot delete a deleted process: not found")
    if act is Act.EXEC:
        return ProcessStateError(f"cannot exec in a {word} state")
    return ProcessStateError(_TEXTS.get((act, word), f"cannot {act.value} a {word} process"))
