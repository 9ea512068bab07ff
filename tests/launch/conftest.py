"""Binaries for the tests of launches: the checks, frozen as an image and without one.

Rule: built by build.py as an author's are, once for each state of the sources; what cannot be built fails the tests.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.launch.field import FORMS, Program

ROOT: Final = Path(__file__).parents[2]
SCRIPT: Final = Path(__file__).parent / "frozen" / "checks.py"
_TIMEOUT_S: Final = 120


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests here more time than unit tests have: the first waits for a build."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_TIMEOUT_S))


def freeze(name: str, script: Path, form: str = "image") -> Path:
    """Freeze a script and return the binary, or fail the test with what the build said."""
    done = run_build(name, "--script", str(script), "--form", form)
    if done.returncode:
        pytest.fail(f"build.py {name}: {done.stderr}", pytrace=False)
    return ROOT / "dist" / f"containerd-shim-{name}-v1"


def run_build(*words: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run build.py to its end."""
    command = [sys.executable, str(root / "build/spec/build.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)


@pytest.fixture(scope="session")
def image_program() -> Program:
    """Return the checks as an image."""
    return Program(freeze("checks", SCRIPT))


@pytest.fixture(scope="session")
def static_program() -> Program:
    """Return the same without its image, which starts the ordinary way."""
    return Program(freeze("checks-static", SCRIPT, "static"))


@pytest.fixture(scope="session", params=FORMS)
def program(request: pytest.FixtureRequest) -> Program:
    """Return the checks in each form."""
    found: Program = request.getfixturevalue(f"{request.param}_program")
    return found


@pytest.fixture(scope="session")
def runtime_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the fake runc as a program that needs nothing of its host, either."""
    folder = tmp_path_factory.mktemp("runtime")
    for name in ("runc_commands", "runc_program", "runc_state"):
        text = (ROOT / "shim/testing" / f"{name}.py").read_text()
        (folder / f"{name}.py").write_text(text.replace("shim.testing.", ""))
    (folder / "runtime.py").write_text(
        "import os, sys\n"
        "from runc_commands import main\n"
        "from shim.runtime import image\n"
        "def launch():\n"
        "    main(os.path.dirname(sys.executable))\n"
        "if image.is_being_made():\n"
        "    image.make(launch, lambda: None)\n"
        "launch()\n"
    )
    return freeze("fake-runtime", folder / "runtime.py")


@pytest.fixture(scope="session")
def shim_program() -> Program:
    """Return this project's shim as an image."""
    done = run_build("pyrunc")
    if done.returncode:
        pytest.fail(f"build.py pyrunc: {done.stderr}", pytrace=False)
    return Program(ROOT / "dist" / "containerd-shim-pyrunc-v1")
