"""The two envelopes of ttrpc, Request and Response, encoded and decoded by hand.

Rule: only the protobuf wire format of these few messages; payloads stay opaque bytes.  By hand because generated
classes would register `google.rpc.Status` a second time in programs that use googleapis, and cost three times as
long. Spec: containerd/ttrpc request.proto; protobuf encoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

Metadata = Sequence[tuple[str, str]]

_VARINT: Final = 0
_FIXED64: Final = 1
_LENGTH: Final = 2
_FIXED32: Final = 5
_INT64_MASK: Final = (1 << 64) - 1


class DecodeError(ValueError):
    """The bytes are not an envelope."""


class Request(NamedTuple):
    """One decoded request; `timeout_ns` is relative to its arrival, 0 means none, below 0 already over."""

    service: str
    method: str
    payload: bytes
    timeout_ns: int
    metadata: tuple[tuple[str, str], ...]


class Response(NamedTuple):
    """One decoded response; `code` is 0 for success."""

    code: int
    message: str
    payload: bytes


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes_field(tag: bytes, value: bytes) -> bytes:
    return tag + _varint(len(value)) + value if value else b""


def encode_request(service: str, method: str, payload: bytes, timeout_ns: int = 0, metadata: Metadata = ()) -> bytes:
    """Return the body of a request frame; metadata keys go out in lower case, as Go's client sends them."""
    parts = [
        _bytes_field(b"\x0a", service.encode()),
        _bytes_field(b"\x12", method.encode()),
        _bytes_field(b"\x1a", payload),
    ]
    if timeout_ns:
        parts.append(b"\x20" + _varint(timeout_ns & _INT64_MASK))
    for key, value in metadata:
        pair = _bytes_field(b"\x0a", key.lower().encode()) + _bytes_field(b"\x12", value.encode())
        parts.append(b"\x2a" + _varint(len(pair)) + pair)
    return b"".join(parts)


def encode_response(payload: bytes) -> bytes:
    """Return the body of a success; status is left out, as Go does."""
    return _bytes_field(b"\x12", payload)


def encode_error(code: int, message: str) -> bytes:
    """Return the body of a failure, without a payload: Go's client decodes that first and loses the status."""
    status = b"\x08" + _varint(code & _INT64_MASK) + _bytes_field(b"\x12", message.encode("utf-8", "replace"))
    return b"\x0a" + _varint(len(status)) + status


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    try:
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & _INT64_MASK, at
            shift += 7
            if shift > 63:
                raise DecodeError("varint is longer than 64 bits")
    except IndexError:
        raise DecodeError("unexpected end of message") from None


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Yield (number, wire type, value); the value of fixed-width fields is their raw bytes."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise DecodeError("field number is zero")
        if wire == _VARINT:
            value, at = _read_varint(data, at)
            yield number, wire, value
            continue
        if wire == _LENGTH:
            size, at = _read_varint(data, at)
        elif wire == _FIXED64:
            size = 8
        elif wire == _FIXED32:
            size = 4
        else:
            raise DecodeError(f"wire type {wire} of field {number} is not supported")
        if size > end - at:
            raise DecodeError("unexpected end of message")
        yield number, wire, data[at : at + size]
        at += size


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise DecodeError(f"{name} is not valid UTF-8") from None


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def decode_request(body: bytes) -> Request:
    """Decode a request frame's body.

    Raises:
        DecodeError: The bytes are not a Request.
    """
    service = method = ""
    payload = b""
    timeout_ns = 0
    metadata: list[tuple[str, str]] = []
    for number, wire, value in _fields(body):
        if isinstance(value, bytes):
            if wire != _LENGTH:
                continue
            if number == 1:
                service = _text(value, "service")
            elif number == 2:
                method = _text(value, "method")
            elif number == 3:
                payload = value
            elif number == 5:
                metadata.append(_decode_pair(value))
        elif number == 4:
            timeout_ns = _signed(value)
    return Request(service, method, payload, timeout_ns, tuple(metadata))


def _decode_pair(data: bytes) -> tuple[str, str]:
    key = value = ""
    for number, wire, content in _fields(data):
        if wire == _LENGTH and isinstance(content, bytes):
            if number == 1:
                key = _text(content, "metadata key")
            elif number == 2:
                value = _text(content, "metadata value")
    return key, value


def decode_response(body: bytes) -> Response:
    """Decode a response frame's body; an absent, empty or zero status is success, details are ignored.

    Raises:
        DecodeError: The bytes are not a Response.
    """
    code = 0
    message = ""
    payload = b""
    for number, wire, value in _fields(body):
        if wire != _LENGTH or not isinstance(value, bytes):
            continue
        if number == 2:
            payload = value
        elif number == 1:
            for inner, inner_wire, content in _fields(value):
                if inner == 1 and isinstance(content, int):
                    code = _signed(content)
                elif inner == 2 and inner_wire == _LENGTH and isinstance(content, bytes):
                    message = _text(content, "status message")
    return Response(code, message, payload)
