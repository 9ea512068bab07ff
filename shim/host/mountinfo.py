r"""What is mounted where, as /proc/PID/mountinfo tells it.

Rule: reads and decodes, changes nothing. Paths come back as `os` spells them: the kernel writes space, tab, newline and
backslash as a backslash and three octal digits. Spec: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

from shim.errors import UnsupportedSystemError


class Entry(NamedTuple):
    """One mount: `root` is the folder of the file system that shows at `mount_point`."""

    root: str
    mount_point: str
    type: str


def read(path: str = "/proc/self/mountinfo") -> list[Entry]:
    """Return all mounts of this process's mount namespace, in the kernel's order."""
    if sys.platform != "linux":
        raise UnsupportedSystemError("this system has no mountinfo")
    with open(path, "rb", buffering=0) as file:
        return parse(file.read())


def find_below(path: str) -> list[str]:
    """Return the mount points at and below `path`, the longest first."""
    path = os.path.realpath(path)
    below = path.rstrip("/") + "/"
    points = {entry.mount_point for entry in read()}
    return sorted((point for point in points if point == path or point.startswith(below)), key=len, reverse=True)


def parse(text: bytes) -> list[Entry]:
    """Return the mounts in the text of a mountinfo file."""
    entries = []
    for line in text.split(b"\n"):  # not splitlines: the kernel leaves a carriage return in a path as it is
        mount, separator, filesystem = line.partition(b" - ")
        fields = mount.split(b" ")
        if separator and len(fields) >= 6:
            fstype = filesystem.partition(b" ")[0]
            entries.append(Entry(unescape(fields[3]), unescape(fields[4]), os.fsdecode(fstype)))
    return entries


def unescape(field: bytes) -> str:
    r"""Decode the \ooo sequences of one field; what is none stays as it is."""
    head, *pieces = field.split(b"\\")
    decoded = [head]
    for piece in pieces:
        digits = piece[:3]
        if len(digits) == 3 and digits.strip(b"01234567") == b"" and digits < b"400":
            decoded.append(bytes([int(digits, 8)]) + piece[3:])
        else:
            decoded.append(b"\\" + piece)
    return os.fsdecode(b"".join(decoded))
