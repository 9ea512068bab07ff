"""Builds the shims' binaries:  python build/spec/build.py [NAME] [--script FILE] [--form FORM] [--arch ARCH] [--force]

Freezes what NAME.spec beside this file describes (without NAME: each spec; with a script: that, whatever it imports)
into dist/, unless the binary there already is of these sources and tools.  Three forms: `image`, a static program
that starts as an image of itself; `static`, the same without its image, into dist/static/; `onefile`, into
dist/onefile/, what runs the Python of this machine, for scripts that import extension modules of others.  Of a script,
`image` means the one of these two that it can be, and the binary is in dist/.  Another architecture than this machine's
has a folder of its own, dist/ARCH/.  Work files and PyInstaller's log go to .work/build/.
"""

from __future__ import annotations

import argparse
import contextlib
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
from typing import Final, NamedTuple

import bootloader  # beside this file
import cpython
import image
import sources
import static

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
WORK: Final = ROOT / ".work" / "build"
DIST: Final = ROOT / "dist"

FORMS: Final = ("image", "static", "onefile")
# What a binary is made of, besides Python and the installed packages.
_SOURCES: Final = ("shim", "build/spec", "build/launch", "build/onefile", "examples", "pyproject.toml")
_PACKAGES: Final = ("pyinstaller", "pyinstaller-hooks-contrib", "protobuf")
_SHOWN_LINES: Final = 40
_SCRIPT_SPEC: Final = "script"
_NAME: Final = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*")
# As Debian and Kubernetes call them.
ARCHITECTURES: Final = {"amd64": "x86_64", "arm64": "aarch64"}


class BuildError(Exception):
    """The binary cannot be built; the text says why."""


class ForeignModuleError(Exception):
    """The script imports an extension module that the static bootloader has not; the text is its name."""


class Wanted(NamedTuple):
    """One binary that is to be built."""

    name: str
    form: str
    architecture: str
    script: Path | None

    @property
    def folder(self) -> Path:
        """Where its work files are."""
        return WORK / "-".join([self.form, self.architecture, self.name])

    @property
    def binary(self) -> Path:
        """Where it goes."""
        folder = DIST if self.form == "image" or self.script else DIST / self.form
        if self.architecture != cpython.machine():
            folder /= next(name for name, machine in ARCHITECTURES.items() if machine == self.architecture)
        return folder / f"containerd-shim-{self.name}-v1"


def main(arguments: list[str]) -> int:
    """Build what the command line names and return the exit status."""
    parser = argparse.ArgumentParser(prog="build.py", description="Freeze shims into dist/.")
    parser.add_argument("name", nargs="?", help="a spec's name, or with --script the name of the runtime")
    parser.add_argument("--script", type=Path, help="a shim of your own")
    parser.add_argument(
        "--form", choices=FORMS, default="image", help="what kind of program; image unless told otherwise"
    )
    parser.add_argument("--arch", choices=ARCHITECTURES, help="for which machines; this one's unless told otherwise")
    parser.add_argument("--force", action="store_true", help="build even if nothing has changed")
    asked = parser.parse_args(arguments)
    known = sorted(spec.stem for spec in HERE.glob("*.spec") if spec.stem != _SCRIPT_SPEC)
    architecture = ARCHITECTURES.get(asked.arch, cpython.machine())
    try:
        if asked.script is not None:
            if not _NAME.fullmatch(asked.name or ""):
                raise BuildError(f"{asked.name!r} cannot be part of a runtime's name: letters, digits and - can")
            if asked.name in known:
                raise BuildError(f"{asked.name} is the name of a shim of this project")
            if not asked.script.is_file():
                raise BuildError(f"there is no script {asked.script}")
        elif asked.name and asked.name not in known:
            raise BuildError(f"no shim is called {asked.name!r}; there are: {', '.join(known)}")
        if asked.form == "onefile" and architecture != cpython.machine():
            raise BuildError(f"a onefile runs this machine's Python, which is not one of {asked.arch}")
        script = asked.script.resolve() if asked.script else None
        for name in [asked.name] if asked.name else known:
            build(Wanted(name, asked.form, architecture, script), is_forced=asked.force)
    except (BuildError, sources.SourceError, cpython.BuildFailedError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        print(f"build: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def build(wanted: Wanted, *, is_forced: bool = False) -> Path:
    """Bring dist/ up to date with the sources of one shim, and return its binary.

    Raises:
        BuildError: Something is missing, or PyInstaller failed.
        SourceError, BuildFailedError: The bootloader or the image cannot be made.
    """
    if wanted.form == "onefile":
        return _build(wanted, _Onefile(), is_forced=is_forced)
    try:
        return _build(wanted, _Static(wanted), is_forced=is_forced)
    except ForeignModuleError as error:
        if wanted.script is None or wanted.architecture != cpython.machine():
            raise BuildError(f"{wanted.name} imports {error}, which is not part of the static bootloader") from None
        print(f"build: a onefile with this machine's Python, since the script imports {error}", file=sys.stderr)
        return _build(wanted._replace(form="onefile"), _Onefile(), is_forced=is_forced)


class _Static:
    """The static forms: PyInstaller runs under the Python that they have inside."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        if not any(sources.cache().glob(f"python-{cpython.machine()}/*/complete")):
            _ensure_packages("toolchain")
        if wanted.form == "image" and self._needs_emulator():
            _ensure_packages("arm64")
        self._bootloader = static.find(wanted.architecture)
        self.python = self._bootloader.build_python
        self.described = f"Python {cpython.VERSION} of its own"

    def inputs(self) -> dict[str, str]:
        """Return what decides the binary besides this project."""
        found = {"bootloader": self._bootloader.fingerprint}
        if self._wanted.script:
            packages = sorted(f"{each.name}=={each.version}" for each in metadata.distributions())
            found["packages"] = " ".join(packages)
        return found

    def environment(self) -> dict[str, str]:
        """Return the environment in which PyInstaller runs, nothing of the caller's."""
        paths = [HERE / "static_python", self._bootloader.pyinstaller, self._bootloader.protobuf, ROOT]
        if self._wanted.script:  # what its author has installed
            library = Path(sysconfig.get_path("stdlib"))  # of another Python than the one that will run it
            others = {library, library / "lib-dynload"}
            paths += [path for path in map(Path, sys.path[1:]) if path not in others and path.is_dir()]
        return {
            "PATH": os.defpath,
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join(map(str, dict.fromkeys(paths))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONNODEBUGRANGES": "1",  # the columns of a traceback are shown with its source, which is not there
            "PYINSTALLER_ZLIB_COMPRESSION_LEVEL": "9",
            "SHIM_BUILD_STATIC": str(self._bootloader.program),
        }

    def finish(self, frozen: Path, folder: Path) -> Path:
        """Return the binary, made of what PyInstaller has frozen."""
        foreign = folder / "foreign"
        if foreign.exists():
            raise ForeignModuleError(foreign.read_text())
        if self._wanted.form == "static":
            return frozen
        target = frozen.with_name(f"{frozen.name}.new")
        image.make(frozen, target, self._emulator())
        return target

    def _needs_emulator(self) -> bool:
        return self._wanted.architecture != cpython.machine()

    def _emulator(self) -> list[str]:
        if not self._needs_emulator():
            return []
        name = f"qemu-{self._wanted.architecture}"
        for each in (f"{name}-static", name):
            if found := shutil.which(each):
                return [found]
        raise BuildError(f"the image for another architecture needs {name}: on Debian install qemu-user-static")


class _Onefile:
    """The dynamic form: PyInstaller runs under the Python that runs this."""

    def __init__(self) -> None:
        _ensure_packages("onefile")
        self._linked, reason = bootloader.find(WORK)
        if reason:
            how = "with PyInstaller's own bootloader" if self._linked is None else "Python is unpacked at each launch"
            print(f"build: {how}, so launches are slower: {reason}", file=sys.stderr)
        self.python = Path(sys.executable)
        self.described = f"Python {platform.python_version()}"

    def inputs(self) -> dict[str, str]:
        """Return what decides the binary besides this project."""
        return {
            "python": f"{sys.version} {platform.machine()} {os.path.realpath(sys.base_prefix)}",
            "bootloader": str((self._linked and self._linked.folder) or ""),
            **{package: _version(package) for package in _PACKAGES},
        }

    def environment(self) -> dict[str, str]:
        """Return the environment in which PyInstaller runs."""
        _check_python()
        return {
            **os.environ,
            "SHIM_BUILD_EMBEDDED": "1" if self._linked and self._linked.is_embedded else "",
            "PYTHONPATH": os.pathsep.join([*([str(self._linked.folder)] if self._linked else []), str(ROOT)]),
            "PYINSTALLER_ZLIB_COMPRESSION_LEVEL": "0",  # modules are read one by one at launch: nothing to inflate
        }

    def finish(self, frozen: Path, folder: Path) -> Path:
        """Return the binary."""
        return frozen


def _ensure_packages(purpose: str) -> None:
    """Install what is missing, where that can be done; else it has been said, and the build says what it misses."""
    subprocess.run([str(ROOT / "packaging/system-packages"), purpose], stdin=subprocess.DEVNULL)


def _build(wanted: Wanted, form: _Static | _Onefile, *, is_forced: bool) -> Path:
    folder, binary = wanted.folder, wanted.binary
    folder.mkdir(parents=True, exist_ok=True)
    shown = binary.relative_to(ROOT)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        revision = _revision()
        inputs = {**_fingerprint(revision, wanted.script), **form.inputs()}
        stamp = folder / "stamp"
        if not is_forced and _read(stamp) == _stamp(inputs, binary):
            print(f"{shown} is up to date ({_size(binary)})")
            return binary
        began = time.monotonic()
        stamp.unlink(missing_ok=True)
        _install(form.finish(_freeze(wanted, form, revision), folder), binary)
        stamp.write_text(_stamp(inputs, binary))
        print(f"{shown}: {_size(binary)}, {form.described}, built in {time.monotonic() - began:.0f} s")
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


def _freeze(wanted: Wanted, form: _Static | _Onefile, revision: str) -> Path:
    folder = wanted.folder
    for stale in ("dist", "generated", "work"):  # nothing of an earlier build gets into this one
        shutil.rmtree(folder / stale, ignore_errors=True)
    (folder / "foreign").unlink(missing_ok=True)
    generated = folder / "generated"
    generated.mkdir()
    (generated / "shim_revision.py").write_text(f"REVISION = {revision!r}\n")
    log = folder / "log"
    command = [str(form.python), "-m", "PyInstaller", "--noconfirm"]
    command += [
        "--distpath",
        str(folder / "dist"),
        "--workpath",
        str(folder / "work"),
        str(HERE / f"{_SCRIPT_SPEC if wanted.script else wanted.name}.spec"),
    ]
    environment = {
        **form.environment(),
        "SHIM_BUILD_FOLDER": str(folder),
        "SHIM_BUILD_NAME": wanted.name,
        "SHIM_BUILD_SCRIPT": str(wanted.script or ""),
        "PYINSTALLER_CONFIG_DIR": str(folder / "cache"),
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
    return folder / "dist" / f"containerd-shim-{wanted.name}-v1"


def _install(built: Path, binary: Path) -> None:
    """Put `built` in place at once, so that nobody runs half a binary."""
    binary.parent.mkdir(parents=True, exist_ok=True)
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


def _fingerprint(revision: str, script: Path | None) -> dict[str, str]:
    """Return what of this project, and of the script's folder, decides the binary."""
    digest = hashlib.sha256()
    own = [] if script is None else _modules_beside(script)
    for path in [*_source_files(), *own]:
        with contextlib.suppress(FileNotFoundError):  # of another program, which has removed it meanwhile
            digest.update(hashlib.sha256(path.read_bytes()).digest())
            digest.update(f"{path}\0".encode())
    return {"sources": digest.hexdigest(), "revision": revision}


def _modules_beside(script: Path) -> list[Path]:
    """Return what a script may import of its own folder; not what lies in hidden ones, such as .venv."""
    found = []
    for folder, folders, files in os.walk(script.parent):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    return sorted(found)


def _source_files() -> Iterator[Path]:
    for source in _SOURCES:
        path = ROOT / source
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (file for file in files if file.suffix in {".c", ".h", ".ld", ".py", ".spec", ".toml"})


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
