"""The bootloader with the fast path: built where it can be, done without where not, and never in anybody's way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import PROJECT

PROGRAM = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import bootloader
print(*bootloader.find(pathlib.Path(sys.argv[2])), sep="|")
"""


def find(work: Path, **environment: str) -> str:
    """Return what build/spec/bootloader.py finds: a folder, and why not."""
    command = [sys.executable, "-c", PROGRAM, str(PROJECT / "build/spec"), str(work)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.rstrip("\n")


def test_compiler_that_is_missing_is_done_without(tmp_path: Path) -> None:
    """One line says so, and the plain bootloader serves."""
    assert "None|there is no C compiler" == find(tmp_path, CC="no-such-compiler")


def test_compiler_that_fails_is_done_without(tmp_path: Path) -> None:
    """The log is named, and nothing half-made is taken for done the next time."""
    for _ in range(2):
        folder, reason = find(tmp_path, CC="false-compiler", PATH=f"{broken(tmp_path)}:{os.environ['PATH']}").split("|")

        assert "None" == folder
        assert reason.startswith("PyInstaller's bootloader could not be built here; the log is ")


def broken(folder: Path) -> Path:
    """Return a folder with a compiler that knows its version and nothing else."""
    program = folder / "false-compiler"
    program.write_text('#!/bin/sh\n[ "$1" = --version ]\n')
    program.chmod(0o755)
    return folder


def test_switch_builds_without_it(tmp_path: Path) -> None:
    """SHIM_BUILD_FASTPATH=off, for who wants PyInstaller's published bootloader."""
    assert "None|SHIM_BUILD_FASTPATH=off" == find(tmp_path, SHIM_BUILD_FASTPATH="off")


@pytest.mark.parametrize("kind", ["built", "installed"])
def test_only_our_own_copy_is_altered(kind: str) -> None:
    """The installed PyInstaller's bootloader makes no connection; ours, in a folder below .work, does."""
    import PyInstaller  # type: ignore[import-untyped]

    folders = [Path(find(PROJECT / ".work/build").partition("|")[0])] if kind == "built" else []
    folders = folders or [Path(PyInstaller.__file__).parents[1]]
    (bootloader,) = folders[0].glob("PyInstaller/bootloader/Linux-*/run")

    assert (kind == "built") == (b"containerd-shim: the process" in bootloader.read_bytes())
