"""What a row of the tables here is, and where the tests are that it names.

Rule: a test is named by its file below tests/ and its function; scenarios of the reaper, which run in processes of
their own, by tests/runtime/reaping.py or reaping_spawns.py and theirs.
"""

import ast
from pathlib import Path
from typing import Final, NamedTuple

TESTS: Final = Path(__file__).parents[1]
SCENARIOS: Final = ("runtime/reaping.py", "runtime/reaping_spawns.py")


class Pin(NamedTuple):
    """Right behaviour in a sentence, and the tests that would fail without it."""

    rule: str
    tests: tuple[str, ...]


def pin(rule: str, *tests: str) -> Pin:
    """Return a row."""
    return Pin(rule, tests)


def names_in(path: Path) -> set[str]:
    """Return the names of the tests of one file, each as a row names it."""
    name = str(path.relative_to(TESTS))
    body = ast.parse(path.read_text()).body
    if name in SCENARIOS:
        return {f"{name}::{each}" for node in body for each in _scenarios(node)}
    return {f"{name}::{node.name}" for node in body if isinstance(node, ast.FunctionDef) and is_test(node.name)}


def _scenarios(node: ast.stmt) -> list[str]:
    """Return what the list SCENARIOS holds, if this is where it is made."""
    if not isinstance(node, ast.AnnAssign) or ast.unparse(node.target) != "SCENARIOS":
        return []
    return [ast.unparse(each) for each in node.value.elts] if isinstance(node.value, ast.List) else []


def is_test(name: str) -> bool:
    """Say whether pytest takes a function for a test."""
    return name.startswith("test_")


def find_tests() -> set[str]:
    """Return the names of all tests."""
    paths = [*TESTS.rglob("test_*.py"), *(TESTS / name for name in SCENARIOS)]
    return {name for path in paths for name in names_in(path)}
