"""The reaper, in processes of its own: it reaps every child there is."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes import ROOT
from tests.runtime.reaping import SCENARIOS
from tests.runtime.reaping_spawns import SCENARIOS as SPAWNS


@pytest.fixture(scope="module", params=["builtin", "ctypes"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, builtin_libc: Path) -> Path:
    """Where each scenario has left its error output, for each making of the libc calls."""
    folder = tmp_path_factory.mktemp("reaping")
    words = ["tests.libc_builtin", str(builtin_libc)] if request.param == "builtin" else []
    command = [sys.executable, "-m", *words, "tests.runtime.reaping", str(folder)]
    subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=True)
    return folder


@pytest.mark.parametrize("scenario", [*SCENARIOS, *SPAWNS], ids=lambda scenario: scenario.__name__)
def test_reaper(results: Path, scenario: Callable[[], None]) -> None:
    """The scenario's name says the fact."""
    assert "" == (results / scenario.__name__).read_text()
