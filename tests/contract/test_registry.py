"""Each known trap and each rule that a client could notice is pinned by tests that exist."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.contract.pins import TESTS, Pin, find_tests, names_in
from tests.contract.rules_around import AROUND_RULES
from tests.contract.rules_engine import ENGINE_RULES
from tests.contract.rules_task import TASK_RULES
from tests.contract.traps import TRAPS

RULES: Final[Mapping[str, Pin]] = {**TASK_RULES, **ENGINE_RULES, **AROUND_RULES}
ROWS: Final[Mapping[str, Pin]] = {**{f"trap {number}": row for number, row in TRAPS.items()}, **RULES}
# How many sections each part of the contract has; the delete action (11) is one.
SECTIONS: Final = {"6": 20, "7": 6, "8": 8, "9": 4, "10": 4, "12": 7}
EXISTING: Final = find_tests()


def unknown(row: Pin, existing: set[str]) -> list[str]:
    """Return what a row names and what is no test."""
    return [name for name in row.tests if name not in existing]


def test_every_trap_has_a_row() -> None:
    """All 82 of them, in their order."""
    assert [*range(1, 83)] == [*TRAPS]


def test_every_section_has_a_rule() -> None:
    """Nothing between the Task service and what containerd does around a shim is passed over."""
    wanted = ["11", *(f"{part}.{number}" for part, count in SECTIONS.items() for number in range(1, count + 1))]

    assert sorted(wanted) == sorted({name.split()[0] for name in RULES})
    assert len(RULES) == len(TASK_RULES) + len(ENGINE_RULES) + len(AROUND_RULES)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_names_tests_that_exist(name: str) -> None:
    """At least one, each of them once, and says in one sentence what is right."""
    row = ROWS[name]

    assert row.tests
    assert len(row.tests) == len(set(row.tests))
    assert [] == unknown(row, EXISTING)
    assert re.fullmatch(r"\S.{20,150}[^.]\.", row.rule)
    assert ". " not in row.rule


def test_a_test_named_after_a_trap_or_rule_is_in_its_row() -> None:
    """So that none is lost when it is moved or renamed."""
    named = {name for name in EXISTING if re.search(r"::test_(trap|rule)_\d", name)}
    for name in named:
        numbers = re.findall(r"trap_(\d+)(?:_and_(\d+))?_", name)
        traps = {int(number) for found in numbers for number in found if number}
        section = re.search(r"rule_(\d+)(?:_(\d+))?_", name)
        rows = [TRAPS[number] for number in traps]
        if section is not None:
            wanted = ".".join(filter(None, section.groups()))
            tests = {test for rule, row in RULES.items() if rule.split()[0] == wanted for test in row.tests}
            rows.append(Pin("", tuple(tests)))

        assert rows, name
        assert [] == [row.rule for row in rows if name not in row.tests], name


@pytest.mark.parametrize(
    "name",
    [
        "engine/test_task.py::test_no_such_thing",
        "engine/test_nothing.py::test_advance_takes_the_steps_of_the_table_and_no_others",
        "test_advance_takes_the_steps_of_the_table_and_no_others",
        "runtime/reaping.py::reap_until",
        "engine/test_task.py::told",
    ],
)
def test_a_name_without_a_test_is_found(name: str) -> None:
    """A wrong file, no file, and functions that are no tests, too."""
    existing = "engine/test_task.py::test_advance_takes_the_steps_of_the_table_and_no_others"

    assert [name] == unknown(Pin("", (existing, name)), EXISTING)


def test_names_of_a_file_are_its_functions(tmp_path: Path) -> None:
    """And scenarios are those that the reaper's test runs."""
    assert "runtime/reaping.py::the_loop_reaps_on_sigchld" in names_in(TESTS / "runtime/reaping.py")
    path = TESTS / "contract/test_registry.py"

    assert "contract/test_registry.py::test_every_trap_has_a_row" in names_in(path)
    assert all("::test_" in name for name in names_in(path))
