"""PyInstaller with the fast path in its bootloader: its own sdist, unchanged, linked with build/fastpath/*.c.

Rule: the installed PyInstaller stays as it is, since other things than shims may be frozen with it, and a wheel built
here would pass for the published one.  So this is a second copy, in a folder of its own below .work, made once for
all C sources, compiler and version.  Where it cannot be made, the plain bootloader serves: launches are slower then.
PyInstaller's manual, "Building the Bootloader": LDFLAGS and PYINSTALLER_COMPILE_BOOTLOADER are its documented ways.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Final

SOURCES: Final = tuple(Path(__file__).resolve().parents[1] / "fastpath" / name for name in ("fastpath.c", "buffers.c"))
# -O2 -g0: small and the same bytes each time.  The bootloader is a position-independent program.
FLAGS: Final = ("-std=c11", "-O2", "-g0", "-fPIE", "-Wall", "-Wextra", "-Werror")
# What buffers.c takes the place of.
WRAPPED: Final = ("fopen", "fclose")
OFF_VARIABLE: Final = "SHIM_BUILD_FASTPATH"  # =off builds with the plain bootloader


def find(work: Path) -> tuple[Path | None, str]:
    """Return the folder that has this PyInstaller, for PYTHONPATH, and ''; or None and why the plain one has to do."""
    if os.environ.get(OFF_VARIABLE) == "off":
        return None, f"{OFF_VARIABLE}=off"
    if sys.platform != "linux":
        return None, "the fast path is for Linux"
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        return None, "there is no C compiler"
    try:
        version = metadata.version("pyinstaller")
        described = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    except (metadata.PackageNotFoundError, subprocess.CalledProcessError, OSError) as error:
        return None, str(error)
    texts = [path.read_bytes() for path in (*SOURCES, Path(__file__))]
    digest = hashlib.sha256(b"\0".join([*texts, described]))
    digest.update(f"{version} {platform.machine()} {compiler}".encode())
    folder = work / "bootloader" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "site").is_dir():
            try:
                _make(folder, compiler, version)
            except (subprocess.CalledProcessError, OSError):
                return None, f"PyInstaller's bootloader could not be built here; the log is {folder / 'log'}"
    return folder / "site", ""


def _make(folder: Path, compiler: str, version: str) -> None:
    half = folder / "half"
    objects = [folder / f"{source.stem}.o" for source in SOURCES]
    shutil.rmtree(half, ignore_errors=True)
    # Without the cache: pip would keep the altered wheel, and give it to everybody who asks for this version.
    install = [sys.executable, "-m", "pip", "install", "--no-input", "--no-cache-dir", "--no-deps"]
    install += ["--no-binary", "pyinstaller", "--target", str(half), f"pyinstaller=={version}"]
    environment = {
        **os.environ,
        "CC": compiler,
        "LDFLAGS": " ".join([*map(str, objects), *(f"-Wl,--wrap={name}" for name in WRAPPED)]),
        "PYINSTALLER_COMPILE_BOOTLOADER": "1",
        "PYI_STATIC_ZLIB": "1",  # its own copy: one library less to find at each launch, and no headers needed here
    }
    with (folder / "log").open("wb") as log:
        compiles = [
            [compiler, *FLAGS, "-c", str(source), "-o", str(built)]
            for source, built in zip(SOURCES, objects, strict=True)
        ]
        for command in (*compiles, install):
            subprocess.run(
                command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True
            )
    half.rename(folder / "site")
