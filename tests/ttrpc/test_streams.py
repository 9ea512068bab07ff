"""The table of stream states, walked over every state and step."""

import itertools

import pytest

from shim.ttrpc._streams import TRANSITIONS, State, Step, advance
from shim.ttrpc.status import LocalProtocolError

ALLOWED = {
    (State.OPEN, Step.SEND_END): State.LOCAL_CLOSED,
    (State.OPEN, Step.RECV_END): State.REMOTE_CLOSED,
    (State.LOCAL_CLOSED, Step.RECV_END): State.FINISHED,
    (State.REMOTE_CLOSED, Step.SEND_END): State.FINISHED,
}


@pytest.mark.parametrize(("state", "step"), [*itertools.product(State, Step)])
def test_advance_allows_each_end_once(state: State, step: Step) -> None:
    """Every other step is refused in words that name both."""
    expected = ALLOWED.get((state, step))
    if expected is None:
        with pytest.raises(LocalProtocolError) as caught:
            advance(state, step)

        assert f"cannot {step.value} while {state.value}" == str(caught.value)
    else:
        assert expected is advance(state, step)


def test_table_knows_every_state_and_cannot_be_changed() -> None:
    """It is data that everybody shares."""
    assert set(State) == set(TRANSITIONS)
    with pytest.raises(TypeError):
        TRANSITIONS[State.OPEN] = {}  # type: ignore[index]


def test_every_walk_ends_finished() -> None:
    """No state but the last is a dead end, and from each it is reached."""
    assert [State.FINISHED] == [state for state in State if not TRANSITIONS[state]]
    for first, second in itertools.permutations(Step):
        assert State.FINISHED is advance(advance(State.OPEN, first), second)
