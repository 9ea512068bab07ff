"""The two envelopes of ttrpc, Request and Response, encoded and decoded by hand.

Rule: only the protobuf wire format of these few messages; payloads stay opaque bytes.  By hand because generated
classes would register `google.rpc.Status` a second time in programs that use googleapis, and cost three times as
long. Spec: containerd/ttrpc request.proto; protobuf encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from shim.ttrpc.wire import LENGTH, DecodeError, bytes_field, fields, number_field, read_varint, signed, varint

Metadata = Sequence[tuple[str, str]]
Details = tuple[tuple[str, bytes], ...]  # each a google.protobuf.Any: type URL and value


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
    details: Details = ()


def encode_head(service: str, method: str) -> bytes:
    """Return the first two fields of a request, the same for every call of a method."""
    return bytes_field(b"\x0a", service.encode()) + bytes_field(b"\x12", method.encode())


def encode_tail(payload: bytes, timeout_ns: int = 0, metadata: Metadata = ()) -> list[bytes]:
    """Return the other fields of a request, in pieces; metadata keys go out in lower case, as Go's do."""
    parts = [b"\x1a", varint(len(payload)), payload] if payload else []
    if timeout_ns:
        parts.append(number_field(b"\x20", timeout_ns))
    for key, value in metadata:
        pair = bytes_field(b"\x0a", key.lower().encode()) + bytes_field(b"\x12", value.encode())
        parts.append(b"\x2a" + varint(len(pair)) + pair)
    return parts


def encode_request(service: str, method: str, payload: bytes, timeout_ns: int = 0, metadata: Metadata = ()) -> bytes:
    """Return the body of a request frame."""
    return b"".join([encode_head(service, method), *encode_tail(payload, timeout_ns, metadata)])


def encode_response(payload: bytes) -> bytes:
    """Return the body of a success; status is left out, as Go does."""
    return bytes_field(b"\x12", payload)


def encode_error(code: int, message: str, details: Details = ()) -> bytes:
    """Return the body of a failure, without a payload: Go's client decodes that first and loses the status."""
    status = number_field(b"\x08", code) + bytes_field(b"\x12", message.encode("utf-8", "replace"))
    for type_url, value in details:
        packed = bytes_field(b"\x0a", type_url.encode("utf-8", "replace")) + bytes_field(b"\x12", value)
        status += b"\x1a" + varint(len(packed)) + packed
    return b"\x0a" + varint(len(status)) + status


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise DecodeError(f"{name} is not valid UTF-8") from None


def split_head(body: bytes) -> int:
    """Return where the two fields of `encode_head` end in a request's body, or 0 when it does not begin with them."""
    try:
        if body[0] == 0x0A and (at := body[1]) < 0x80 and body[at + 2] == 0x12 and (size := body[at + 3]) < 0x80:
            return at + 4 + size
    except IndexError:
        pass
    return 0


KnownMetadata = tuple[bytes, tuple[tuple[str, str], ...]]  # encoded and decoded
_MAX_KNOWN: Final = 512


def decode_tail(
    body: bytes, at: int, known: KnownMetadata = (b"", ())
) -> tuple[bytes, int, tuple[tuple[str, str], ...], KnownMetadata] | None:
    """Decode the fields behind the head as every client writes them, or return None: `decode_request` has to look.

    `known` is the metadata of an earlier request, which the next one mostly repeats; what to pass next comes back.

    Raises:
        DecodeError: The bytes are not a Request.
    """
    payload = b""
    timeout_ns = 0
    end = len(body)
    if at < end and body[at] == 0x1A:
        size, at = read_varint(body, at + 1)
        payload = body[at : at + size]
        at += size
        if at > end:
            raise DecodeError("unexpected end of message")
    if at < end and body[at] == 0x20:
        timeout_ns, at = read_varint(body, at + 1)
        timeout_ns = signed(timeout_ns)
    if at == end:
        return payload, timeout_ns, (), known
    if end - at == len(known[0]) and body.endswith(known[0]):
        return payload, timeout_ns, known[1], known
    start = at
    metadata: list[tuple[str, str]] = []
    while at < end:
        if body[at] != 0x2A:
            return None
        size, at = read_varint(body, at + 1)
        if size > end - at:
            raise DecodeError("unexpected end of message")
        metadata.append(_decode_plain_pair(body[at : at + size]))
        at += size
    pairs = tuple(metadata)
    return payload, timeout_ns, pairs, (body[start:], pairs) if end - start <= _MAX_KNOWN else known


def decode_request(body: bytes) -> Request:
    """Decode a request frame's body.

    Raises:
        DecodeError: The bytes are not a Request.
    """
    service = method = ""
    payload = b""
    timeout_ns = 0
    metadata: list[tuple[str, str]] = []
    for number, wire, value in fields(body):
        if isinstance(value, bytes):
            if wire != LENGTH:
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
            timeout_ns = signed(value)
    return Request(service, method, payload, timeout_ns, tuple(metadata))


def _decode_plain_pair(data: bytes) -> tuple[str, str]:
    """Decode a pair as every client writes it: two short texts, laid out as a head is."""
    if split_head(data) != len(data) or not data:
        return _decode_pair(data)
    middle = data[1] + 2
    return _text(data[2:middle], "metadata key"), _text(data[middle + 2 :], "metadata value")


def _decode_pair(data: bytes) -> tuple[str, str]:
    key = value = ""
    for number, wire, content in fields(data):
        if wire == LENGTH and isinstance(content, bytes):
            if number == 1:
                key = _text(content, "metadata key")
            elif number == 2:
                value = _text(content, "metadata value")
    return key, value


def decode_response(body: bytes) -> Response:
    """Decode a response frame's body; an absent, empty or zero status is success.

    Raises:
        DecodeError: The bytes are not a Response.
    """
    if not body:
        return _EMPTY
    if body[0] == 0x12:
        size, at = read_varint(body, 1)
        if at + size == len(body):  # a payload and nothing else, what a Go server sends
            return Response(0, "", body[at:])
    code = 0
    message = ""
    payload = b""
    details: list[tuple[str, bytes]] = []
    for number, wire, value in fields(body):
        if wire != LENGTH or not isinstance(value, bytes):
            continue
        if number == 2:
            payload = value
        elif number == 1:
            for inner, inner_wire, content in fields(value):
                if inner == 1 and isinstance(content, int):
                    code = (content + _INT32 & 2 * _INT32 - 1) - _INT32  # protobuf keeps the low 32 bits
                elif inner == 2 and inner_wire == LENGTH and isinstance(content, bytes):
                    message = _text(content, "status message")
                elif inner == 3 and inner_wire == LENGTH and isinstance(content, bytes):
                    details.append(_decode_any(content))
    return Response(code, message, payload, tuple(details))


def _decode_any(data: bytes) -> tuple[str, bytes]:
    type_url, value = "", b""
    for number, wire, content in fields(data):
        if wire == LENGTH and isinstance(content, bytes):
            if number == 1:
                type_url = _text(content, "detail's type")
            elif number == 2:
                value = content
    return type_url, value


_EMPTY: Final = Response(0, "", b"")
_INT32: Final = 1 << 31
