"""ttrpc frames: a ten byte header, then the body.

Rule: bytes in, frames out; no streams, sockets or clocks here.  A body over the limit is counted off and dropped, never
held, so that one bad message costs neither memory nor the connection.
Spec: containerd/ttrpc PROTOCOL.md, "Message Frame".
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

HEADER: Final = struct.Struct(">IIBB")
HEADER_SIZE: Final = HEADER.size
MAX_BODY: Final = 4 << 20
MAX_STREAM_ID: Final = 0xFFFFFFFF

REQUEST: Final = 1
RESPONSE: Final = 2
DATA: Final = 3

REMOTE_CLOSED: Final = 0x01
REMOTE_OPEN: Final = 0x02
NO_DATA: Final = 0x04


class Frame(NamedTuple):
    """One received frame; `body` is None when it was longer than the limit and has been dropped (`length` tells)."""

    stream_id: int
    kind: int
    flags: int
    length: int
    body: bytes | None


def encode_frame(stream_id: int, kind: int, flags: int, body: bytes) -> bytes:
    """Return header and body as one string; the caller has checked the limit."""
    return HEADER.pack(len(body), stream_id, kind, flags) + body


class FrameReader:
    """Cuts a byte stream into frames, whatever the sizes it arrives in."""

    __slots__ = ("_buffer", "_dropping", "_limit", "_oversized")

    def __init__(self, limit: int = MAX_BODY) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._dropping = 0
        self._oversized: Frame | None = None

    @property
    def is_between_frames(self) -> bool:
        """True when the stream may end here without cutting a frame short."""
        return not self._buffer and self._oversized is None

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes and return the frames that they complete, in order."""
        frames: list[Frame] = []
        buffer = self._buffer
        if self._oversized is not None:
            data = self._drop(data, frames)
        buffer += data
        position, end = 0, len(buffer)
        while end - position >= HEADER_SIZE:
            length, stream_id, kind, flags = HEADER.unpack_from(buffer, position)
            body_at = position + HEADER_SIZE
            if length > self._limit:
                self._oversized = Frame(stream_id, kind, flags, length, None)
                self._dropping = length
                rest = bytes(buffer[body_at:])
                buffer.clear()
                buffer += self._drop(rest, frames)
                position, end = 0, len(buffer)
                continue
            if end - body_at < length:
                break
            position = body_at + length
            frames.append(Frame(stream_id, kind, flags, length, bytes(buffer[body_at:position])))
        if position:
            del buffer[:position]
        return frames

    def _drop(self, data: bytes, frames: list[Frame]) -> bytes:
        """Count `data` off the oversized body; return what lies behind it."""
        oversized = self._oversized
        if len(data) < self._dropping or oversized is None:
            self._dropping -= len(data)
            return b""
        rest = data[self._dropping :]
        self._dropping = 0
        self._oversized = None
        frames.append(oversized)
        return rest
