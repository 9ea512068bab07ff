"""The protobuf wire format, as far as envelopes and a few tiny messages need it.

Rule: pure, and light: the short processes of a shim use it so as not to load protobuf for three numbers.
Spec: protobuf encoding.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

VARINT = 0
FIXED64 = 1
LENGTH = 2
FIXED32 = 5
INT64_MASK = (1 << 64) - 1


_ONE_BYTE = [bytes((value,)) for value in range(0x80)]


class DecodeError(ValueError):
    """The bytes are not the message they should be."""


def varint(value: int) -> bytes:
    """Return a number that is not negative as a base 128 varint."""
    if value < 0x80:
        return _ONE_BYTE[value]
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def bytes_field(tag: bytes, value: bytes) -> bytes:
    """Return a length-delimited field behind its encoded tag; nothing for an empty value, as proto3 has it."""
    return tag + varint(len(value)) + value if value else b""


def number_field(tag: bytes, value: int) -> bytes:
    """Return a varint field behind its encoded tag; nothing for zero, negative numbers as 64 bits."""
    return tag + varint(value & INT64_MASK) if value else b""


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at `at`, and where it ends.  Raises DecodeError."""
    value = shift = 0
    try:
        byte = data[at]
        if byte < 0x80:
            return byte, at + 1
        following = data[at + 1]
        if following < 0x80:
            return byte & 0x7F | following << 7, at + 2
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & INT64_MASK, at
            shift += 7
            if shift > 63:
                raise DecodeError("varint is longer than 64 bits")
    except IndexError:
        raise DecodeError("unexpected end of message") from None


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Yield (number, wire type, value); the value of fixed-width fields is their raw bytes."""
    at, end = 0, len(data)
    while at < end:
        tag, at = read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise DecodeError("field number is zero")
        if wire == VARINT:
            value, at = read_varint(data, at)
            yield number, wire, value
            continue
        if wire == LENGTH:
            size, at = read_varint(data, at)
        elif wire == FIXED64:
            size = 8
        elif wire == FIXED32:
            size = 4
        else:
            raise DecodeError(f"wire type {wire} of field {number} is not supported")
        if size > end - at:
            raise DecodeError("unexpected end of message")
        yield number, wire, data[at : at + size]
        at += size


def signed(value: int) -> int:
    """Return an unsigned 64 bit number as the int64 or int32 that it encodes."""
    return value - (1 << 64) if value >> 63 else value
