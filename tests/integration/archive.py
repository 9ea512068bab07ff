"""What is in a frozen shim."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from shim.runtime.daemon import UNPACK_MARKER


def contents(binary: Path) -> tuple[dict[str, bytes], set[str]]:
    """Return the files that are in the binary, and the names of the modules in its archive.

    An image has no archive that can be read.
    """
    archive = _open(binary)
    files = {name: archive.extract(name) for name, entry in archive.toc.items() if entry[-1] in {"a", "b", "n", "x"}}
    return files, set(archive.open_embedded_archive("PYZ.pyz").toc)


def code(binary: Path) -> dict[str, bytes]:
    """Return the code of every module and script, as it is packed, but not compressed."""
    archive = _open(binary)
    scripts = {name: archive.extract(name) for name, entry in archive.toc.items() if entry[-1] == "s"}
    modules = archive.open_embedded_archive("PYZ.pyz")
    return scripts | {name: modules.extract(name, raw=True) or b"" for name in modules.toc}


def _open(binary: Path) -> Any:
    from PyInstaller.archive.readers import CArchiveReader  # type: ignore[import-untyped]

    return CArchiveReader(str(binary))


def unpacks(binary: Path) -> bool:
    """Say whether the binary unpacks itself, as a onefile may: each way has a mark of its own among its files."""
    if is_static(binary.read_bytes()):
        return False
    files, _ = contents(binary)

    assert (UNPACK_MARKER in files) != ("shim-embedded" in files)
    return UNPACK_MARKER in files


def is_static(binary: bytes) -> bool:
    """Say whether an ELF program (64 bits, little-endian) runs at its own address, without loader and libraries."""
    (kind,) = struct.unpack_from("<H", binary, 0x10)
    (table,) = struct.unpack_from("<Q", binary, 0x20)
    size, count = struct.unpack_from("<HH", binary, 0x36)
    segments = {struct.unpack_from("<I", binary, table + index * size)[0] for index in range(count)}
    return kind == 2 and not segments & {2, 3}  # ET_EXEC; PT_DYNAMIC, PT_INTERP


def needed(library: bytes) -> list[str]:
    """Return the names of the libraries that an ELF file (64 bits, little-endian) is linked to."""
    (sections,) = struct.unpack_from("<Q", library, 0x28)
    size, count = struct.unpack_from("<HH", library, 0x3A)
    headers = [struct.unpack_from("<IIQQQQII", library, sections + index * size) for index in range(count)]
    ((_, _, _, _, start, length, strings, _),) = [header for header in headers if header[1] == 6]  # SHT_DYNAMIC
    text = headers[strings][4]
    entries = [struct.unpack_from("<QQ", library, start + offset) for offset in range(0, length, 16)]
    offsets = [text + value for tag, value in entries if tag == 1]  # DT_NEEDED
    return [library[offset : library.index(b"\0", offset)].decode() for offset in offsets]
