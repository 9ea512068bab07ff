"""The life of init and execs: the tables, walked over every state, step and request."""

from typing import Final

import pytest

from shim.engine.task import EXEC, INIT, Act, State, Step, Table, advance, refusal
from shim.errors import ProcessStateError, ShimError
from shim.ttrpc import Code

S: Final = State
INIT_STEPS: Final = {
    (S.CREATED, Step.START): S.STARTING,
    (S.CREATED, Step.EXIT): S.STOPPED,
    (S.STARTING, Step.STARTED): S.RUNNING,
    (S.STARTING, Step.START_FAILED): S.CREATED,
    (S.STARTING, Step.EXIT): S.STOPPED,
    (S.CHECKPOINTED, Step.START): S.RESTORING,
    (S.CHECKPOINTED, Step.DELETE): S.DELETING,
    (S.RESTORING, Step.STARTED): S.RUNNING,
    (S.RESTORING, Step.START_FAILED): S.CHECKPOINTED,
    (S.RESTORING, Step.EXIT): S.STOPPED,
    (S.RUNNING, Step.PAUSE): S.PAUSING,
    (S.RUNNING, Step.EXIT): S.STOPPED,
    (S.PAUSING, Step.PAUSED): S.PAUSED,
    (S.PAUSING, Step.PAUSE_FAILED): S.RUNNING,
    (S.PAUSING, Step.EXIT): S.STOPPED,
    (S.PAUSED, Step.RESUME): S.RUNNING,
    (S.PAUSED, Step.EXIT): S.STOPPED,
    (S.STOPPED, Step.DELETE): S.DELETING,
    (S.DELETING, Step.DELETED): S.DELETED,
    (S.DELETING, Step.DELETE_FAILED): S.STOPPED,
}
EXEC_STEPS: Final = {
    (S.CREATED, Step.START): S.STARTING,
    (S.CREATED, Step.DELETE): S.DELETING,
    (S.STARTING, Step.STARTED): S.RUNNING,
    (S.STARTING, Step.START_FAILED): S.FAILED,
    (S.STARTING, Step.EXIT): S.STOPPED,
    (S.RUNNING, Step.EXIT): S.STOPPED,
    (S.FAILED, Step.DELETE): S.DELETING,
    (S.STOPPED, Step.DELETE): S.DELETING,
    (S.DELETING, Step.DELETED): S.DELETED,
}

# The words of Go's shim, whose code is UNKNOWN unless said otherwise; None: it may.
STATES: Final = (S.CREATED, S.RUNNING, S.PAUSED, S.STOPPED, S.DELETED)
NOT_FOUND: Final = {
    "process already finished: not found",
    "cannot kill a deleted process: not found",
    "cannot delete a deleted process: not found",
}
INIT_ANSWERS: Final[dict[Act, tuple[str | None, ...]]] = {
    Act.START: (
        None,
        "cannot start a running process",
        "cannot start a paused process",
        "cannot start a stopped process",
        "cannot start a deleted process",
    ),
    Act.PAUSE: (
        "cannot pause task in created state",
        None,
        "cannot pause a paused container",
        "cannot pause a stopped container",
        "cannot pause a deleted process",
    ),
    Act.RESUME: (
        "cannot resume task in created state",
        "cannot resume a running process",
        None,
        "cannot resume a stopped container",
        "cannot resume a deleted process",
    ),
    Act.UPDATE: (None, None, None, "cannot update a stopped container", "cannot update a deleted process"),
    Act.CHECKPOINT: (
        "cannot checkpoint a task in created state",
        None,
        None,
        "cannot checkpoint a stopped container",
        "cannot checkpoint a deleted process",
    ),
    Act.EXEC: (
        None,
        None,
        "cannot exec in a paused state",
        "cannot exec in a stopped state",
        "cannot exec in a deleted state",
    ),
    Act.KILL: (None, None, None, None, "cannot kill a deleted process: not found"),
    Act.DELETE: (
        None,
        "cannot delete a running process",
        "cannot delete a paused process",
        None,
        "cannot delete a deleted process: not found",
    ),
    Act.RESIZE: (None, None, None, None, "cannot resize a deleted process"),
}
EXEC_STATES: Final = (S.CREATED, S.RUNNING, S.STOPPED, S.DELETED)
EXEC_ANSWERS: Final[dict[Act, tuple[str | None, ...]]] = {
    Act.START: (
        None,
        "cannot start a running process",
        "cannot start a stopped process",
        "cannot start a deleted process",
    ),
    Act.KILL: (
        "process not created: failed precondition",
        None,
        "process already finished: not found",
        "cannot kill a deleted process: not found",
    ),
    Act.DELETE: (None, "cannot delete a running process", None, "cannot delete a deleted process: not found"),
    Act.RESIZE: (None, None, "cannot resize a stopped container", "cannot resize a deleted process"),
}


def told(error: ShimError | None) -> tuple[Code, str] | None:
    """Return an error's code and text."""
    return (error.code, str(error)) if error is not None else None


def expected_code(text: str) -> Code:
    """Return the code that clients get with a text."""
    if text in NOT_FOUND:
        return Code.NOT_FOUND
    return Code.FAILED_PRECONDITION if text.endswith(": failed precondition") else Code.UNKNOWN


@pytest.mark.parametrize("state", State, ids=lambda state: state.value)
@pytest.mark.parametrize(("table", "allowed"), [(INIT, INIT_STEPS), (EXEC, EXEC_STEPS)], ids=["init", "exec"])
def test_advance_takes_the_steps_of_the_table_and_no_others(
    table: Table, allowed: dict[tuple[State, Step], State], state: State
) -> None:
    """The rest is refused in words that name both."""
    for step in Step:
        if (state, step) in allowed:
            assert allowed[state, step] is advance(table, state, step)
            continue
        with pytest.raises(ProcessStateError) as caught:
            advance(table, state, step)

        assert f"cannot {step.value} while {state.value}" == str(caught.value)


@pytest.mark.parametrize("act", INIT_ANSWERS)
def test_init_answers_as_gos_does(act: Act) -> None:
    """Every request in every state."""
    for state, text in zip(STATES, INIT_ANSWERS[act], strict=True):
        expected = (expected_code(text), text) if text is not None else None

        assert expected == told(refusal(act, state, is_init=True))


@pytest.mark.parametrize("act", EXEC_ANSWERS)
def test_an_exec_answers_as_gos_does(act: Act) -> None:
    """Every request in every state."""
    for state, text in zip(EXEC_STATES, EXEC_ANSWERS[act], strict=True):
        expected = (expected_code(text), text) if text is not None else None

        assert expected == told(refusal(act, state, is_init=False))


@pytest.mark.parametrize("act", Act)
@pytest.mark.parametrize("is_init", [True, False])
def test_a_step_under_way_answers_as_the_state_before_it(act: Act, is_init: bool) -> None:
    """But takes no second step of its kind."""
    for state, like in {S.STARTING: S.CREATED, S.PAUSING: S.RUNNING}.items():
        before, answer = (refusal(act, each, is_init=is_init) for each in (like, state))
        if act in (Act.START, Act.PAUSE, Act.DELETE) and before is None:
            assert answer is not None
        else:
            assert told(before) == told(answer)


@pytest.mark.parametrize("act", Act)
@pytest.mark.parametrize("is_init", [True, False])
def test_a_process_being_deleted_answers_as_if_it_were(act: Act, is_init: bool) -> None:
    """Its second Delete is no error that clients retry for ever."""
    assert told(refusal(act, S.DELETED, is_init=is_init)) == told(refusal(act, S.DELETING, is_init=is_init))
    assert refusal(act, S.DELETED, is_init=is_init) is not None


def test_an_exec_whose_start_failed_can_only_be_deleted() -> None:
    """A second start is refused."""
    answers = {act: told(refusal(act, S.FAILED, is_init=False)) for act in (Act.START, Act.KILL, Act.DELETE)}

    assert {
        Act.START: (Code.UNKNOWN, "cannot start a stopped process"),
        Act.KILL: (Code.FAILED_PRECONDITION, "process not created: failed precondition"),
        Act.DELETE: None,
    } == answers


@pytest.mark.parametrize("act", Act)
def test_a_container_from_a_checkpoint_answers_as_a_created_one(act: Act) -> None:
    """But takes no exec, since nothing of it is there before its start."""
    created, checkpointed, restoring = (
        told(refusal(act, state, is_init=True)) for state in (S.CREATED, S.CHECKPOINTED, S.RESTORING)
    )
    if act is Act.EXEC:
        assert (Code.UNKNOWN, "cannot exec in a created state") == checkpointed == restoring
        return
    assert created == checkpointed
    assert told(refusal(act, S.STARTING, is_init=True)) == restoring


@pytest.mark.parametrize("table", [INIT, EXEC])
def test_every_state_of_a_table_leads_to_the_end(table: Table) -> None:
    """No process can get stuck, and what a step leads to is in the table."""
    assert {S.DELETED} == {state for state, steps in table.items() if not steps}
    for state in table:
        seen, ahead = {state}, [state]
        while ahead:
            for found in table[ahead.pop()].values():
                if found not in seen:
                    seen.add(found)
                    ahead.append(found)

        assert S.DELETED in seen
        assert seen <= set(table)
