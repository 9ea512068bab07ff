"""Builds the Rust project's shim for runc, from the crate that it publishes, into .work/: once, then it is there.

Which version depends on containerd: since 0.2 it serves only version 3 of the task service, which 1.x does not speak.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from shim.testing.releases import Release

CRATE: Final = "containerd-runc-shim"
PROGRAM: Final = "containerd-shim-runc-v2-rs"

_WORK: Final = Path(__file__).resolve().parents[2] / ".work"
_TIMEOUT_S: Final = 1800


class BuildError(Exception):
    """The shim could not be built; the text says why."""


def version(release: Release) -> str:
    """Return the newest version of the crate that this release of containerd can talk to."""
    return "0.1.0" if release.major < 2 else "0.2.0"


def shim(release: Release) -> Path:
    """Return the program, built if need be, as `cargo install` builds it: optimized, with the crate's own lock file.

    Raises:
        BuildError: There is no cargo, or it failed.
    """
    root = _WORK / f"rust-shim-{version(release)}"
    program = root / "bin" / PROGRAM
    if program.is_file():
        return program
    cargo = shutil.which("cargo")
    if cargo is None:
        raise BuildError("there is no cargo: the Rust shim needs a Rust toolchain")
    command = [cargo, "install", CRATE, "--version", version(release), "--locked", "--root", str(root)]
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
