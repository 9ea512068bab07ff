"""Traps that only Python has: what the daemon's source may not call, since it has threads and one reaper."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.fakes import ROOT

FORKS: Final = {"os.fork", "os.forkpty", "pty.fork", "os.system", "os.popen", "preexec_fn", "multiprocessing"}
WAITS: Final = {"os.wait", "os.wait3", "os.wait4", "os.waitpid", "os.waitid"}
# `start`, which has one thread then and becomes the daemon by it.
MAY_FORK: Final = {"shim/runtime/daemon.py"}
# idmap's child has ended before it is known, sends no signal, and is seen by no wait for just any child.
# image looks, in the build alone, whether there is a child, and collects none.
MAY_WAIT: Final = {"shim/host/idmap.py", "shim/runtime/image.py", "shim/runtime/reaper.py"}


def find_calls(source: str, names: set[str]) -> Iterator[str]:
    """Yield each of the names that a module speaks of: as an attribute, a keyword or an import."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            found = {ast.unparse(node)}
        elif isinstance(node, ast.keyword):
            found = {str(node.arg)}
        elif isinstance(node, ast.Import):
            found = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found = {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        else:
            continue
        yield from found & names


def who_calls(names: set[str]) -> set[str]:
    """Return the modules of a running shim that speak of one of the names."""
    modules = [path for path in (ROOT / "shim").rglob("*.py") if "testing" not in path.parts]
    return {str(path.relative_to(ROOT)) for path in modules if any(find_calls(path.read_text(), names))}


def test_trap_75_nothing_forks_once_there_are_threads() -> None:
    """A fork would copy locks that no thread is left to release."""
    assert MAY_FORK == who_calls(FORKS)


def test_trap_76_nobody_but_the_reaper_waits_for_children() -> None:
    """An exit that somebody else collects is lost for the container that it belongs to."""
    assert MAY_WAIT == who_calls(WAITS)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import os\nos.fork()", {"os.fork"}),
        ("from os import fork", {"os.fork"}),
        ("spawn(preexec_fn=print)", {"preexec_fn"}),
        ("import multiprocessing.pool", {"multiprocessing"}),
        ("from multiprocessing import Pool", {"multiprocessing"}),
        ("self.fork()\nfork = 1", set()),
    ],
)
def test_calls_are_found(source: str, expected: set[str]) -> None:
    """However they are written."""
    assert expected == set(find_calls(source, FORKS))


def test_trap_77_no_daemon_reads_fifos_with_asyncio() -> None:
    """A fifo without a writer reads as ended there; the loop's own copying keeps a writer instead."""
    paths = [Path(ROOT / "shim/engine"), Path(ROOT / "shim/host")]
    modules = [path for folder in paths for path in folder.rglob("*.py")]

    assert [] == [path.name for path in modules if any(find_calls(path.read_text(), {"asyncio"}))]
