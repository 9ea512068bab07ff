"""The commands that README.md gives for measuring ttrpc.

The fuzzer runs.  What the other two do takes minutes, Go, cargo and a network: their recipes have to be there, and to
start modules that are.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from typing import Final

import pytest

from tests.docs.blocks import texts
from tests.fakes import ROOT

_PLACE: Final = ("README.md", "Test and measure ttrpc", "console")


def commands() -> list[list[str]]:
    """Return what is typed, word by word."""
    (text,) = texts(*_PLACE)
    return [line.removeprefix("$ ").split() for line in text.splitlines()]


def run(*words: str) -> tuple[int, str]:
    """Run just, in the environment that the tests run in, and return its exit status and what it prints."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_each_command_starts_a_module_that_exists(command: list[str]) -> None:
    """By a recipe of the Justfile."""
    program, recipe, *arguments = command
    code, printed = run("just", "--dry-run", recipe, *arguments)
    modules = re.findall(r"python -m (tests\.\w+)", printed)

    assert ("./just", 0) == (program, code), printed
    assert [module for module in modules if importlib.util.find_spec(module)] == modules != []


@pytest.mark.timeout(120)
def test_the_fuzzer_runs_as_shown() -> None:
    """It tells of each target, and of no crash."""
    (command,) = [words for words in commands() if words[1] == "fuzz"]
    code, printed = run("just", *command[1:])

    assert 0 == code, printed
    assert 5 == printed.count(" 0 crashes"), printed
