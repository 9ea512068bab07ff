"""ttrpc frames: a ten byte header, then the body.

Rule: bytes in, frames out; no streams, sockets or clocks here.  A body over the limit is counted off and dropped, never
held, so that one bad message costs neither memory nor the connection.
Spec: containerd/ttrpc PROTOCOL.md, "Message Frame".
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from shim.ttrpc.status import Code, RpcError

HEADER: Final = struct.Struct(">IIBB")
HEADER_SIZE: Final = HEADER.size
MAX_BODY: Final = 4 << 20
LARGE: Final = 64 << 10  # from here on copies and page faults cost more than calls
# Asked of a socket at a time.  From 128 KiB on the C library maps memory anew for each read and gives it back, whatever
# comes: 11 us, more than a whole call costs.  A connection asks for more only after a read that filled the first size.
READ_SIZE: Final = 64 << 10
LARGE_READ_SIZE: Final = 256 << 10
MAX_STREAM_ID: Final = 0xFFFFFFFF

REQUEST: Final = 1
RESPONSE: Final = 2
DATA: Final = 3

REMOTE_CLOSED: Final = 0x01
REMOTE_OPEN: Final = 0x02
NO_DATA: Final = 0x04
END_OF_STREAM: Final = REMOTE_CLOSED | NO_DATA  # always a frame of its own

_MAX_PIECES: Final = 256  # a small bytes object costs fifty times what it holds


class Frame(NamedTuple):
    """One received frame; `body` is None when it was longer than the limit and has been dropped (`length` tells)."""

    stream_id: int
    kind: int
    flags: int
    length: int
    body: bytes | None


_new = tuple.__new__  # a third of the time that Frame(...) takes


def encode_frame(stream_id: int, kind: int, flags: int, body: bytes) -> bytes:
    """Return header and body as one string; the caller has checked the limit."""
    return HEADER.pack(len(body), stream_id, kind, flags) + body


def encode_message(stream_id: int, payload: bytes) -> bytes:
    """Return the data frame of one message of a stream.

    Raises:
        RpcError: RESOURCE_EXHAUSTED, the message is over 4 MiB.
    """
    if len(payload) > MAX_BODY:
        raise RpcError(Code.RESOURCE_EXHAUSTED, oversize_text(len(payload)))
    return encode_frame(stream_id, DATA, 0, payload)


def keep_heap() -> None:
    """Let the C library keep the memory that large messages have needed; once for all, and without touching any.

    glibc gives the end of its heap back as soon as some 256 KiB of it are free, and protobuf takes and frees twice the
    size of a message: each 1 MiB that is serialised costs a thousand page faults, 3 ms instead of 0.4.  Freeing a block
    that was mapped for itself moves that threshold.
    """
    if not _kept:
        _kept.append(True)
        bytes(8 << 20)


_kept: list[bool] = []


def oversize_text(length: int) -> str:
    """Return what a message over the limit is answered with, in Go's words."""
    return f"message length {length} exceed maximum message size of {MAX_BODY}"


class FrameReader:
    """Cuts a byte stream into frames, whatever the sizes it arrives in."""

    __slots__ = ("_begun", "_dropping", "_held", "_held_size", "_limit", "_oversized", "_wanted")

    def __init__(self, limit: int = MAX_BODY) -> None:
        self._limit = limit
        self._held: list[bytes | bytearray] = []  # what has come of the next frame; joined once, when it is whole
        self._held_size = 0
        self._wanted = HEADER_SIZE
        self._dropping = 0
        self._oversized: Frame | None = None
        self._begun: Frame | None = None  # a large frame: what is held is its body alone, which saves a copy

    @property
    def is_between_frames(self) -> bool:
        """True when the stream may end here without cutting a frame short."""
        return not self._held and self._oversized is None and self._begun is None

    def lone(self, data: bytes) -> tuple[int, int, int, int] | None:
        """Return the header if the next bytes are one whole frame, as they are with one call at a time, else None.

        Takes nothing: who does not `feed` the bytes has to take them.
        """
        if self._held or self._oversized is not None or len(data) < HEADER_SIZE:
            return None
        header = HEADER.unpack_from(data)
        return header if header[0] + HEADER_SIZE == len(data) and header[0] <= self._limit else None

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes and return the frames that they complete, in order."""
        header = self.lone(data)
        if header is not None:
            length, stream_id, kind, flags = header
            return [_new(Frame, (stream_id, kind, flags, length, data[HEADER_SIZE:]))]
        frames: list[Frame] = []
        if self._oversized is not None:
            data = self._drop(data, frames)
        if self._held:
            self._held.append(data)
            self._held_size += len(data)
            if self._held_size < self._wanted:
                if len(self._held) > _MAX_PIECES:
                    self._fold()
                return frames
            if self._begun is not None:
                data = self._end_large(data, frames)
            else:
                data = b"".join(self._held)
                self._held.clear()
        unpack, limit = HEADER.unpack_from, self._limit
        at, end = 0, len(data)
        while end - at >= HEADER_SIZE:
            length, stream_id, kind, flags = unpack(data, at)
            if length > limit:
                self._oversized = _new(Frame, (stream_id, kind, flags, length, None))
                self._dropping = length
                data = self._drop(data[at + HEADER_SIZE :], frames)
                at, end = 0, len(data)
                continue
            after = at + HEADER_SIZE + length
            if after > end:
                if length >= LARGE:
                    keep_heap()
                    self._begun = _new(Frame, (stream_id, kind, flags, length, None))
                    self._hold(data[at + HEADER_SIZE :], length)
                else:
                    self._hold(data[at:], HEADER_SIZE + length)
                return frames
            frames.append(_new(Frame, (stream_id, kind, flags, length, data[at + HEADER_SIZE : after])))
            at = after
        if at < end:
            self._hold(data[at:], HEADER_SIZE)
        return frames

    def _hold(self, data: bytes, wanted: int) -> None:
        self._held.append(data)
        self._held_size = len(data)
        self._wanted = wanted

    def _end_large(self, data: bytes, frames: list[Frame]) -> bytes:
        """Add the large frame that `data` has completed; return what lies behind it."""
        begun, rest = self._begun, b""
        assert begun is not None  # noqa: S101  # as the caller has seen
        surplus = self._held_size - self._wanted
        if surplus:
            at = len(data) - surplus
            self._held[-1], rest = data[:at], data[at:]
        frames.append(begun._replace(body=b"".join(self._held)))
        self._held.clear()
        self._begun = None
        return rest

    def _fold(self) -> None:
        """Put the pieces into one buffer: a peer may send a body by single bytes."""
        whole, *rest = self._held
        if not isinstance(whole, bytearray):
            whole = bytearray(whole)
        whole += b"".join(rest)
        self._held[:] = [whole]

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
