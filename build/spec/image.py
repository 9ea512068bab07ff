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
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from cpython import BuildFailedError  # beside this file

VARIABLE: Final = "SHIM_BUILD_IMAGE"
_PAGE: Final = 0x10000  # the largest of the architectures'
_LOAD, _PHDR, _TLS, _EH_FRAME, _STACK = 1, 6, 7, 0x6474E550, 0x6474E551
_WRITABLE: Final = 2
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")  # type, flags, offset, address, physical, size in file and memory, alignment
_PART: Final = struct.Struct("<QQ")
# Where the kernel puts the stack, mmap and the vdso on x86_64 and on arm64 with 48 bits, and qemu its own.
_HIGH: Final = range(0x4000000000, 1 << 48)
_TIMEOUT_S: Final = 300


class Part(NamedTuple):
    """A piece of the image: where it lies, its bytes less the zeros at its end, and how many it has with them."""

    address: int
    data: bytes
    memory: int


class Segment(NamedTuple):
    """A program header, as the file has it."""

    kind: int
    flags: int
    offset: int
    address: int
    physical: int
    size: int
    memory: int
    alignment: int


def make(program: Path, target: Path, emulator: list[str]) -> str:
    """Write the program that starts from an image of itself; return a line about it.

    Raises:
        BuildFailedError: It does not come to its entry, or the image fails a gate; the text says which.
    """
    parts = _record(program, target.with_name(f"{target.name}.image"), emulator)
    again = _record(program, target.with_name(f"{target.name}.image"), emulator)
    if parts != again:
        raise BuildFailedError(f"two images of {target.name} differ{_first_difference(parts, again)}")
    content = program.read_bytes()
    _check_pointers(content, parts)
    _check_text(parts)
    target.write_bytes(_assemble(content, parts))
    target.chmod(0o755)
    sizes = [len(part.data) / 1e6 for part in parts]
    return "image of {:.1f} MB data, {:.1f} MB heap, {:.1f} MB objects".format(*sizes)


def _record(program: Path, raw: Path, emulator: list[str]) -> list[Part]:
    raw.unlink(missing_ok=True)
    command = [*emulator, str(program)]
    # Nothing of the build: neither environment nor folder.
    ended = subprocess.run(
        command,
        env={VARIABLE: str(raw)},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_TIMEOUT_S,
    )
    if ended.returncode or not raw.is_file():
        said = (ended.stderr + ended.stdout).strip()
        raise BuildFailedError(f"{said}\n{program.name} did not come to its entry, shim.run (exit {ended.returncode})")
    data = raw.read_bytes()
    raw.unlink()
    parts = []
    while data:
        address, size = _PART.unpack_from(data)
        parts.append(Part(address, data[_PART.size : _PART.size + size].rstrip(b"\0"), size))
        data = data[_PART.size + size :]
    return parts


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


def segments(content: bytes) -> list[Segment]:
    """Return the program headers of an ELF file of 64 bits, least byte first."""
    (table,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    return [Segment(*_SEGMENT.unpack_from(content, table + number * size)) for number in range(count)]


def _words(parts: list[Part]) -> Iterator[tuple[int, int]]:
    for part in parts:
        words = array.array("Q", part.data[: len(part.data) & ~7])
        for number, word in enumerate(words):
            if word > 0xFFFFFF:  # else no address at all
                yield part.address + number * 8, word


def _check_pointers(content: bytes, parts: list[Part]) -> None:
    """No word may point to where another process has something else: stack, mmap, vdso, libc's data, the break."""
    loaded = [segment for segment in segments(content) if segment.kind == _LOAD]
    image = next(segment for segment in loaded if segment.address == parts[0].address)
    end = image.address + image.memory
    libc = next(each for each in loaded if each.flags & _WRITABLE and each is not image)
    bad: dict[str, list[str]] = {}
    for address, word in _words(parts):
        if word in _HIGH and word & 0xFFFF:
            place = "the stack, mmap or the vdso"
        elif libc.address <= word < libc.address + libc.memory:
            place = "libc's data"
        elif end <= word < end + (64 << 20):
            place = "the break"
        else:
            continue
        bad.setdefault(place, []).append(f"{word:#x} at {address:#x}")
    if bad:
        raise BuildFailedError("\n".join(f"the image points into {place}: {', '.join(all_[:8])}" for place, all_ in bad.items()))


def _check_text(parts: list[Part]) -> None:
    """Nothing may tell of the machine that builds."""
    host = os.uname()
    for word in {host.nodename, os.path.expanduser("~"), os.getcwd()} - {"/", ""}:
        for part in parts:
            if len(word) > 3 and word.encode() in part.data:
                raise BuildFailedError(f"the image has {word!r} of the machine that builds")


def _assemble(content: bytes, parts: list[Part]) -> bytes:
    file = bytearray(content)
    (table,) = struct.unpack_from("<Q", file, 32)
    data, *heaps = parts
    headers = [each for each in segments(content) if each.kind not in (_PHDR, _EH_FRAME)]
    room = len(segments(content))
    written: list[Segment] = []
    for header in headers:
        if header.kind != _LOAD or header.address != data.address:
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
    for number, header in enumerate(written):
        _SEGMENT.pack_into(file, table + number * _SEGMENT.size, *header)
    struct.pack_into("<Q", file, 40, 0)  # no sections: their table would be of another file
    struct.pack_into("<HHHH", file, 56, len(written), 0, 0, 0)
    return bytes(file)
