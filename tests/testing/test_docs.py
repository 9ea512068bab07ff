"""docs/testing.md tells the truth: its tests pass as they stand, and print what it says."""

import os
import subprocess
import sys
from pathlib import Path

from tests.fakes import python_path
from tests.testing.docs import PAGE, SHIM, write_files


def test_the_pages_tests_pass(tmp_path: Path) -> None:
    """Those of the shim print what the page prints, save the time that it took."""
    names = write_files(tmp_path)
    environment = {**os.environ, "PYTHONPATH": python_path()}
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "error",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--rootdir",
        ".",
    ]
    results = {
        name: subprocess.run([*words, name], cwd=tmp_path, env=environment, capture_output=True, text=True)
        for name in names
        if name.startswith("test_")
    }

    assert [SHIM, "test_remember.py", "test_runtime.py"] == names
    assert [0, 0] == [result.returncode for result in results.values()], [result.stdout for result in results.values()]
    assert results["test_remember.py"].stdout.splitlines()[0] in PAGE.splitlines()


def test_every_sentence_of_the_page_has_a_line() -> None:
    """As in all docs of this project."""
    prose = PAGE.split("## Versions of containerd")[1].splitlines()

    assert [] == [line for line in prose if ". " in line and not line.startswith(("|", " ")) and "import" not in line]
