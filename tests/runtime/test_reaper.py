"""The reaper, in processes of its own: it reaps every child there is."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes import ROOT
from tests.runtime.reaping import SCENARIOS


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each scenario has left its error output."""
    folder = tmp_path_factory.mktemp("reaping")
    command = [sys.executable, "-m", "tests.runtime.reaping", str(folder)]
    subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=True)
    return folder


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_reaper(results: Path, scenario: Callable[[], None]) -> None:
    """The scenario's name says the fact."""
    assert "" == (results / scenario.__name__).read_text()
