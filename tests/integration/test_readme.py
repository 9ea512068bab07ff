"""What README.md tells people to type works: every block of commands and of configuration in it is run here.

Where the README writes to the system, the test writes to a folder of its own.  `./just test` is the one command that
cannot be run from within itself: continuous integration runs it.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from shim.testing import releases
from shim.testing.containerd import RUNTIME, Containerd
from tests.docs import blocks as readme

PROJECT: Final = Path(__file__).parents[2]
SYSTEM_FOLDER: Final = "/usr/local/bin"

pytestmark = pytest.mark.timeout(400)


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of one language, in order; those of "Write a shim" are test_guide.py's."""
    found = readme.blocks("README.md")
    return [block.text for block in found if block.language == language and block.heading != "Write a shim"]


def run(block: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Type a block into a shell, in the project, with `folder` in place of the system's."""
    env = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", **environment}
    script = "set -e\n" + block.replace(SYSTEM_FOLDER, str(folder))
    return subprocess.run(["sh", "-c", script], cwd=PROJECT, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what stands in for /usr/local/bin, with the shim installed as the README says."""
    folder = tmp_path_factory.mktemp("bin")
    (block,) = [block for block in blocks("sh") if "install -m" in block]

    result = run(block, folder)

    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-5:-3] == ["containerd-shim-pyrunc-v1:", "  Version:  0.1.0"]
    return folder


@pytest.fixture
def containerd(folder: Path) -> Iterator[Containerd]:
    """Return a containerd that finds the installed shim."""
    with Containerd(releases.find("1.6"), [folder]) as running:
        yield running
    assert running.left_behind == []


def test_every_block_is_known_to_these_tests() -> None:
    """A command that is added to the README needs a test here."""
    known = ["./just demo\n", "./just test\n", "install -m", "ctr run", "./just bench --quick\n"]

    assert [[word for word in known if word in block] for block in blocks("sh")] == [[word] for word in known]


def test_ci_runs_the_test_command() -> None:
    """Continuous integration runs the README's own command."""
    assert re.search(r"^step tests \./just test\b", (PROJECT / ".ci/run").read_text(), re.MULTILINE)


def test_demo_runs_to_its_end(folder: Path) -> None:
    """The demo shows a container's output and finds nothing left behind."""
    result = run("./just demo", folder)

    assert result.returncode == 0, result.stdout + result.stderr
    assert f"--runtime {RUNTIME}" in result.stdout


def test_installed_shim_runs_a_container(containerd: Containerd, folder: Path) -> None:
    """The installed binary is found by its name, without configuration or restart."""
    (block,) = [block for block in blocks("sh") if block.startswith("ctr run")]
    containerd.import_image()

    result = run(block, folder, CONTAINERD_ADDRESS=str(containerd.address), CONTAINERD_NAMESPACE=containerd.namespace)

    assert result.stderr == ""
    assert result.stdout == "hello from a container\n"


@pytest.mark.parametrize(("key", "version"), [("1.6", 2), ("2.1", 3)])
def test_configuration_is_containerds(key: str, version: int, tmp_path: Path) -> None:
    """containerd takes the configuration and knows the runtime by it."""
    (block,) = [block for block in blocks("toml") if block.startswith(f"version = {version}")]
    config = tmp_path / "config.toml"
    config.write_text(block)
    program = releases.find(key).folder / "containerd"

    result = subprocess.run([program, "--config", config, "config", "dump"], capture_output=True, text=True, check=True)

    (section,) = re.findall(r"runtimes\.pyrunc\]\n(.*?)\n\n", result.stdout, re.DOTALL)
    assert re.search(rf"runtime_type = [\"']{re.escape(RUNTIME)}[\"']", section)


def test_bench_prints_ratios(folder: Path) -> None:
    """The quick benchmark measures both shims."""
    result = run("./just bench --quick", folder)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "ours/Go" in result.stdout
