"""Builds the Rust project's shim for runc, from the crate that it publishes, into .work/: once, then it is there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

CRATE: Final = "containerd-runc-shim"
VERSION: Final = "0.2.0"
PROGRAM: Final = "containerd-shim-runc-v2-rs"

_WORK: Final = Path(__file__).resolve().parents[2] / ".work"
_TIMEOUT_S: Final = 1800


class BuildError(Exception):
    """The shim could not be built; the text says why."""


def shim() -> Path:
    """Return the program, built if need be, as `cargo install` builds it: optimized, with the crate's own lock file.

    Raises:
        BuildError: There is no cargo, or it failed.
    """
    root = _WORK / f"rust-shim-{VERSION}"
    program = root / "bin" / PROGRAM
    if program.is_file():
        return program
    cargo = shutil.which("cargo")
    if cargo is None:
        raise BuildError("there is no cargo: the Rust shim needs a Rust toolchain")
    command = [cargo, "install", CRATE, "--version", VERSION, "--locked", "--root", str(root)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"cargo install took more than {_TIMEOUT_S} s") from None
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")
    return program
