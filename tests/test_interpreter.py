"""Which Python freezes a shim, by build/spec/interpreter.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
OWN: Final = f"{sys.version_info.major} {sys.version_info.minor}"

PROGRAM: Final = """
import pathlib, sys
sys.path.insert(0, "build/spec")
import interpreter
interpreter._PLACES = ()
interpreter.environment = lambda root, python: python
interpreter.PREFERRED = ((9, 12), (9, 13))
try:
    print(interpreter.choose(pathlib.Path(".")))
except OSError as error:
    print(error.filename)
"""


def install(folder: Path, name: str, version: str, *, can: bool = True) -> Path:
    """Make a Python that only says what it is, and whether it can freeze."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\necho {version} {int(can)}\n")
    program.chmod(0o755)
    return program


def choose(folder: Path, **environment: str) -> str:
    """Return which one is chosen if these are all that there are."""
    variables = {**os.environ, "PATH": f"{folder}:/usr/bin:/bin", "PYENV_ROOT": str(folder / "pyenv"), **environment}
    child = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=variables, capture_output=True, check=True)
    return child.stdout.decode().strip()


def test_the_first_of_the_preferred_versions_is_taken_wherever_it_is(tmp_path: Path) -> None:
    """On PATH or where pyenv has it; the newest patch first, by name."""
    later = install(tmp_path, "python9.13", "9 13")
    assert str(later) == choose(tmp_path)

    install(tmp_path / "pyenv/versions/9.12.1/bin", "python9.12", "9 12")
    preferred = install(tmp_path / "pyenv/versions/9.12.4/bin", "python9.12", "9 12")
    assert str(preferred) == choose(tmp_path)

    first = install(tmp_path, "python9.12", "9 12")
    assert str(first) == choose(tmp_path)


@pytest.mark.parametrize("fault", ["cannot freeze", "another version", "broken", "none"])
def test_the_one_that_runs_is_taken_where_there_is_no_better_one(tmp_path: Path, fault: str) -> None:
    """A Python without a shared library, one that is not what its name says, one that does not start."""
    if fault == "broken":
        install(tmp_path, "python9.12", "9 12").write_text("#!/bin/sh\nexit 1\n")
    elif fault != "none":
        install(tmp_path, "python9.12", "9 11" if fault == "another version" else "9 12", can=fault != "cannot freeze")

    assert sys.executable == choose(tmp_path)


def test_the_variable_decides(tmp_path: Path) -> None:
    """It names a Python, or `own`; a name that is none is an error that says it."""
    install(tmp_path, "python9.12", "9 12")
    other = install(tmp_path / "other", "python", OWN)

    assert str(other) == choose(tmp_path, SHIM_BUILD_PYTHON=str(other))
    assert sys.executable == choose(tmp_path, SHIM_BUILD_PYTHON="own")
    assert "/no/python" == choose(tmp_path, SHIM_BUILD_PYTHON="/no/python")
