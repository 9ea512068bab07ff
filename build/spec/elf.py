"""What the build reads of ELF files: program headers, sections, symbols, and which libraries one needs.

Rule: 64 bits, least byte first, as all architectures have it that are supported; reads bytes, writes nothing.
Spec: gABI chapters 4 and 5.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

LOAD, DYNAMIC, PHDR = 1, 2, 6  # kinds of segments
EH_FRAME: Final = 0x6474E550
SEGMENT_WRITABLE: Final = 2
WRITABLE, ALLOCATED, THREAD_LOCAL = 1, 2, 0x400  # flags of sections
COMMON: Final = 0xFFF2  # the section of a variable that the linker is to give a place

_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_NEEDED, _STRINGS = 1, 5  # tags of dynamic entries
_SYMBOL_TABLE: Final = 2  # kind of a section
_TLS_SYMBOL: Final = 6  # kind of a symbol


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

    def pack(self) -> bytes:
        """Return it as the file has it."""
        return _SEGMENT.pack(*self)


class Section(NamedTuple):
    """A section: its name, and of its header what the build asks for."""

    name: str
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int


class Symbol(NamedTuple):
    """A symbol; `section` is the number of its section, 0 where another file defines it."""

    name: str
    section: int
    address: int
    size: int
    is_thread_local: bool


def is_elf(content: bytes | bytearray) -> bool:
    """Say whether the rest of this module can read the file."""
    return content[:6] == b"\x7fELF\x02\x01"


def segments(content: bytes | bytearray) -> list[Segment]:
    """Return the program headers."""
    (table,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    return [Segment(*_SEGMENT.unpack_from(content, table + number * size)) for number in range(count)]


def sections(content: bytes | bytearray) -> list[Section]:
    """Return all sections; a file that is only to be executed may have none."""
    (table,) = struct.unpack_from("<Q", content, 40)
    size, count, names = struct.unpack_from("<HHH", content, 58)
    headers = [_SECTION.unpack_from(content, table + number * size) for number in range(count)]
    return [
        Section(_text(content, headers[names][4] + name), kind, flags, address, offset, length, link)
        for name, kind, flags, address, offset, length, link, *_ in headers
    ]


def symbols(content: bytes | bytearray) -> list[Symbol]:
    """Return all symbols that have a name; a stripped file has none."""
    all_sections = sections(content)
    found = []
    for table in all_sections:
        if table.kind != _SYMBOL_TABLE:
            continue
        strings = all_sections[table.link].offset
        for at in range(table.offset, table.offset + table.size, _SYMBOL.size):
            name, info, _, section, address, size = _SYMBOL.unpack_from(content, at)
            if name:
                is_thread_local = info & 15 == _TLS_SYMBOL
                found.append(Symbol(_text(content, strings + name), section, address, size, is_thread_local))
    return found


def needed(content: bytes | bytearray) -> dict[bytes, tuple[int, int]]:
    """Return the names of the libraries that a file needs; for each, where that stands and what stands there.

    Other files than ELF need nothing.
    """
    if not is_elf(content):
        return {}
    headers = segments(content)
    start, length = next(((each.offset, each.size) for each in headers if each.kind == DYNAMIC), (0, 0))
    entries = {offset: struct.unpack_from("<QQ", content, offset) for offset in range(start, start + length, 16)}
    address = next((value for tag, value in entries.values() if tag == _STRINGS), 0)
    loaded = (each for each in headers if each.kind == LOAD and 0 <= address - each.address < each.size)
    strings = next((each.offset + address - each.address for each in loaded), 0)
    return {
        bytes(content[strings + value : content.index(0, strings + value)]): (offset, value)
        for offset, (tag, value) in entries.items()
        if tag == _NEEDED
    }


def _text(content: bytes | bytearray, start: int) -> str:
    return content[start : content.index(0, start)].decode()
