"""The reaper, in processes of its own: it reaps every child there is."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtime.reaping import SCENARIOS

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_reaper(scenario: Callable[[], None]) -> None:
    """The scenario's name says the fact; what it asserts in vain is its error output."""
    command = [sys.executable, "-m", scenario.__module__, scenario.__name__]
    result = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)

    assert "" == result.stderr
    assert 0 == result.returncode
