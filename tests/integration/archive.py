"""What is in a frozen shim."""

from __future__ import annotations

from pathlib import Path

from shim.runtime.daemon import UNPACK_MARKER


def contents(binary: Path) -> tuple[dict[str, bytes], set[str]]:
    """Return the files that are in the binary, and the names of the modules in its archive."""
    from PyInstaller.archive.readers import CArchiveReader  # type: ignore[import-untyped]

    archive = CArchiveReader(str(binary))
    files = {name: archive.extract(name) for name, entry in archive.toc.items() if entry[-1] in {"a", "b", "n", "x"}}
    return files, set(archive.open_embedded_archive("PYZ.pyz").toc)


def unpacks(binary: Path) -> bool:
    """Say whether the binary unpacks itself: each way has a mark of its own among its files."""
    files, _ = contents(binary)

    assert (UNPACK_MARKER in files) != ("shim-embedded" in files)
    return UNPACK_MARKER in files
