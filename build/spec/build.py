"""Builds the shims' binaries:  python build/spec/build.py [NAME] [--script FILE] [--force]

Freezes what NAME.spec beside this file describes (without NAME: each spec; with a script: that, whatever it imports)
into dist/, unless the binary there already is of these sources, this Python and these packages.  Work files and
PyInstaller's log go to .work/build/NAME/.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import bootloader  # beside this file

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
WORK: Final = ROOT / ".work" / "build"
DIST: Final = ROOT / "dist"

# What a binary is made of, besides Python and the installed packages.
_SOURCES: Final = ("shim", "build/spec", "build/onefile", "examples", "pyproject.toml")
_PACKAGES: Final = ("pyinstaller", "pyinstaller-hooks-contrib", "protobuf")
_SHOWN_LINES: Final = 40
_SCRIPT_SPEC: Final = "script"
_NAME: Final = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*")


class BuildError(Exception):
    """The binary cannot be built; the text says why."""


def main(arguments: list[str]) -> int:
    """Build what the command line names and return the exit status."""
    parser = argparse.ArgumentParser(prog="build.py", description="Freeze shims into dist/.")
    parser.add_argument("name", nargs="?", help="a spec's name, or with --script the name of the runtime")
    parser.add_argument("--script", type=Path, help="a shim of your own")
    parser.add_argument("--force", action="store_true", help="build even if nothing has changed")
    asked = parser.parse_args(arguments)
    known = sorted(spec.stem for spec in HERE.glob("*.spec") if spec.stem != _SCRIPT_SPEC)
    try:
        if asked.script is not None:
            if not _NAME.fullmatch(asked.name or ""):
                raise BuildError(f"{asked.name!r} cannot be part of a runtime's name: letters, digits and - can")
            if asked.name in known:
                raise BuildError(f"{asked.name} is the name of a shim of this project")
            if not asked.script.is_file():
                raise BuildError(f"there is no script {asked.script}")
            build(asked.name, is_forced=asked.force, script=asked.script.resolve())
            return 0
        wanted = [asked.name] if asked.name else known
        for name in wanted:
            if name not in known:
                raise BuildError(f"no shim is called {name!r}; there are: {', '.join(known)}")
        for name in wanted:
            build(name, is_forced=asked.force)
    except BuildError as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    return 0


def build(name: str, *, is_forced: bool = False, script: Path | None = None) -> Path:
    """Bring dist/ up to date with the sources of one shim, and return its binary.

    Raises:
        BuildError: Something is missing, or PyInstaller failed.
    """
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    binary = DIST / f"containerd-shim-{name}-v1"
    shown = binary.relative_to(ROOT)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        revision = _revision()
        linked, reason = bootloader.find(WORK)
        if reason:
            how = "with PyInstaller's published bootloader" if linked is None else "Python is unpacked at each launch"
            print(f"build: {how}, so launches are slower: {reason}", file=sys.stderr)
        inputs = _fingerprint(revision, script, linked)
        stamp = folder / "stamp"
        if not is_forced and _read(stamp) == _stamp(inputs, binary):
            print(f"{shown} is up to date ({_size(binary)})")
            return binary
        _check_python()
        began = time.monotonic()
        stamp.unlink(missing_ok=True)
        _install(_freeze(name, folder, revision, script, linked), binary)
        stamp.write_text(_stamp(inputs, binary))
        seconds = time.monotonic() - began
        print(f"{shown}: {_size(binary)}, built with Python {platform.python_version()} in {seconds:.0f} s")
    return binary


def _check_python() -> None:
    try:
        from PyInstaller.depend.bindepend import get_python_library_path
    except ImportError:
        raise BuildError("PyInstaller is not installed here: use ./just build") from None
    if get_python_library_path() is None:
        library = sysconfig.get_config_var("INSTSONAME") or "libpython"
        raise BuildError(
            f"{sys.executable} has no shared {library}, which a binary carries: on Debian install"
            f" libpython3.{sys.version_info.minor}, with pyenv build Python with --enable-shared"
        )


def _freeze(name: str, folder: Path, revision: str, script: Path | None, linked: bootloader.Bootloader | None) -> Path:
    for stale in ("dist", "generated", "work"):  # nothing of an earlier build gets into this one
        shutil.rmtree(folder / stale, ignore_errors=True)
    generated = folder / "generated"
    generated.mkdir()
    (generated / "shim_revision.py").write_text(f"REVISION = {revision!r}\n")
    log = folder / "log"
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm"]
    command += [
        "--distpath",
        str(folder / "dist"),
        "--workpath",
        str(folder / "work"),
        str(HERE / f"{_SCRIPT_SPEC if script else name}.spec"),
    ]
    environment = {
        **os.environ,
        "SHIM_BUILD_FOLDER": str(folder),
        "SHIM_BUILD_NAME": name,
        "SHIM_BUILD_SCRIPT": str(script or ""),
        "SHIM_BUILD_EMBEDDED": "1" if linked and linked.is_embedded else "",
        "PYTHONPATH": os.pathsep.join([*([str(linked.folder)] if linked else []), str(ROOT)]),
        "PYINSTALLER_CONFIG_DIR": str(folder / "cache"),
        "PYINSTALLER_ZLIB_COMPRESSION_LEVEL": "0",  # modules are read one by one at launch: nothing to inflate
        # The same sources shall give the same bytes.
        "PYTHONHASHSEED": "0",
        "SOURCE_DATE_EPOCH": "0",
    }
    with log.open("wb") as output:
        # In a folder of no modules: Python puts the working directory first on its path.
        ended = subprocess.run(
            command, env=environment, cwd=generated, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    if ended.returncode:
        sys.stderr.writelines(log.read_text(errors="replace").splitlines(keepends=True)[-_SHOWN_LINES:])
        raise BuildError(f"PyInstaller failed; its whole log is {log.relative_to(ROOT)}")
    return folder / "dist" / f"containerd-shim-{name}-v1"


def _install(built: Path, binary: Path) -> None:
    """Put `built` in place at once, so that nobody runs half a binary."""
    binary.parent.mkdir(exist_ok=True)
    half = binary.with_name(f".{binary.name}.new")
    shutil.copyfile(built, half)
    half.chmod(0o755)
    half.replace(binary)


def _revision() -> str:
    """Return the short name of the commit that is checked out, marked if sources differ from it, or ''."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != ROOT:
            return ""  # unpacked somewhere inside another project
        commit = git("rev-parse", "--short", "HEAD")
        return f"{commit}-dirty" if git("status", "--porcelain", "--", *_SOURCES) else commit
    except (OSError, subprocess.CalledProcessError):
        return ""


def _fingerprint(revision: str, script: Path | None, linked: bootloader.Bootloader | None) -> dict[str, str]:
    """Return all that decides what the binary is."""
    digest = hashlib.sha256()
    own = [] if script is None else sorted(script.parent.rglob("*.py"))  # what it may import
    for path in [*_source_files(), *own]:
        digest.update(f"{path}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    found = {package: _version(package) for package in _PACKAGES}
    python = f"{sys.version} {platform.machine()} {os.path.realpath(sys.base_prefix)}"
    return {
        "sources": digest.hexdigest(),
        "revision": revision,
        "python": python,
        "bootloader": str((linked and linked.folder) or ""),
        **found,
    }


def _source_files() -> Iterator[Path]:
    for source in _SOURCES:
        path = ROOT / source
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (file for file in files if file.suffix in {".c", ".py", ".spec", ".toml"})


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _stamp(inputs: dict[str, str], binary: Path) -> str:
    content = binary.read_bytes() if binary.is_file() else b""
    return json.dumps({**inputs, "binary": hashlib.sha256(content).hexdigest()}, indent=1)


def _read(stamp: Path) -> str:
    return stamp.read_text() if stamp.is_file() else ""


def _size(binary: Path) -> str:
    return f"{binary.stat().st_size / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
