"""The two envelopes of ttrpc, Request and Response, encoded and decoded by hand.

Rule: only the protobuf wire format of these few messages; payloads stay opaque bytes.  By hand because generated
classes would register `google.rpc.Status` a second time in programs that use googleapis, and cost three times as
long. Spec: containerd/ttrpc request.proto; protobuf encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shim.ttrpc.wire import LENGTH, DecodeError, bytes_field, fields, number_field, signed, varint

Metadata = Sequence[tuple[str, str]]


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


def encode_request(service: str, method: str, payload: bytes, timeout_ns: int = 0, metadata: Metadata = ()) -> bytes:
    """Return the body of a request frame; metadata keys go out in lower case, as Go's client sends them."""
    parts = [
        bytes_field(b"\x0a", service.encode()),
        bytes_field(b"\x12", method.encode()),
        bytes_field(b"\x1a", payload),
    ]
    if timeout_ns:
        parts.append(number_field(b"\x20", timeout_ns))
    for key, value in metadata:
        pair = bytes_field(b"\x0a", key.lower().encode()) + bytes_field(b"\x12", value.encode())
        parts.append(b"\x2a" + varint(len(pair)) + pair)
    return b"".join(parts)


def encode_response(payload: bytes) -> bytes:
    """Return the body of a success; status is left out, as Go does."""
    return bytes_field(b"\x12", payload)


def encode_error(code: int, message: str) -> bytes:
    """Return the body of a failure, without a payload: Go's client decodes that first and loses the status."""
    status = number_field(b"\x08", code) + bytes_field(b"\x12", message.encode("utf-8", "replace"))
    return b"\x0a" + varint(len(status)) + status


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise DecodeError(f"{name} is not valid UTF-8") from None


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
    """Decode a response frame's body; an absent, empty or zero status is success, details are ignored.

    Raises:
        DecodeError: The bytes are not a Response.
    """
    code = 0
    message = ""
    payload = b""
    for number, wire, value in fields(body):
        if wire != LENGTH or not isinstance(value, bytes):
            continue
        if number == 2:
            payload = value
        elif number == 1:
            for inner, inner_wire, content in fields(value):
                if inner == 1 and isinstance(content, int):
                    code = signed(content)
                elif inner == 2 and inner_wire == LENGTH and isinstance(content, bytes):
                    message = _text(content, "status message")
    return Response(code, message, payload)
