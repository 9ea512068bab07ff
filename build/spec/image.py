"""Makes the image: runs the static form once in the build, and puts what it has in memory into the program itself.

The result is the same ELF with two more segments: the kernel maps all of Python's objects when it executes the file.
Rule: every gate of docs/launch.md is a step here, and a build that does not pass one fails.
Spec: ELF, gABI chapter 5 (program headers); build/launch/image.c.
"""

from __future__ import annotations

import array
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import elf  # beside this file
from cpython import BuildFailedError

VARIABLE: Final = "SHIM_BUILD_IMAGE"
_DESCRIBE: Final = "SHIM_BUILD_DESCRIBE"  # shim/runtime/image.py
_SHOWN: Final = 8
_PAGE: Final = 0x10000  # the largest of the architectures'
_PART: Final = struct.Struct("<QQ")
_WORD: Final = struct.Struct("<Q")
_COOKIE: Final = b"MEI\014\013\012\013\016"
_COOKIE_SIZE: Final = 88
_TIMEOUT_S: Final = 300
# An emulator of a process lays each one out alike; with so many bytes of addresses, both stack and mmap are elsewhere.
_OTHER_LAYOUT: Final = ("-R", "0x100000000")


class Part(NamedTuple):
    """A piece of the image: where it lies, its bytes less the zeros at its end, and how many it has with them."""

    address: int
    data: bytes
    memory: int


def make(program: Path, target: Path, emulator: list[str]) -> str:
    """Write the program that starts from an image of itself; return a line about it.

    Raises:
        BuildFailedError: It does not come to its entry, or the image fails a gate; the text says which.
    """
    thread, places, parts = _record(program, emulator)
    _, _, again = _record(program, [*emulator, *_OTHER_LAYOUT] if emulator else [])
    if parts != again:
        raise BuildFailedError(
            f"no image of {program.name}: two runs of it differ{_first_difference(parts, again)}; before shim.run it"
            " keeps a time, a random number or the like, which belongs into the shim's methods"
            f" (--form static does without image){_explain(program, emulator)}"
        )
    content = program.read_bytes()
    _check_pointers(content, parts, thread)
    _check_text(parts)
    target.write_bytes(_assemble(content, places, parts))
    target.chmod(0o755)
    sizes = [len(part.data) / 1e6 for part in parts]
    return "image of {:.1f} MB data, {:.1f} MB heap, {:.1f} MB objects".format(*sizes)


def _record(program: Path, emulator: list[str]) -> tuple[int, bytes, list[Part]]:
    """Return what pthread_self() is in the main thread, what the archive keeps, and what the program has in memory."""
    data = _run(program, emulator, {}).stdout
    (thread,) = _WORD.unpack_from(data)
    data = data[_WORD.size :]
    raw = []
    while data:
        address, size = _PART.unpack_from(data)
        raw.append((address, data[_PART.size : _PART.size + size]))
        data = data[_PART.size + size :]
    (_, places), *parts = raw
    return thread, places, [Part(address, each.rstrip(b"\0"), len(each)) for address, each in parts]


def _run(program: Path, emulator: list[str], more: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    # Nothing of the build shows: no environment, folder, configuration or time zone, not even the program's name.
    with tempfile.TemporaryDirectory() as folder:
        ended = subprocess.run(
            [*emulator, str(program)] if emulator else ["shim"],
            executable=None if emulator else program,
            env={VARIABLE: "stdout", "CONTAINERD_SHIM_CONFIG": "", "TZ": "UTC0", **more},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
        )
    if ended.returncode or not ended.stdout:
        lines = [line for line in ended.stderr.decode(errors="replace").splitlines() if not line.startswith("[PYI-")]
        why = "it ends without a call of shim.run"
        if ended.returncode:
            why = lines.pop() if lines else f"it ends with {ended.returncode} before shim.run"
        raise BuildFailedError("\n".join([*lines, f"no image of {program.name}: {why}"]))
    return ended


def _explain(program: Path, emulator: list[str]) -> str:
    """Say which attributes of modules differ in two runs, as far as their values show it."""
    one, other = (_run(program, emulator, {_DESCRIBE: "1"}).stderr.decode(errors="replace") for _ in range(2))
    known = set(other.splitlines())
    changed = [line for line in one.splitlines() if line not in known][:_SHOWN]
    return "".join(f"\n  {line}" for line in changed or ["no module's own value; perhaps an object's, or a class's"])


def _first_difference(parts: list[Part], again: list[Part]) -> str:
    for part, other in zip(parts, again, strict=True):
        for at, (one, two) in enumerate(zip(part.data, other.data, strict=False)):
            if one != two:
                start = at & ~15
                shown = part.data[start : start + 32].hex(" "), other.data[start : start + 32].hex(" ")
                return f", first at {part.address + at:#x}: {shown[0]} and {shown[1]}"
        if len(part.data) != len(other.data):
            return f", in size at {part.address:#x}: {len(part.data)} and {len(other.data)}"
    return ""


def _words(parts: list[Part]) -> Iterator[tuple[int, int]]:
    for part in parts:
        words = array.array("Q", part.data + bytes(-len(part.data) % 8))
        for number, word in enumerate(words):
            if word > 0xFFFFFF:  # else no address at all
                yield part.address + number * 8, word


def _check_pointers(content: bytes, parts: list[Part], thread: int) -> None:
    """No word may point into libc's data, which another process has anew; only the main thread's name, `thread`, does.

    Pointers to stack, mmap and vdso, which lie elsewhere in each process, make two images differ.
    """
    loaded = [segment for segment in elf.segments(content) if segment.kind == elf.LOAD]
    image = next(segment for segment in loaded if segment.address == parts[0].address)
    libc = next(each for each in loaded if each.flags & elf.SEGMENT_WRITABLE and each is not image)
    bad = []
    for address, word in _words(parts):
        if libc.address <= word < libc.address + libc.memory and word != thread:
            bad.append(f"{word:#x} at {address:#x}")
    if bad:
        raise BuildFailedError(f"the image points into libc's data: {', '.join(bad[:8])}")


def _check_text(parts: list[Part]) -> None:
    """Nothing may tell of the machine that builds."""
    host = os.uname()
    for word in {host.nodename, os.path.expanduser("~"), os.getcwd()} - {"/", ""}:
        for part in parts:
            if len(word) > 3 and word.encode() in part.data:
                raise BuildFailedError(f"the image has {word!r} of the machine that builds")


def _archive(content: bytes, places: bytes) -> tuple[int, bytes]:
    """Return where the modules begin in the program, and those of them that the image has not loaded."""
    cookie = content.rfind(_COOKIE)  # PyInstaller's archive ends with it: its size, and where in it the contents are
    size, at, length = struct.unpack_from(">III", content, cookie + len(_COOKIE))
    start = cookie + _COOKIE_SIZE - size
    while length > 0:
        entry, offset = struct.unpack_from(">II", content, start + at)
        if content[start + at + 17 : start + at + 18] == b"z":
            break
        at, length = at + entry, length - entry
    base = start + offset
    kept = struct.iter_unpack("<QQ", places)
    return base, b"".join(content[base + old : base + old + size] for old, size in kept)


def _assemble(content: bytes, places: bytes, parts: list[Part]) -> bytes:
    base, archive = _archive(content, places)
    file = bytearray(content[:base] + archive)
    (table,) = struct.unpack_from("<Q", file, 32)
    data, *heaps = parts
    headers = [each for each in elf.segments(content) if each.kind not in (elf.PHDR, elf.EH_FRAME)]
    room = len(elf.segments(content))
    written: list[elf.Segment] = []
    for header in headers:
        if header.kind != elf.LOAD or header.address != data.address:
            written.append(header)
            continue
        file[header.offset : header.offset + data.memory] = data.data.ljust(data.memory, b"\0")
        written.append(header._replace(size=data.memory, memory=data.memory))
        for part in heaps:
            offset = (len(file) + 0xFFF) & ~0xFFF
            offset += (part.address - offset) % _PAGE
            file.extend(bytes(offset - len(file)))
            file.extend(part.data)
            place = {"offset": offset, "address": part.address, "physical": part.address}
            written.append(header._replace(**place, size=len(part.data), memory=part.memory))
    if len(written) > room:
        raise BuildFailedError("the program has no room for two more program headers")
    packed = b"".join(header.pack() for header in written)
    file[table : table + len(packed)] = packed
    struct.pack_into("<Q", file, 40, 0)  # no sections: their table would be of another file
    struct.pack_into("<HHHH", file, 56, len(written), 0, 0, 0)
    return bytes(file)
