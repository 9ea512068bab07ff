"""A frozen interpreter can do all that Python can: each check of tests/launch/frozen, in a process of its own."""

from __future__ import annotations

import json
import os

import pytest

from tests.launch.field import Program
from tests.launch.frozen import language, processes, surroundings
from tests.launch.frozen.registry import CHECKS

_MODULES = (language, processes, surroundings)  # which fill CHECKS
# What has one process run another's leftovers: limits, signals and the environment stay changed.
_LAST = ("children_get_what_was_set_in_the_environment",)
_ALONE = {
    "cpu_time_is_of_this_process_alone",
    "large_memory_is_given_back",
    "signals_reach_their_handlers",
    "many_threads_can_live",
    "collector_leaves_what_was_in_the_image",
}


@pytest.mark.parametrize("name", CHECKS)
def test_check_passes(program: Program, name: str) -> None:
    """Each one alone, so that the first thing a process does is what is checked."""
    answer = program.ask(name, environment={**os.environ, "CHECK_REMOVED": "x"})

    assert (name, None) == (answer["name"], answer["error"])


def test_checks_pass_one_after_the_other(image_program: Program) -> None:
    """In one process."""
    names = [name for name in CHECKS if name not in {*_LAST, *_ALONE}]
    done = image_program.run(*names, *_LAST, environment={**os.environ, "CHECK_REMOVED": "x"})
    answers = [json.loads(line) for line in done.stdout.splitlines()]

    assert [] == [answer for answer in answers if answer["error"]]
    assert (0, b"") == (done.returncode, done.stderr)
    assert [*names, *_LAST] == [answer["name"] for answer in answers]
