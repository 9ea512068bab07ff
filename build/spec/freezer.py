"""How every shim is frozen: one PyInstaller onefile, tuned so that containerd waits as little as possible for it.

Rule: all that a launch does not need stays out, and what is in is stored, not compressed: unpacking is then copying.
Loaded by the specs inside PyInstaller, started by build.py, which says where through the environment.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Final

from PyInstaller.building.api import EXE, PYZ
from PyInstaller.building.build_main import Analysis

ROOT: Final = Path(__file__).resolve().parent.parent.parent

# Not found by reading imports: protobuf looks for its C extension by name.
_HIDDEN: Final = ["google._upb._message", "shim_revision"]

# Optional to those that import them, or of use to a terminal, to Windows, to a debugger.
_EXCLUDED: Final = [
    "_bz2",
    "_curses",
    "_decimal",
    "_hashlib",
    "_lzma",
    "_multiprocessing",
    "_posixshmem",
    "_queue",
    "_ssl",
    "argparse",
    "asyncio",
    "bz2",
    "concurrent",
    "curses",
    "doctest",
    "email",
    "ftplib",
    "getpass",
    "gettext",
    "http",
    "importlib.metadata",
    "importlib.resources",
    "logging",
    "lzma",
    "multiprocessing",
    "numpy",
    "pdb",
    "pydoc",
    "readline",
    "setuptools",
    "shim.aio",
    "shim.cli",
    "shim.testing",
    "shim.ttrpc.aio",
    "shim.ttrpc.codegen",
    "shim.ttrpc.sync",
    "site",
    "ssl",
    "subprocess",
    "tarfile",
    "tkinter",
    "unittest",
    "urllib",
    "xml",
    "zipfile",
]

# The only codecs that are ever asked for: by the interpreter's start, by sockets and by protobuf.
_CODECS: Final = {"__init__", "aliases", "ascii", "idna", "latin_1", "raw_unicode_escape", "unicode_escape", "utf_8"}

_STORED: Final = dict.fromkeys(
    ("BINARY", "DATA", "EXECUTABLE", "EXTENSION", "PYMODULE", "PYSOURCE", "PYZ", "SPLASH", "SYMLINK"), False
)


def freeze(name: str, script: str) -> None:
    """Freeze `script` (a path below the project) into the onefile binary `name`."""
    work = Path(os.environ["SHIM_BUILD_FOLDER"])
    analysis = Analysis(
        [str(ROOT / script)],
        pathex=[str(ROOT), str(work / "generated")],
        hiddenimports=_HIDDEN,
        excludes=_EXCLUDED,
        datas=[(str(work / "generated" / "containerd-shim.marker"), ".")],
        optimize=2,
    )
    library = next(path for name, path, _ in analysis.datas if name == "base_library.zip")
    _drop_codecs(Path(library))
    pure = [entry for entry in analysis.pure if not _is_unused_codec(entry[0].split("."))]
    binaries = [entry for entry in analysis.binaries if "/_codecs_" not in entry[0] and "/_multib" not in entry[0]]
    scripts = [entry for entry in analysis.scripts if not entry[0].startswith("pyi_rth_")]
    EXE(
        PYZ(pure),
        scripts,
        binaries,
        analysis.datas,
        name=name,
        cdict=_STORED,
        strip=True,
        upx=False,
        console=True,
    )


def _is_unused_codec(parts: list[str]) -> bool:
    return len(parts) == 2 and parts[0] == "encodings" and parts[1] not in _CODECS


def _drop_codecs(library: Path) -> None:
    """Rewrite base_library.zip without them: the interpreter reads its whole directory when it starts."""
    with zipfile.ZipFile(library) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(library, "w") as archive:
        for name, content in kept.items():
            if not _is_unused_codec(name.removesuffix(".pyc").split("/")):
                archive.writestr(zipfile.ZipInfo(name), content)
