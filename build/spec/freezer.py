"""How every shim is frozen: by PyInstaller, in one of two forms.

The static form is the archive behind the static bootloader (static.py); image.py makes the image of it.  The dynamic
form is a onefile for shims with extension modules of others: Python is in its bootloader (build/onefile/embed.c) where
that can be compiled, and then nothing is unpacked.
Rule: what a shim does not need stays out.  Loaded by the specs, inside PyInstaller; build.py starts that and says
through the environment where to work.
"""

from __future__ import annotations

import _imp
import encodings
import os
import pkgutil
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, TypeAlias

from bootloader import EMBEDDED  # beside this file
from elf import needed
from PyInstaller import compat
from PyInstaller.building import api, build_main
from PyInstaller.building.build_main import Analysis
from PyInstaller.building.utils import process_collected_binary
from PyInstaller.depend import bindepend

from shim.runtime.daemon import UNPACK_MARKER

Toc: TypeAlias = list[tuple[str, str, str]]  # name in the binary, source, kind

# By which embed.c knows an archive that it shall load from.
MARK: Final = "shim-embedded"

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent

# Not to be seen by reading imports: what protobuf's C extension is found by and imports itself.
_HIDDEN: Final = [
    "google._upb._message",
    "google.protobuf.internal.well_known_types",
    "shim_revision",
]

# Modules of Python that need a library which the static bootloader has not, when a shim itself imports them.  Python's
# own modules do without: asyncio without ssl, shutil without bz2 and lzma.
_NEED_LIBRARIES: Final = frozenset(
    {
        "bz2",
        "ctypes",
        "curses",
        "dbm.gnu",
        "http.client",
        "lzma",
        "readline",
        "sqlite3",
        "ssl",
        "tkinter",
        "urllib.request",
    }
)

# What the static bootloader has inside, and what stands in for that elsewhere.
_BUILT_IN: Final = frozenset({"google._upb._message"})
_TWINS: Final = ("shim.host.libc_ctypes",)

# All that a shim's text is ever decoded with; protobuf escapes bytes.  The interpreter itself runs in UTF-8 mode.
_CODECS: Final = {"aliases", "ascii", "latin_1", "raw_unicode_escape", "unicode_escape", "utf_8"}

# Of use to a terminal, a debugger, another system or a test; or optional to a module that does without.
_EXCLUDED: Final = [
    "_bz2",
    "_decimal",
    "_hashlib",
    "_lzma",
    "_ssl",
    "argparse",
    "ast",
    "asyncio",
    "bz2",
    "concurrent",
    "ctypes.util",
    "curses",
    "dataclasses",
    "dis",
    "doctest",
    "email",
    "gettext",
    "grp",
    "http",
    "importlib._bootstrap",
    "importlib._bootstrap_external",
    "importlib.metadata",
    "importlib.readers",
    "importlib.resources",
    "inspect",
    "logging",
    "lzma",
    "multiprocessing",
    "pdb",
    "pydoc",
    "readline",
    "resource",
    "shim.aio",
    "shim.cli",
    "shim.runtime.aio_daemon",
    "shim.runtime.aio_shim",
    "shim.runtime.log_driver",
    "shim.runtime.log_handler",
    "shim.runtime.otel",
    "shim.testing",
    "shim.ttrpc.aio",
    "shim.ttrpc.codegen",
    "site",
    "ssl",
    "subprocess",
    "sysconfig",
    "tarfile",
    "tokenize",
    "tracemalloc",
    "unicodedata",
    "unittest",
    "urllib",
    "xml",
    "zipfile",
]

# For shims that log by Python's `logging`.
LOGGING: Final = frozenset({"logging", "shim.runtime.log_handler", "tokenize"})
# For shims whose imports nobody here knows: all that is excluded but these, which their imports may bring along.
ANYTHING: Final = frozenset(_EXCLUDED) - {"shim.cli", "shim.testing", "shim.ttrpc.codegen", "doctest", "pdb", "pydoc"}
# For shims on asyncio: as those, less TLS, which asyncio does without.
ASYNCIO: Final = ANYTHING - {"ssl", "_ssl", "_hashlib", "_bz2", "_lzma", "_decimal", "shim.runtime.otel"}


def freeze(name: str, script: str, keeps: frozenset[str] = frozenset()) -> None:
    """Freeze `script` (a path below the project, or an absolute one) into the onefile binary `name`.

    `keeps` names modules that other shims do without, and this one needs.
    """
    if os.environ.get("SHIM_BUILD_STATIC"):
        _freeze_static(name, script, keeps)
        return
    try:
        from google._upb import _message  # noqa: F401
    except ImportError:
        raise SystemExit("protobuf is not installed here, or not with its C extension, which a shim needs") from None
    is_embedded = bool(os.environ["SHIM_BUILD_EMBEDDED"])
    generated = Path(os.environ["SHIM_BUILD_FOLDER"]) / "generated"
    marker = generated / UNPACK_MARKER
    marker.touch()
    # The interpreter reads base_library.zip before anything of ours runs: so it has only what is needed by then, and
    # the other modules of Python go where all modules go.
    compat.PY3_BASE_MODULES.clear()
    if not is_embedded:
        compat.PY3_BASE_MODULES.add("encodings")
    api.get_bootstrap_modules = _bootstrap_modules
    analysis = _analyse(script, keeps, generated, _HIDDEN, datas=[(str(marker), ".")])
    # Those that are compiled into the interpreter would never be read.
    compiled_in = EMBEDDED if is_embedded else ()
    modules = [entry for entry in analysis.pure if not _imp.is_frozen(entry[0]) and entry[0] not in compiled_in]
    if not is_embedded:  # base_library.zip goes when `start` ends, and a daemon may still import a codec
        kept = [codec for codec in _codecs() if f"encodings.{codec}" not in _unused_codecs(keeps)]
        modules += [(f"encodings.{codec}", f"{encodings.__path__[0]}/{codec}.py", "PYMODULE-2") for codec in kept]
    modules.append(("shim_extensions", str(_write_extensions(analysis.binaries, generated)), "PYMODULE-2"))
    binaries, datas = _without_cpp(analysis.binaries, generated), analysis.datas
    if is_embedded:
        binaries = [entry for entry in binaries if not entry[0].startswith("libpython")]
        datas = [entry for entry in datas if entry[0] != "base_library.zip"]
    boot = (HERE / "boot.py").read_text()
    if is_embedded and [entry[0] for entry in datas] == [UNPACK_MARKER] and _are_modules(binaries):
        binaries, datas, places = _as_libraries(binaries, marker)
        boot = boot.replace("_PLACES: dict[str, str] = {}", f"_PLACES = {places}")
    (generated / "boot.py").write_text(boot)
    api.EXE(
        api.PYZ(modules),
        [entry for entry in analysis.scripts if not entry[0].startswith("pyi_rth_")],
        binaries,
        datas,
        [("X utf8", "", "OPTION")],  # a locale has no say in a daemon's file names
        name=name,
        cdict=dict.fromkeys(("BINARY", "DATA", "EXTENSION", "PYMODULE", "PYSOURCE", "PYZ"), False),
        strip=True,
        upx=False,
    )


def _analyse(
    script: str,
    keeps: frozenset[str],
    generated: Path,
    hidden: list[str],
    *,
    datas: list[tuple[str, str]] | None = None,
    excluded: Iterable[str] = (),
) -> Any:
    """Return what PyInstaller finds that the script imports."""
    return Analysis(
        [str(ROOT / script)],
        pathex=[str(ROOT), str(generated)],
        hiddenimports=[*hidden, *sorted(module for module in keeps if module.startswith("shim.runtime."))],
        excludes=[*(module for module in _EXCLUDED if module not in keeps), *_unused_codecs(keeps), *excluded],
        datas=datas or [],
        optimize=2,
    )


def _codecs() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(encodings.__path__))


def _unused_codecs(keeps: frozenset[str]) -> list[str]:
    """Return the codecs that stay out; none where the shim's imports are not known."""
    return [] if keeps >= ANYTHING else [f"encodings.{codec}" for codec in _codecs() if codec not in _CODECS]


def _freeze_static(name: str, script: str, keeps: frozenset[str]) -> None:
    """Write the static form, `name` below dist: the bootloader, and behind it the archive, whose place image.py keeps.

    Where the script imports an extension module that the bootloader has not, only its name is written, to `foreign`.
    """
    folder = Path(os.environ["SHIM_BUILD_FOLDER"])
    generated = folder / "generated"
    compat.PY3_BASE_MODULES.clear()  # no base_library.zip: what comes before the archive is compiled in
    # The static Python has no library to be found, and neither ctypes to look for others; PyInstaller asks for both.
    bindepend.get_python_library_path = build_main.bindepend.get_python_library_path = lambda: sys.executable
    api.get_bootstrap_modules = list  # boot.py is all
    package = generated / "google" / "_upb"  # of what is in the bootloader
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    hidden = [module for module in _HIDDEN if module not in _BUILT_IN]
    analysis = _analyse(script, keeps, generated, hidden, excluded=_TWINS)
    foreign = _foreign_module(analysis)
    if foreign:
        (folder / "foreign").write_text(foreign)
        return
    modules = [entry for entry in analysis.pure if not _imp.is_frozen(entry[0]) and entry[0] not in EMBEDDED]
    if not any(entry[0] == "google._upb" for entry in modules):
        modules.append(("google._upb", str(package / "__init__.py"), "PYMODULE-2"))
    archive = folder / "work" / f"{name}.pkg"
    scripts = [entry for entry in analysis.scripts if not entry[0].startswith("pyi_rth_")]
    api.PKG(
        [
            ("X utf8", "", "OPTION"),  # a locale has no say in a daemon's file names
            ("hash_seed=0", "", "OPTION"),  # a binary's is fixed, since the image has dictionaries that were made by it
            ("boot", str(HERE / "boot.py"), "PYSOURCE-2"),
            *((entry[0], entry[1], "PYSOURCE-2") for entry in scripts),
            ("PYZ.pyz", api.PYZ(modules).name, "PYZ"),
        ],
        "libpython.so",
        name=str(archive),
        cdict=dict.fromkeys(("PYMODULE", "PYSOURCE", "PYZ"), False),
    )
    program = folder / "dist" / name
    program.parent.mkdir(exist_ok=True)
    program.write_bytes(Path(os.environ["SHIM_BUILD_STATIC"]).read_bytes() + archive.read_bytes())
    program.chmod(0o755)


def _foreign_module(analysis: Any) -> str:
    """Return the name of an extension module that the script imports and the static bootloader has not, or ''."""
    own = os.path.dirname(os.__file__) + os.sep
    for node in analysis.graph.nodes():
        name = str(node.identifier).strip("'")  # in quotes where it is missing from a package
        if name in _BUILT_IN or getattr(node, "filename", None):
            continue
        for folder in sys.path:
            place = Path(folder, *name.split("."))
            if any(place.parent.glob(f"{place.name}.*so")):
                return name
    for node in analysis.graph.nodes():
        file = getattr(node, "filename", None)
        if file and not str(file).startswith(own):
            for imported in analysis.graph.getReferences(node):
                if getattr(imported, "identifier", "") in _NEED_LIBRARIES:
                    return str(imported.identifier)
    return ""


def _are_modules(binaries: Toc) -> bool:
    """Say whether they are extension modules, and libraries that these need.

    Else one is looked for by its path, or by `ctypes`, and has to be a file.
    """
    names = {name for _, source, kind in binaries if kind != "SYMLINK" for name in needed(Path(source).read_bytes())}
    return all(
        kind == "EXTENSION" or (kind == "BINARY" and "/" not in name and name.encode() in names)
        for name, _, kind in binaries
    )


def _as_libraries(binaries: Toc, marker: Path) -> tuple[Toc, Toc, dict[str, str]]:
    """Return the binaries as what embed.c loads, no data, and where each extension module is.

    The kind PKG stands for bytes that the bootloader does nothing with.
    """
    places = {_module_name(name): name for name, _, kind in binaries if kind == "EXTENSION"}
    libraries = [(name, process_collected_binary(source, name, use_strip=True), "PKG") for name, source, _ in binaries]
    return [*libraries, (MARK, str(marker), "PKG")], [], places


def _write_extensions(binaries: Toc, folder: Path) -> Path:
    """Write the module that loads every extension module there is in the binary."""
    names = sorted(_module_name(name) for name, _, kind in binaries if kind == "EXTENSION")
    path = folder / "shim_extensions.py"
    path.write_text("".join(f"import {name}\n" for name in names))
    return path


def _module_name(place: str) -> str:
    return place.rpartition("lib-dynload/")[2].partition(".")[0].replace("/", ".")


def _bootstrap_modules() -> Toc:
    """Put boot.py in the place of PyInstaller's loader."""
    return [("boot", str(Path(os.environ["SHIM_BUILD_FOLDER"]) / "generated" / "boot.py"), "PYSOURCE-2")]


def _without_cpp(binaries: Toc, folder: Path) -> Toc:
    """Leave the C++ library out if it is there for protobuf's extension alone, which uses no symbol of it.

    Should it ever, the import fails at once.
    """
    name = b"libstdc++.so.6"
    kept = [entry for entry in binaries if not entry[0].startswith(("libstdc++.", "libgcc_s."))]
    users = {source for _, source, kind in kept if kind != "SYMLINK" and name in needed(Path(source).read_bytes())}
    own = {source for place, source, _ in kept if place.startswith("google/_upb/")}
    if kept == binaries or not users <= own:
        return binaries
    return [
        (place, str(_forget_needed(Path(source), name, folder)) if source in users else source, kind)
        for place, source, kind in kept
    ]


def _forget_needed(library: Path, name: bytes, folder: Path) -> Path:
    """Copy a library that needs one less: where it names that one, it names libc a second time."""
    data = bytearray(library.read_bytes())
    names = needed(data)
    struct.pack_into("<Q", data, names[name][0] + 8, names[b"libc.so.6"][1])
    copy = folder / library.name
    copy.write_bytes(data)
    return copy
