"""mountinfo: every path that a folder can have comes back as it is."""

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from shim.host import mountinfo

LINES = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw shared:9 master:3 - tmpfs tmpfs rw,mode=755
35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw master:12 - cgroup cgroup rw,memory
99 27 8:1 /a\040b /run/with\040space\134and\011tab rw - ext4 /dev/sda1 rw
"""


def escape(path: bytes) -> bytes:
    """Write a path as the kernel does."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in path)


def test_parse_returns_root_place_and_type() -> None:
    """Optional fields, of which there may be none or many, do not shift the others."""
    found = mountinfo.parse(LINES)

    assert [
        mountinfo.Entry("/", "/proc", "proc"),
        mountinfo.Entry("/", "/sys/fs/cgroup", "tmpfs"),
        mountinfo.Entry("/docker/abc", "/sys/fs/cgroup/memory", "cgroup"),
        mountinfo.Entry("/a b", "/run/with space\\and\ttab", "ext4"),
    ] == found


def test_parse_skips_what_is_no_mount() -> None:
    """A line that is cut off is not an entry."""
    found = mountinfo.parse(b"\n22 27 0:21 / /proc\n\xff\n")

    assert [] == found


@given(st.binary(min_size=1).filter(lambda path: b"\0" not in path))
def test_parse_gives_back_any_path(path: bytes) -> None:
    """Escaping and unescaping a path changes nothing, carriage returns and broken UTF-8 included."""
    path = b"/" + path
    (entry,) = mountinfo.parse(b"22 27 0:21 / " + escape(path) + b" rw shared:1 - tmpfs tmpfs rw\n")

    assert path == os.fsencode(entry.mount_point)


@given(st.binary())
def test_unescape_takes_anything(field: bytes) -> None:
    """What is no escape sequence stays as it is, and nothing raises."""
    mountinfo.parse(field)
    found = mountinfo.unescape(field)

    assert b"\\" in field or field == os.fsencode(found)


def test_read_shows_proc() -> None:
    """The file of this very process has /proc in it."""
    found = mountinfo.read()

    assert "/proc" in {entry.mount_point for entry in found}
    assert all(Path(entry.mount_point).is_absolute() for entry in found)
