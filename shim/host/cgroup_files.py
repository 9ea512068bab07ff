"""Reading and writing the small files of a cgroup, either version.

Rule: a file that is absent, or vanishes while it is read, is None or empty; other failures are CgroupErrors. Numbers
that are none are left out, negative ones are 0, and `max` is what the caller says.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Final

from shim.errors import CgroupError

# ENODEV: the cgroup went while the file was open. EOPNOTSUPP: not accounted here, as pressure or a threaded cgroup.
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.ENOTDIR, errno.EOPNOTSUPP})

_UINT32_MAX: Final = 2**32 - 1


def read_text(folder: str, name: str) -> str | None:
    """Return the content of a file, or None if there is no such thing (any more)."""
    path = f"{folder}/{name}"
    try:
        with open(path, "rb", buffering=0) as file:
            return os.fsdecode(file.read())
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise CgroupError(f"failed to read {path}: {str(error.strerror).lower()}") from error


def read_number(folder: str, name: str, maximum: int) -> int | None:
    """Return the one number in a file, or None."""
    text = read_text(folder, name)
    return None if text is None else parse_number(text.strip(), maximum)


def read_numbers(folder: str, names: Iterable[tuple[str, str]], maximum: int) -> dict[str, object]:
    """Return the numbers in several files by field name; `names` are pairs of field and file."""
    found = {field: read_number(folder, name, maximum) for field, name in names}
    return {field: value for field, value in found.items() if value is not None}


def read_keyed(folder: str, name: str, maximum: int = 0) -> dict[str, int]:
    """Return the numbers of a file with lines `KEY VALUE`."""
    found = {}
    for line in (read_text(folder, name) or "").splitlines():
        key, _, text = line.partition(" ")
        value = parse_number(text.strip(), maximum)
        if value is not None:
            found[key] = value
    return found


def read_rdma(folder: str, name: str) -> list[dict[str, object]]:
    """Return the entries of a file with lines `DEVICE hca_handle=N hca_object=N`."""
    entries: list[dict[str, object]] = []
    for line in (read_text(folder, name) or "").splitlines():
        device, *pairs = line.split() or [""]
        values = parse_pairs(pairs, _UINT32_MAX)
        if device:
            fields = (("hca_handles", "hca_handle"), ("hca_objects", "hca_object"))
            entries.append({"device": device, **pick(values, fields)})
    return entries


def read_processes(folder: str) -> list[int]:
    """Return the pids in a cgroup and in those below it, without the ones that this pid namespace cannot see."""
    pids = {
        int(pid)
        for path, _, _ in os.walk(folder)
        for pid in (read_text(path, "cgroup.procs") or "").split()
        if pid.isdecimal()
    }
    return sorted(pids - {0})


def find_page_sizes(folder: str, suffix: str) -> list[str]:
    """Return the sizes (2MB, 1GB) that have a file `hugetlb.SIZE` + `suffix`."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    # A reservation's file has one more word: hugetlb.2MB.rsvd.current.
    words = [name.removesuffix(suffix).split(".") for name in names if name.endswith(suffix)]
    return sorted(size for kind, size in (pair for pair in words if len(pair) == 2) if kind == "hugetlb")


def write_text(folder: str, name: str, text: str) -> None:
    """Write to a file that is there: a cgroup that went in between is not made again as a plain folder's file.

    Raises:
        OSError: The kernel refuses.
    """
    file = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def parse_pairs(pairs: Iterable[str], maximum: int) -> dict[str, int]:
    """Return the numbers of words `KEY=VALUE`."""
    split = (pair.partition("=") for pair in pairs)
    found = {key: parse_number(text, maximum) for key, _, text in split}
    return {key: value for key, value in found.items() if value is not None}


def parse_number(text: str, maximum: int) -> int | None:
    """Return the number, `maximum` for the word max, 0 for negative ones, None for anything else."""
    if text == "max":
        return maximum
    try:
        return max(0, int(text))
    except ValueError:
        return None


def pick(values: dict[str, int], names: Iterable[tuple[str, str]]) -> dict[str, object]:
    """Return those values that have a field; `names` are pairs of field and key."""
    return {field: values[key] for field, key in names if key in values}
