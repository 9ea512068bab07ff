"""What a static shim is made of besides this project: each input by name and SHA-256, fetched once.

Rule: nothing is used whose hash is not the pinned one, wherever it came from.  Fetched files stay in the user's cache
folder, outside the clone.  CPython, zlib and dlmalloc come from Debian's archive by apt, the rest from PyPI by pip; a
folder named in SHIM_BUILD_SOURCES is looked into first, and then neither is needed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

import platformdirs

from shim.testing import releases

FOLDER_VARIABLE: Final = "SHIM_BUILD_SOURCES"
CACHE_VARIABLE: Final = "SHIM_BUILD_CACHE"
_APT_HELPER: Final = "/usr/lib/apt/apt-helper"


class SourceError(Exception):
    """An input can be neither found nor fetched, or is another one; the text names it."""


class Source(NamedTuple):
    """One input: where it comes from, `requirement` for pip or the path in Debian's archive."""

    file: str
    sha256: str
    place: str
    is_wheel: bool = True


PYTHON: Final = Source(
    "python3.13_3.13.5.orig.tar.xz",
    "93e583f243454e6e9e4588ca2c2662206ad961659863277afcdb96801647d640",
    "pool/main/p/python3.13/python3.13_3.13.5.orig.tar.xz",
)
ZLIB: Final = Source(
    "zlib_1.3.dfsg+really1.3.1.orig.tar.gz",
    "60dd315c07f616887caa029408308a018ace66e3d142726a97db164b3b8f69fb",
    "pool/main/z/zlib/zlib_1.3.dfsg+really1.3.1.orig.tar.gz",
)
DLMALLOC: Final = Source(  # libffi keeps Doug Lea's allocator; nothing else of it is used
    "libffi_3.4.8.orig.tar.gz",
    "cbb7f0b3b095dc506387ec1e35b891bfb4891d05b90a495bc69a10f2293f80ff",
    "pool/main/libf/libffi/libffi_3.4.8.orig.tar.gz",
)
PROTOBUF: Final = Source(
    "protobuf-6.33.6.tar.gz",
    "a6768d25248312c297558af96a9f9c929e8c4cee0659cb07e780731095f38135",
    "protobuf==6.33.6",
    is_wheel=False,
)
PYINSTALLER: Final = Source(
    "pyinstaller-6.22.3.tar.gz",
    "05eb2f5615503e72939a7224d68b4aff572c6b0438ee4a17d0a4b481f399362d",
    "pyinstaller==6.22.3",
    is_wheel=False,
)
# What PyInstaller itself imports; pure Python, the same for all machines.
TOOLS: Final = (
    Source(
        "altgraph-0.17.5-py2.py3-none-any.whl",
        "f3a22400bce1b0c701683820ac4f3b159cd301acab067c51c653e06961600597",
        "altgraph==0.17.5",
    ),
    Source(
        "packaging-26.4-py3-none-any.whl",
        "81383611a09c1bc0b08b76e0fd5829d7c6824c65b27a6aee339da133f4233ea2",
        "packaging==26.4",
    ),
    Source(
        "pyinstaller_hooks_contrib-2026.9-py3-none-any.whl",
        "fb3e67dd64122561724c48ad0366ac9e8c16e638b63bf7d85de03bf3fdbf06c3",
        "pyinstaller-hooks-contrib==2026.9",
    ),
    Source(
        "setuptools-84.2.1-py3-none-any.whl",
        "ca140b45d5325a9478f880e351484f62fef15f336462e449ca0c03c873d589c2",
        "setuptools==84.2.1",
    ),
)
# Clang, LLD and musl's sources in one wheel, which compiles for every architecture.  Clang 18, since 19 lost speed in
# Python's main loop.
COMPILERS: Final = {
    "x86_64": Source(
        "ziglang-0.13.0-py3-none-manylinux_2_12_x86_64.manylinux2010_x86_64.musllinux_1_1_x86_64.whl",
        "3ce0c9f16547e5d61b32e0d226926e9a2552ef4b91fccf7ab5ea1a623a77824b",
        "ziglang==0.13.0",
    ),
    "aarch64": Source(
        "ziglang-0.13.0-py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64.whl",
        "5714a4d46f9246ba6180a0930e23df2bc8bc26e62b5fe0dc798b4afca1903308",
        "ziglang==0.13.0",
    ),
}


def cache() -> Path:
    """Return the folder, outside any clone, where inputs and what is built of them stay."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else platformdirs.user_cache_path("containerd-shim") / "build"


def compiler() -> Source:
    """Return the compiler for the machine that builds.

    Raises:
        SourceError: There is none for it.
    """
    try:
        return COMPILERS[platform.machine()]
    except KeyError:
        raise SourceError(f"a {platform.machine()} machine cannot build static shims, only use them") from None


def get(source: Source) -> Path:
    """Return the file of an input, fetched if need be.

    Raises:
        SourceError: It cannot be had, or its hash is another one.
    """
    folder = cache() / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / source.file
    if target.is_file() and _is_right(target, source):
        return target
    named = os.environ.get(FOLDER_VARIABLE)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as name:
        half = Path(name) / source.file
        if named:
            given = Path(named) / source.file
            if not given.is_file():
                raise SourceError(f"{FOLDER_VARIABLE}={named} has no {source.file}")
            shutil.copyfile(given, half)
        elif source.place.startswith("pool/"):
            _fetch_from_debian(source, half)
        else:
            _fetch_from_pypi(source, half.parent)
        if not half.is_file():
            raise SourceError(f"{source.place} came under another name than {source.file}")
        if not _is_right(half, source):
            raise SourceError(f"{source.file} is not what is pinned: its SHA-256 is another one than {source.sha256}")
        half.replace(target)
    return target


def _is_right(path: Path, source: Source) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == source.sha256


def _fetch_from_debian(source: Source, target: Path) -> None:
    try:
        mirror, _ = releases.mirror()
    except releases.ReleaseError as error:
        raise SourceError(
            f"cannot fetch {source.file}: {error}; {FOLDER_VARIABLE} names a folder that has it"
        ) from None
    _run([_APT_HELPER, "download-file", f"{mirror.rstrip('/')}/{source.place}", str(target)], source)


def _fetch_from_pypi(source: Source, folder: Path) -> None:
    kind = "--only-binary" if source.is_wheel else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", kind, ":all:"]
    if source.is_wheel and not source.file.endswith("-any.whl"):
        for tag in source.file.removesuffix(".whl").rpartition("-")[2].split("."):
            command += ["--platform", tag]
    # An sdist is asked for its name: by the setuptools that is here, not by whichever is the newest.
    command += [] if source.is_wheel else ["--no-build-isolation"]
    # PyInstaller's would compile a bootloader first, for which there may be no compiler: it has one for this platform.
    environment = {**os.environ, "PYI_PLATFORM": "Windows-64bit-intel"}
    _run([*command, "--dest", str(folder), source.place], source, environment)


def _run(command: list[str], source: Source, environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise SourceError(
            f"cannot fetch {source.file}: there is no {error.filename}; {FOLDER_VARIABLE} names a folder that has it"
        ) from None
    if done.returncode:
        raise SourceError(f"cannot fetch {source.file}:\n{(done.stderr or done.stdout).strip()}")
