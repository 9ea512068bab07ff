"""The bootloaders that are linked here: made where they can be, done without where not, and the installed one stays."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Final

from tests.integration.conftest import PROJECT

PROGRAM = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import bootloader
found, reason = bootloader.find(pathlib.Path(sys.argv[2]))
print(*(found or (None, None)), reason, sep="|")
"""


WORK: Final = PROJECT / ".work/build"


def find(work: Path, program: str = PROGRAM, **environment: str) -> str:
    """Return what build/spec/bootloader.py finds: a folder, whether Python is in the bootloader, and why not better."""
    command = [sys.executable, "-c", program, str(PROJECT / "build/spec"), str(work)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.rstrip("\n")


def test_compiler_that_is_missing_is_done_without(tmp_path: Path) -> None:
    """One line says so, and the published bootloader serves."""
    assert "None|None|there is no C compiler" == find(tmp_path, CC="no-such-compiler")


def test_compiler_that_fails_is_done_without(tmp_path: Path) -> None:
    """The log is named, and nothing half-made is taken for done the next time."""
    for _ in range(2):
        folder, _, reason = find(tmp_path, CC="false-compiler", PATH=f"{broken(tmp_path)}:{os.environ['PATH']}").split(
            "|"
        )

        assert "None" == folder
        assert reason.startswith("PyInstaller's bootloader could not be built here; the log is ")


def broken(folder: Path) -> Path:
    """Return a folder with a compiler that knows its version and nothing else."""
    program = folder / "false-compiler"
    program.write_text('#!/bin/sh\n[ "$1" = --version ]\n')
    program.chmod(0o755)
    return folder


def test_published_bootloader_can_be_chosen(tmp_path: Path) -> None:
    """SHIM_BUILD_BOOTLOADER=published links nothing."""
    assert "None|None|SHIM_BUILD_BOOTLOADER=published" == find(tmp_path, SHIM_BUILD_BOOTLOADER="published")


def test_bootloader_that_unpacks_can_be_chosen() -> None:
    """SHIM_BUILD_BOOTLOADER=unpack links the wide buffers, and no Python."""
    folder, is_embedded, reason = find(WORK, SHIM_BUILD_BOOTLOADER="unpack").split("|")

    assert ("False", "it unpacks Python: SHIM_BUILD_BOOTLOADER=unpack") == (is_embedded, reason)
    assert b"shim-embedded" not in bootloader(folder).read_bytes()
    best, is_embedded, _ = find(WORK).split("|")
    assert (is_embedded == "True") == (b"shim-embedded" in bootloader(best).read_bytes())


def test_python_that_cannot_be_linked_is_unpacked(tmp_path: Path) -> None:
    """The log of the bootloader that could not be built is named."""
    (tmp_path / "libpython.a").write_text("no archive")
    change = f"bootloader._static_library = lambda: pathlib.Path({str(tmp_path / 'libpython.a')!r})\nfound, "
    folder, is_embedded, reason = find(tmp_path, program=PROGRAM.replace("found, ", change, 1)).split("|")

    assert "False" == is_embedded
    assert reason.startswith("it unpacks Python: PyInstaller's bootloader could not be built here; the log is ")
    assert bootloader(folder).is_file()


def bootloader(folder: str) -> Path:
    """Return the bootloader of a PyInstaller."""
    (path,) = Path(folder).glob("PyInstaller/bootloader/Linux-*/run")
    return path


def test_only_our_own_copy_is_altered() -> None:
    """The installed PyInstaller has the bootloader that its wheel brought; ours, in a folder below .work, differs."""
    (recorded,) = [file for file in metadata.files("pyinstaller") or () if file.match("bootloader/Linux-*/run")]
    installed = Path(str(recorded.locate())).read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(installed).digest()).rstrip(b"=").decode()

    assert recorded.hash is not None
    assert digest == recorded.hash.value
    assert installed != bootloader(find(WORK).partition("|")[0]).read_bytes()
