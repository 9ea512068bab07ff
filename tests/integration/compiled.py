"""C sources compiled for a test, with warnings as errors; as a rule with sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

HARNESS: Final = Path(__file__).parent / "onefile"
WARNINGS: Final = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow", "-Wstrict-prototypes")
SANITIZERS: Final = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
LIMIT_S: Final = 60.0


def compile_program(target: Path, *sources: Path, flags: tuple[str, ...] = SANITIZERS) -> Path:
    """Compile with warnings as errors; fails the test where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.fail("there is no C compiler: install the Debian packages gcc and libc6-dev", pytrace=False)
    command = [compiler, *WARNINGS, *map(str, sources), *flags, "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (0, "") == (done.returncode, done.stderr)
    return target
