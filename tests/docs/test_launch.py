"""docs/launch.md names every internal of CPython that a launch touches, and no other; what it says there is exists."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.fakes import ROOT

PAGE: Final = (ROOT / "docs/launch.md").read_text()
LAUNCH: Final = ROOT / "build/launch"
IN_PYTHON: Final = ROOT / "shim/runtime/image.py"
# libc.c keeps to Python's public functions: tests/host/test_libc.py compiles it for other versions too.
SOURCES: Final = tuple(path for path in sorted(LAUNCH.glob("*.[ch]")) if path.name != "libc.c")
# CPython's own names by how they begin, and what is reached through its structures.
_NAMES: Final = re.compile(r"\b(_Py\w+|pycore_\w+|PyOS_\w+|PyUnstable_\w+|(?:co|tp|ht)_\w+)")
_MEMBERS: Final = re.compile(r"\b(?:main_tstate|runtime|_PyRuntime|state|arena|pool)((?:(?:->|\.)\w+)+)")
_TEST: Final = re.compile(r"`(\w+)`")


def words(text: str) -> set[str]:
    """Return the names in the code of a piece of the page."""
    return set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", text))))


def rows(heading: str, number: int = 0) -> list[list[str]]:
    """Return the rows of a table under a heading, without its head."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    tables = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[number].splitlines()[2:]]


INTERNALS: Final = rows("CPython's internals")


def code(path: Path) -> str:
    """Return a C source without its comments and texts."""
    return re.sub(r'/\*.*?\*/|"[^"\n]*"', "", path.read_text(), flags=re.DOTALL)


def used(path: Path) -> set[str]:
    """Return the internals that a C source names."""
    text = code(path)
    members = {name for chain in _MEMBERS.findall(text) for name in re.findall(r"\w+", chain)}
    return {*_NAMES.findall(text), *members}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_internal_that_is_used_has_its_row(path: Path) -> None:
    """In any column but that of the tests: a header stands beside what is in it."""
    known = set().union(*(words(" ".join(row[:4])) for row in INTERNALS))

    assert set() == used(path) - known - {"mgmt", "pools", "signals"}  # which the rows have in front of their members


@pytest.mark.parametrize("row", INTERNALS, ids=lambda row: row[0].split("`")[1])
def test_every_row_is_of_something_that_is_used(row: list[str]) -> None:
    """Each name of its first column stands in a source; so does each that is said to be checked."""
    text = "".join(code(path) for path in SOURCES) + (ROOT / "build/spec/static.py").read_text()

    assert [] == sorted(word for word in words(row[0]) | words(row[3]) if not re.search(rf"\b{word}\b", text))


def functions() -> Iterator[str]:
    """Yield the names of the tests and checks of launches."""
    for path in (ROOT / "tests/launch").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield node.name


@pytest.mark.parametrize("heading", ["CPython's internals", "The gates"])
def test_the_tests_that_are_named_exist(heading: str) -> None:
    """In tests/launch."""
    named = {name for row in rows(heading) for name in _TEST.findall(row[-1])}

    assert named
    assert set() == named - set(functions())


def test_the_gates_are_where_they_are_said_to_be() -> None:
    """The function in the file, or the file."""
    for row in rows("The gates"):
        for place in re.findall(r"`(\w+)` in `([^`]+)`", row[1]):
            name, file = place
            assert re.search(rf"\b{name}\(.*[:{{]$", (ROOT / file).read_text(), re.MULTILINE), place


def test_private_names_of_python_are_known() -> None:
    """Those that shim/runtime/image.py uses are those of the page."""
    tree = ast.parse(IN_PYTHON.read_text())
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    attributes |= {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    private = {name for name in attributes if re.fullmatch(r"_[A-Za-z]\w+", name)} - own - {"_shim_image", "_exit"}
    named = {word for row in rows("CPython's internals", 1) for word in words(row[0]) if word.startswith("_")}

    assert private == named - {"__main__"}


def test_every_source_of_the_launch_is_mentioned() -> None:
    """By its name, under how a binary is made."""
    assert [] == [path.name for path in sorted(LAUNCH.iterdir()) if f"{path.name}`" not in PAGE and path.suffix != ".h"]
