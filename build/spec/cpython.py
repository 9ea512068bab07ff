"""CPython as a static library for musl, with zlib and all of its own extension modules that need nothing else.

Rule: built once for each architecture by the pinned compiler from pinned sources, in the user's cache folder; which
machine, folder or Python runs the build does not show in the result.  `LEFT_OUT` are modules that need libraries which
no shim should carry; a shim that imports one is frozen in the dynamic form.
Spec: CPython's README.rst and Tools/wasm (configure with a cache for what cannot be run); launch.md.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import sources  # beside this file

VERSION: Final = "3.13"
ARCHITECTURES: Final = ("x86_64", "aarch64")
# For each: the oldest processor that is supported, and what must not depend on the machine that builds.
_MACHINE_FLAGS: Final = {"x86_64": ["-mcpu=x86_64"], "aarch64": ["-mcpu=generic"]}
FLAGS: Final = (
    "-O2",
    "-g0",
    "-fno-PIC",
    "-fno-pie",
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
    "-fno-sanitize=undefined",
    "-fno-stack-protector",
    "-ffunction-sections",  # static.py puts those that a launch calls side by side
)
# To be raised with every change of `_build` that its commands do not show.
_RECIPE: Final = "1"
LEFT_OUT: Final = (
    *("_bz2", "_ctypes", "_ctypes_test", "_curses", "_curses_panel", "_dbm", "_gdbm", "_hashlib", "_lzma", "_ssl"),
    *("_sqlite3", "_tkinter", "_uuid", "readline", "_interpreters", "_interpchannels", "_interpqueues"),
    *("_xxtestfuzz", "xxlimited", "xxlimited_35", "xxsubtype"),
    # Three quarters of a megabyte of tables for East Asian encodings other than Unicode.
    *("_codecs_cn", "_codecs_hk", "_codecs_iso2022", "_codecs_jp", "_codecs_kr", "_codecs_tw", "_multibytecodec"),
)
# What a configure for another machine cannot run; the same for every 64-bit little-endian Linux with musl.  Everything
# else it takes from the configure of the machine that builds.
_NOT_SHARED: Final = ("ac_cv_env_", "ac_cv_build", "ac_cv_host", "ac_cv_prog_", "ac_cv_path_", "ac_cv_gcc_asm_")
_ZLIB_FILES: Final = (
    *("adler32", "compress", "crc32", "deflate", "gzclose", "gzlib", "gzread", "gzwrite", "infback", "inffast"),
    *("inflate", "inftrees", "trees", "uncompr", "zutil"),
)


class BuildFailedError(Exception):
    """A step of the toolchain failed; the text says which, and where its log is."""


class Python(NamedTuple):
    """A built CPython: `folder` holds build/ (libraries, headers), source/, and what can be run, bin/ and lib/."""

    architecture: str
    folder: Path

    @property
    def executable(self) -> Path:
        """Path of the interpreter; it runs on machines of its architecture."""
        return self.folder / "bin" / f"python{VERSION}"

    @property
    def libraries(self) -> list[Path]:
        """Paths of what has to be linked."""
        build = self.folder / "build"
        return [build / f"libpython{VERSION}.a", build / "Modules/_hacl/libHacl_Hash_SHA2.a", self.folder / "libz.a"]

    @property
    def more_libraries(self) -> list[Path]:
        """Paths of the libraries of its modules, of which what is used has to be linked."""
        build = self.folder / "build"
        return sorted([*build.glob("Modules/expat/*.a"), *build.glob("Modules/_decimal/libmpdec/*.a")])

    @property
    def includes(self) -> list[str]:
        """The compiler's flags for its headers, the internal ones too."""
        include = self.folder / "source" / "Include"
        return [f"-I{self.folder / 'build'}", f"-I{include}", f"-I{include / 'internal'}"]


class Compiler:
    """The pinned compiler, unpacked: wrapper programs `cc`, `ar`, `ranlib` for one architecture in a folder."""

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture
        wheel = sources.get(sources.compiler())
        self.folder = sources.cache() / "compiler" / wheel.name.split("-py3")[0]
        with locked(self.folder.parent):
            if not self.folder.is_dir():
                _unpack_wheel(wheel, self.folder)
        self.zig = self.folder / "ziglang" / "zig"

    def environment(self) -> dict[str, str]:
        """Return the whole environment of a build step: nothing of the caller's but where it may write."""
        libc_cache = str(sources.cache() / "compiler" / "libc")
        return {
            "PATH": os.pathsep.join([str(self.wrappers()), os.environ.get("PATH", os.defpath)]),
            "LC_ALL": "C",
            "HOME": str(self.folder),
            "SOURCE_DATE_EPOCH": "315532800",  # 1980: the first day that a ZIP file can name
            "PYTHONHASHSEED": "0",
            "ZIG_GLOBAL_CACHE_DIR": libc_cache,
            "ZIG_LOCAL_CACHE_DIR": libc_cache,
        }

    def wrappers(self) -> Path:
        """Return the folder of the wrapper programs, whose names are the same wherever the compiler lies."""
        folder = self.folder / "bin" / self.architecture
        machine = " ".join(_MACHINE_FLAGS[self.architecture])
        texts = {
            # CPython's configure asks for Debian's name of the architecture, which this compiler does not know.
            "cc": f'[ "$1" = --print-multiarch ] && exit 0\n'
            f'exec "{self.zig}" cc -target {self.architecture}-linux-musl {machine} -fno-sanitize=undefined "$@"',
            "ar": f'exec "{self.zig}" ar "$@"',
            "ranlib": f'exec "{self.zig}" ranlib "$@"',
            "ld": f'exec "{self.zig}" ld.lld "$@"',
            "readelf": "exit 1",
        }
        with locked(self.folder):
            for name, text in texts.items():
                path = folder / name
                wanted = f"#!/bin/sh\n{text}\n"
                if not path.is_file() or path.read_text() != wanted:
                    folder.mkdir(parents=True, exist_ok=True)
                    path.write_text(wanted)
                    path.chmod(0o755)
        return folder

    def describe(self) -> str:
        """Return what decides its results."""
        return " ".join([sources.compiler().place, *_MACHINE_FLAGS[self.architecture], *FLAGS])


def machine() -> str:
    """Return the architecture of the machine that builds."""
    return platform.machine()


def find(architecture: str) -> Python:
    """Return CPython for an architecture, built first if it has not been yet, with a line of progress on stderr.

    Raises:
        SourceError: An input cannot be had.
        BuildFailedError: It cannot be compiled.
    """
    native = None if architecture == machine() else find(machine())
    compiler = Compiler(architecture)
    inputs = (source.sha256 for source in (sources.PYTHON, sources.ZLIB, sources.compiler()))
    recipe = [_RECIPE, compiler.describe(), *_configuration(architecture, None), *_ZLIB_FILES, *inputs]
    digest = hashlib.sha256("\0".join(recipe).encode()).hexdigest()
    folder = sources.cache() / f"python-{architecture}" / digest[:16]
    with locked(folder):
        if not (folder / "complete").is_file():
            _build(architecture, folder, compiler, native)
            (folder / "complete").touch()
    return Python(architecture, folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, whose parents are made: one build at a time works in it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(architecture: str, folder: Path, compiler: Compiler, native: Python | None) -> None:
    for stale in ("build", "source", "bin", "lib", "zlib"):
        shutil.rmtree(folder / stale, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    unpack(sources.get(sources.PYTHON), folder / "source")
    unpack(sources.get(sources.ZLIB), folder / "zlib")
    (folder / "build").mkdir()
    environment = compiler.environment()
    with Steps(f"CPython {VERSION} for {architecture}", folder / "log", environment) as steps:
        names = [f"{name}.o" for name in _ZLIB_FILES]
        for name in _ZLIB_FILES:  # this compiler takes one file at a time
            steps.run("zlib", ["cc", *FLAGS, "-DHAVE_UNISTD_H", "-c", f"{name}.c"], folder / "zlib")
        steps.run("zlib", ["ar", "rcsD", "../libz.a", *names], folder / "zlib")
        if native is not None:
            _take_answers(native, folder / "build" / "config.cache")
        steps.run("configure", _configuration(architecture, native), folder / "build", parts=900)
        steps.run("compile", ["make", f"-j{os.cpu_count() or 1}", "all"], folder / "build", parts=420)
    _make_runnable(folder)


def _configuration(architecture: str, native: Python | None) -> list[str]:
    flags = " ".join(FLAGS)
    command = [
        "../source/configure",
        "--cache-file=config.cache",
        "CC=cc",
        "AR=ar",
        "RANLIB=ranlib",
        "READELF=readelf",
        f"CFLAGS={flags}",
        f"OPT=-DNDEBUG {flags}",
        "CCSHARED= ",
        "LDFLAGS=-static",
        "LINKFORSHARED= ",
        "MODULE_BUILDTYPE=static",
        "ZLIB_CFLAGS=-I../zlib",
        "ZLIB_LIBS=../libz.a",
        "--prefix=/usr",
        "--disable-shared",
        "--disable-test-modules",
        "--without-mimalloc",
        "--without-doc-strings",
        "--with-static-libpython",
        "--with-ensurepip=no",
        "--with-pkg-config=no",
        "ac_cv_file__dev_ptmx=yes",
        "ac_cv_file__dev_ptc=no",
        *(f"py_cv_module_{module}=n/a" for module in LEFT_OUT),
    ]
    if native is None:
        return command
    command += [f"--host={architecture}-linux-musl", f"--build={native.architecture}-linux-musl"]
    return [*command, f"--with-build-python={native.executable}"]


def _take_answers(native: Python, path: Path) -> None:
    """Write the answers of the native configure that hold for a machine whose programs cannot be run here."""
    lines = (native.folder / "build" / "config.cache").read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith(_NOT_SHARED)) + "\n")


def _make_runnable(folder: Path) -> None:
    """Lay out what the interpreter finds its library by, without a copy of it."""
    (folder / "bin").mkdir()
    shutil.copyfile(folder / "build" / "python", folder / "bin" / f"python{VERSION}")
    (folder / "bin" / f"python{VERSION}").chmod(0o755)
    library = folder / "lib" / f"python{VERSION}"
    shutil.copytree(folder / "source" / "Lib", library, ignore=shutil.ignore_patterns("test", "idlelib", "__pycache__"))
    (library / "lib-dynload").mkdir()
    for path in (folder / "build").glob("build/lib.*/_sysconfigdata*.py"):
        shutil.copyfile(path, library / path.name)


def unpack(archive: Path, target: Path) -> None:
    """Unpack a tar file, whose one folder becomes `target`."""
    half = target.with_name(f".{target.name}.half")
    for stale in (half, target):
        shutil.rmtree(stale, ignore_errors=True)
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(half, filter="data")
        else:  # Python before 3.11.4; the archive's hash is pinned
            tar.extractall(half)  # noqa: S202
    (only,) = half.iterdir()
    only.rename(target)
    half.rmdir()


def _unpack_wheel(wheel: Path, target: Path) -> None:
    half = target.with_name(f".{target.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(half)  # noqa: S202  (its hash is pinned)
    (half / "ziglang" / "zig").chmod(0o755)
    half.rename(target)


class Steps:
    """Runs commands with one log, and shows on stderr how far they are: one line, renewed on a terminal."""

    def __init__(self, what: str, log: Path, environment: dict[str, str]) -> None:
        self._what = what
        self._log = log
        self._environment = environment
        self._began = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def __enter__(self) -> Steps:
        self._log.write_bytes(b"")
        self._show("begins")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        if kind is None:
            self._show(f"done in {time.monotonic() - self._began:.0f} s", is_last=True)

    def run(self, step: str, command: list[str], folder: Path, parts: int = 1) -> None:
        """Run one command; `parts` is about how many lines it prints, by which progress is told.

        Raises:
            BuildFailedError: It ended with another code than 0.
        """
        shown = -1
        with self._log.open("ab") as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            assert process.stdout is not None  # noqa: S101
            for number, line in enumerate(process.stdout):
                log.write(line)
                tenth = min(9, number * 10 // max(parts, 1))
                if parts > 1 and tenth != shown:
                    shown = tenth
                    self._show(f"{step} {tenth * 10} %")
        if process.wait():
            self._show("failed", is_last=True)
            last = self._log.read_text(errors="replace").splitlines()[-15:]
            raise BuildFailedError("\n".join([*last, f"{self._what}: {step} failed; the whole log is {self._log}"]))

    def _show(self, text: str, *, is_last: bool = False) -> None:
        if self._is_terminal:
            sys.stderr.write(f"\r\033[Kbuild: {self._what}: {text}" + ("\n" if is_last else ""))
        else:
            sys.stderr.write(f"build: {self._what}: {text}\n")
        sys.stderr.flush()
