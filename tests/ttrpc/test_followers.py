"""Threads that wait for answers while another one reads: who is let go, and when."""

from __future__ import annotations

from typing import Any

import pytest

from shim.ttrpc.followers import Followers
from shim.ttrpc.pending import Pending


def waiting(followers: Followers, count: int) -> list[tuple[Any, Pending]]:
    """Return the gates and calls of so many threads."""
    pending = [Pending(f"a.B/{number}", None) for number in range(count)]
    return [(followers.enter(call), call) for call in pending]


def opened(threads: list[tuple[Any, Pending]]) -> list[bool]:
    """Tell for each thread whether it may go on."""
    return [not gate.locked() for gate, _ in threads]


def test_the_answered_go_one_after_the_other() -> None:
    """Each lets the next one go; between the first and the last a relay is under way."""
    followers = Followers()
    threads = waiting(followers, 4)
    for _, pending in threads[:3]:
        followers.answer(pending)
    steps = []
    for gate, pending in threads[:3]:
        steps.append((opened(threads), followers.is_relaying))
        followers.leave(gate, pending, is_open=True)

    assert [
        ([True, False, False, False], True),
        ([True, True, False, False], True),
        ([True, True, True, False], True),
    ] == steps
    assert not followers.is_relaying
    assert [True, True, True, False] == opened(threads)
    assert followers  # the fourth has no answer


@pytest.mark.parametrize("late", [0, 1, 2])
def test_one_whose_time_is_over_does_not_end_the_relay(late: int) -> None:
    """It has been let go in that moment, or its turn has not come: the others' does."""
    followers = Followers()
    threads = waiting(followers, 3)
    for _, pending in threads:
        followers.answer(pending)
    for at in [late, *(at for at in range(3) if at != late)]:
        gate, pending = threads[at]
        assert at == late or not gate.locked()
        followers.leave(gate, pending, is_open=at != late)

    assert not followers.is_relaying
    assert not followers


def test_one_whose_time_is_over_before_its_answer_is_forgotten() -> None:
    """No gate of its is left to be opened."""
    followers = Followers()
    (gate, pending), *_ = waiting(followers, 1)
    followers.leave(gate, pending, is_open=False)
    followers.answer(pending)

    assert gate.locked()
    assert not followers
    assert not followers.is_relaying


def test_an_answer_that_comes_during_a_relay_joins_it() -> None:
    """A second relay beside it would wake two at a time."""
    followers = Followers()
    threads = waiting(followers, 3)
    followers.answer(threads[0][1])
    followers.answer(threads[1][1])
    followers.answer(threads[2][1])
    before = opened(threads)
    followers.leave(*threads[0], is_open=True)

    assert [True, False, False] == before
    assert [True, True, False] == opened(threads)


def test_all_threads_of_one_stream_are_let_go() -> None:
    """Only one of them will find something: the others wait again."""
    followers = Followers()
    pending = Pending("a.B/C", None)
    threads = [(followers.enter(pending), pending) for _ in range(3)]
    followers.answer(pending)
    for gate, _ in threads:
        assert not gate.locked()
        followers.leave(gate, pending, is_open=True)

    assert not followers
    assert [] == pending.gates


def test_the_end_lets_all_go_at_once() -> None:
    """A connection that has ended, or a call given up, waits for no turn."""
    followers = Followers()
    threads = waiting(followers, 2)
    for _, pending in threads:
        followers.let_go(pending)

    assert [True, True] == opened(threads)
    for gate, pending in threads:
        followers.leave(gate, pending, is_open=True)
    assert not followers.is_relaying


def test_the_one_that_has_waited_longest_reads_next() -> None:
    """And is no follower from then on."""
    followers = Followers()
    threads = waiting(followers, 2)
    followers.promote()

    assert [True, False] == opened(threads)
    followers.leave(*threads[0], is_open=True)
    assert followers
    assert not followers.is_relaying
