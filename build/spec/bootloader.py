"""PyInstaller with a bootloader that launches faster: its own sdist, unchanged, linked with build/onefile/*.c.

Rule: the installed PyInstaller stays as it is, since other things than shims may be frozen with it, and a wheel built
here would pass for the published one.  So this is a second copy, in a folder of its own below .work, made once for
all C sources, compiler, Python and version.  Where there is no static library of Python, the bootloader unpacks one as
ever, through wide buffers; where nothing can be compiled, the published bootloader serves.  Launches are slower then.
PyInstaller's manual, "Building the Bootloader": LDFLAGS and PYINSTALLER_COMPILE_BOOTLOADER are its documented ways.
"""

from __future__ import annotations

import encodings
import fcntl
import hashlib
import marshal
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple

SOURCES: Final = Path(__file__).resolve().parents[1] / "onefile"
# -O2 -g0: small and the same bytes each time.
FLAGS: Final = ("-std=c11", "-O2", "-g0", "-fPIE", "-Wall", "-Wextra", "-Werror")
CHOICE_VARIABLE: Final = "SHIM_BUILD_BOOTLOADER"  # =published takes PyInstaller's own, =unpack has no Python in it
# What the linker lets our functions take the place of, by source.
WRAPPED: Final = {"buffers": ("fopen", "fclose"), "embed": ("dlopen", "pyi_archive_open")}
_LIBC: Final = ("m", "dl", "pthread", "rt", "util")
# What Python imports before it can read an archive.
EMBEDDED: Final = ("encodings", "encodings.aliases", "encodings.utf_8")


class Bootloader(NamedTuple):
    """A PyInstaller with a bootloader linked here: the folder for PYTHONPATH, and whether Python is in it."""

    folder: Path
    is_embedded: bool


def find(work: Path) -> tuple[Bootloader | None, str]:
    """Return the best there can be here and '' or why it is not better; None for the published one."""
    wanted = os.environ.get(CHOICE_VARIABLE)
    if wanted == "published":
        return None, f"{CHOICE_VARIABLE}=published"
    if sys.platform != "linux":
        return None, "it is linked for Linux alone"
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        return None, "there is no C compiler"
    library = None if wanted == "unpack" else _static_library()
    reason = f"{CHOICE_VARIABLE}=unpack" if wanted == "unpack" else "this Python has no static library"
    if library is not None:
        folder, reason = _find(work, compiler, library)
        if folder is not None:
            return Bootloader(folder, is_embedded=True), ""
    folder, worse = _find(work, compiler, None)
    return (None, worse) if folder is None else (Bootloader(folder, is_embedded=False), f"it unpacks Python: {reason}")


def _static_library() -> Path | None:
    """Return the static library of this Python, if there is one along with its headers."""
    folder, name = Path(sysconfig.get_config_var("LIBPL") or ""), sysconfig.get_config_var("LIBRARY") or ""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    # Debian's plain one is for programs that are not position-independent.
    names = (f"{name.removesuffix('.a')}-pic.a", name) if name.endswith(".a") and headers.is_file() else ()
    return next((folder / each for each in names if (folder / each).is_file()), None)


def _find(work: Path, compiler: str, library: Path | None) -> tuple[Path | None, str]:
    try:
        version = metadata.version("pyinstaller")
        described = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    except (metadata.PackageNotFoundError, subprocess.CalledProcessError, OSError) as error:
        return None, str(error)
    texts = [path.read_bytes() for path in (*sorted(SOURCES.glob("*.c")), Path(__file__))]
    digest = hashlib.sha256(b"\0".join([*texts, described]))
    digest.update(f"{version} {platform.machine()} {compiler}".encode())
    if library is not None:
        digest.update(f"{sys.version} {library} {library.stat().st_mtime_ns}".encode())
    folder = work / "bootloader" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "site").is_dir():
            try:
                _make(folder, compiler, version, library)
            except (subprocess.CalledProcessError, OSError, StopIteration, tarfile.TarError, EOFError):
                return None, f"PyInstaller's bootloader could not be built here; the log is {folder / 'log'}"
    return folder / "site", ""


def _make(folder: Path, compiler: str, version: str, library: Path | None) -> None:
    half = folder / "half"
    shutil.rmtree(half, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--no-input", "--no-cache-dir"]
    sdist = ["--no-deps", "--no-binary", "pyinstaller"]
    wanted = f"pyinstaller=={version}"
    with (folder / "log").open("wb") as log:

        def run(command: list[str], environment: dict[str, str] | None = None) -> None:
            subprocess.run(
                command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True
            )

        names, flags, linked = ["buffers"], [], []
        if library is not None:
            run([*pip, "download", "--dest", str(folder), *sdist, wanted])
            wanted = str(next(folder.glob("*.tar.gz")))
            flags += [f"-I{_unpack_headers(wanted, folder / 'headers')}", f"-I{sysconfig.get_paths()['include']}"]
            flags += ["-DHAVE_STDBOOL_H=1"]  # as its own build finds out
            _write_modules(folder / "modules.c")
            run([compiler, *FLAGS, *flags, "-c", "modules.c", "-o", "modules.o"])
            light = folder / library.name
            run(["strip", "--strip-debug", "-o", str(light), str(library)])
            names.append("embed")
            linked += [str(folder / "modules.o"), *_link(light)]
        for name in names:
            run([compiler, *FLAGS, *flags, "-c", str(SOURCES / f"{name}.c"), "-o", f"{name}.o"])
        linked[:0] = [str(folder / f"{name}.o") for name in names]
        linked += [f"-Wl,--wrap={function}" for name in names for function in WRAPPED[name]]
        # Without the cache: pip would keep the altered wheel, and give it to everybody who asks for this version.
        run(
            [*pip, "install", "--target", str(half), *sdist, wanted],
            {
                **os.environ,
                "CC": compiler,
                "LDFLAGS": " ".join(linked),
                "PYINSTALLER_COMPILE_BOOTLOADER": "1",
                "PYI_STATIC_ZLIB": "1",  # its own copy: one library less to find, and no headers needed here
            },
        )
    half.rename(folder / "site")


def _unpack_headers(path: str, target: Path) -> Path:
    """Unpack the headers of the bootloader from its sdist, and return where they are."""
    target.mkdir(exist_ok=True)
    with tarfile.open(path) as sdist:
        for member in sdist:
            file = sdist.extractfile(member) if "/bootloader/src/" in member.name else None
            if file is not None and member.name.endswith(".h"):
                (target / Path(member.name).name).write_bytes(file.read())
    return target


def _write_modules(path: Path) -> None:
    """Write the table of the modules that are compiled in."""
    codes = {}
    for name in EMBEDDED:
        file = Path(encodings.__path__[0], f"{name.partition('.')[2] or '__init__'}.py")
        code = compile(file.read_bytes(), f"<frozen {name}>", "exec", dont_inherit=True, optimize=2)
        codes[name] = marshal.dumps(code)
    path.write_text(module_table(codes))


def module_table(codes: Mapping[str, bytes]) -> str:
    """Return the C source of `embedded_modules`: marshalled code by the names of modules, of which one is a package."""
    arrays, rows = [], []
    for number, (name, code) in enumerate(codes.items()):
        arrays.append(f"static const unsigned char code_{number}[] = {{{','.join(map(str, code))}}};\n")
        row = f'.name = "{name}", .code = code_{number}, .size = {len(code)}, .is_package = {int("." not in name)}'
        rows.append(f"    {{{row}}},\n")
    table = f"const struct _frozen embedded_modules[] = {{\n{''.join(rows)}    {{.name = NULL}},\n}};\n"
    declared = "extern const struct _frozen embedded_modules[];\n"
    return f"#include <Python.h>\n{''.join(arrays)}{declared}{table}"


def _link(library: Path) -> Iterator[str]:
    """Yield what links Python, with all that extension modules may use of it.

    At a fixed address, as Debian's own Python, and Go's shim: else 40,000 places would be changed at each launch, which
    takes 0.7 ms, and the pages that they are on would be nobody else's.
    """
    yield from ("-no-pie", "-Wl,--whole-archive", str(library), "-Wl,--no-whole-archive")
    yield from ("-Wl,--export-dynamic-symbol=Py*", "-Wl,--export-dynamic-symbol=_Py*")
    words = " ".join(sysconfig.get_config_var(name) or "" for name in ("LIBS", "SYSLIBS", "MODLIBS")).split()
    names = [word.removeprefix("-l") for word in dict.fromkeys(words) if word.startswith("-l")]
    # A host has libc and its parts; all else goes in.
    yield from (f"-l:lib{name}.a" for name in names if name not in _LIBC)
    yield from (f"-l{name}" for name in _LIBC)
