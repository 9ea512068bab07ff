"""Copies of a shim's file: new ones that nothing has run, and ones whose pages are not in the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.bench.memory import UnmeasuredError

# Not /tmp, which is memory on many machines.
_WORK: Final = Path(__file__).resolve().parents[2] / ".work"
_SETTLE_S: Final = 5.0


@contextmanager
def disk_folder() -> Iterator[Path]:
    """Make a folder beside the built shims, and remove it with all that is in it."""
    _WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=_WORK) as folder:
        yield Path(folder)


def copy(shim: Path, folder: Path) -> Path:
    """Write a copy of the same name and return it: a new inode, all of it on the disk and in the page cache."""
    target = folder / shim.name
    # Bytes that are read and written: a copy by the kernel may share blocks and leave the cache empty.
    with target.open("wb") as file:
        file.write(shim.read_bytes())
        file.flush()
        os.fsync(file.fileno())
    target.chmod(0o755)
    return target


def evict(path: Path, *, settle_s: float = _SETTLE_S) -> None:
    """Drop a file's pages from the page cache.

    Raises:
        UnmeasuredError: Some stay: a process maps them, or the file system is one of memory.
    """
    deadline = time.monotonic() + settle_s
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        # A daemon that is about to end has pages mapped, which stay as long as it does.
        while left := cached_pages(fd):
            if time.monotonic() > deadline:
                raise UnmeasuredError(f"{left} pages of {path} stay in the page cache")
            time.sleep(0.01)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def cached_pages(fd: int) -> int:
    """Return how many pages of a file are in the page cache."""
    # A private mapping that could be written to, since ctypes takes the address of no other.
    with mmap.mmap(fd, 0, access=mmap.ACCESS_COPY) as view:
        pages = (ctypes.c_ubyte * -(-len(view) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(view)
        failed = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(view)), pages
        )
        del start  # else the mapping cannot be closed
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(each & 1 for each in pages)
