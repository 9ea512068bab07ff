"""Which Python goes into a shim of this project, and the environment that freezes with it.

Rule: from 3.12 on daemons share most of their memory (shim/host/heap.py): 1.8 MB are its own, with 3.11 4.7.
So one of the Pythons in `PREFERRED` is taken if it is installed, wherever, else the one that runs ./just.  Each has an
environment of its own below .work, with what the freezer needs and nothing else.  A shim of somebody else's is frozen
by the Python that runs ./just, where that author has installed what it needs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

CHOICE_VARIABLE: Final = "SHIM_BUILD_PYTHON"  # a path, or "own" for the one that runs this

# By the memory that their daemons take.
PREFERRED: Final = ((3, 12), (3, 13))
# Where Pythons are that are not on PATH: pyenv's, uv's, those of the manylinux images, and those made by hand.
_PLACES: Final = ("~/.pyenv/versions", "~/.local/share/uv/python", "/opt/python", "/opt", "/usr/local")
_NEEDED: Final = ("pyinstaller", "protobuf")
_LOOK: Final = """
import ensurepip, os, sys, sysconfig
name = sysconfig.get_config_var("INSTSONAME") or ""
library = os.path.join(sysconfig.get_config_var("LIBDIR") or "", name)
print(*sys.version_info[:2], int(".so" in name and os.path.exists(library) and sys.abiflags == ""))
"""


def choose(root: Path) -> Path:
    """Return the interpreter that shall freeze: perhaps the one that runs this.

    Raises:
        OSError: The environment variable names something that is no Python for this.
    """
    wanted = os.environ.get(CHOICE_VARIABLE, "")
    if wanted == "own":
        return Path(sys.executable)
    if wanted:
        if _version(Path(wanted)) is None:
            raise FileNotFoundError(2, "no Python with a shared library and ensurepip", wanted)
        return environment(root, Path(wanted))
    found = {version: path for path in reversed([*_candidates()]) if (version := _version(path)) in PREFERRED}
    best = next((found[version] for version in PREFERRED if version in found), None)
    if best is None or sys.version_info[:2] == PREFERRED[0]:
        return Path(sys.executable)
    return environment(root, best)


def environment(root: Path, python: Path) -> Path:
    """Return the interpreter of an environment of `python` that can freeze, made if need be.

    Raises:
        OSError, subprocess.CalledProcessError: It cannot be made; the log is beside it.
    """
    pins = _pins(root)
    digest = hashlib.sha256("\0".join([str(python.resolve()), *pins]).encode()).hexdigest()
    folder = root / ".work" / "build" / "python" / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "venv").is_dir():
            half = folder / "half"
            shutil.rmtree(half, ignore_errors=True)
            with (folder / "log").open("wb") as log:
                for command in (
                    [str(python), "-I", "-m", "venv", str(half)],
                    [str(half / "bin" / "python"), "-m", "pip", "install", "--no-input", *pins],
                ):
                    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)
            half.rename(folder / "venv")
    return folder / "venv" / "bin" / "python"


def _pins(root: Path) -> list[str]:
    """Return what the freezer needs, as pyproject.toml pins it."""
    groups = tomllib.loads((root / "pyproject.toml").read_text())["dependency-groups"]
    pinned = [*groups["dev"], *groups["build"]]
    return sorted(pin for pin in pinned if pin.partition("==")[0] in _NEEDED)


def _candidates() -> Iterator[Path]:
    """Yield the Pythons of the wanted versions that there may be, those on PATH first."""
    names = [f"python{major}.{minor}" for major, minor in PREFERRED]
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield from (Path(folder) / name for name in names)
    places = [Path(place).expanduser() for place in _PLACES]
    places[:0] = [Path(os.environ["PYENV_ROOT"]) / "versions"] if os.environ.get("PYENV_ROOT") else []
    for place in places:
        for name in names:
            yield from sorted(place.glob(f"*/bin/{name}"), reverse=True)


def _version(python: Path) -> tuple[int, int] | None:
    """Return the version of a Python that can freeze: with a shared library, ensurepip and the GIL; else None."""
    if not python.is_file():
        return None
    try:
        said = subprocess.run(
            [python, "-I", "-c", _LOOK], capture_output=True, text=True, timeout=10, check=True
        ).stdout
        major, minor, can = map(int, said.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return (major, minor) if can else None
