"""Peers that speak bytes: a raw client for our servers, a scripted server for our clients.

What comes from them is spelled as text, one frame each: `3 OK 0801`, `3 12 service x`, `5 D/0 0801`, `7 R/6 Sum`.
"""

from __future__ import annotations

import socket
import struct

from google.protobuf.message import Message

from shim.ttrpc._envelope import decode_request, decode_response, encode_error, encode_request, encode_response
from shim.ttrpc._frame import DATA, REQUEST, RESPONSE, Frame, FrameReader, encode_frame
from tests.fakes import PATIENCE_S
from tests.protos.conformance_ttrpc import ConformanceRpcs

SERVICE = ConformanceRpcs.ECHO.service


def request(
    stream_id: int,
    method: str,
    message: Message | bytes = b"",
    flags: int = 0,
    timeout_ns: int = 0,
    metadata: list[tuple[str, str]] | None = None,
    service: str = SERVICE,
) -> bytes:
    """Return the frame of a request."""
    body = encode_request(service, method, _bytes(message), timeout_ns, metadata or [])
    return encode_frame(stream_id, REQUEST, flags, body)


def response(stream_id: int, message: Message | bytes = b"") -> bytes:
    """Return the frame of a good response."""
    return encode_frame(stream_id, RESPONSE, 0, encode_response(_bytes(message)))


def status(stream_id: int, code: int, text: str) -> bytes:
    """Return the frame of a bad one."""
    return encode_frame(stream_id, RESPONSE, 0, encode_error(code, text))


def data(stream_id: int, message: Message | bytes = b"", flags: int = 0) -> bytes:
    """Return the frame of a message."""
    return encode_frame(stream_id, DATA, flags, _bytes(message))


def end(stream_id: int) -> bytes:
    """Return the frame that ends one side's stream."""
    return encode_frame(stream_id, DATA, 5, b"")


def _bytes(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def spell(frame: Frame) -> str:
    """Return a frame as text."""
    body = frame.body or b""
    if frame.kind == RESPONSE:
        answer = decode_response(body)
        said = f"{answer.code} {answer.message}" if answer.code else f"OK {answer.payload.hex()}"
    elif frame.kind == REQUEST:
        asked = decode_request(body)
        said = f"R/{frame.flags} {asked.method} {asked.payload.hex()}"
    else:
        said = f"D/{frame.flags} {body.hex()}"
    return f"{frame.stream_id} {said}".rstrip()


class Script:
    """One end of a connection, with blocking reads that give up after a while."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(PATIENCE_S)
        self._reader = FrameReader()
        self._frames: list[Frame] = []
        self._is_at_end = False

    def send(self, *frames: bytes) -> None:
        """Send everything."""
        self.sock.sendall(b"".join(frames))

    def frames(self, count: int) -> list[Frame]:
        """Return the next frames, fewer at the end of the connection."""
        while len(self._frames) < count and self._receive():
            pass
        taken, self._frames = self._frames[:count], self._frames[count:]
        return taken

    def said(self, count: int) -> list[str]:
        """Return the next frames as text."""
        return [spell(frame) for frame in self.frames(count)]

    def rest(self) -> list[Frame]:
        """Return every frame until the end of the connection."""
        while self._receive():
            pass
        taken, self._frames = self._frames, []
        return taken

    def rest_unparsed(self) -> int:
        """Read to the end of the connection as fast as can be; return how many bytes came."""
        size = 0
        while received := self.sock.recv(1 << 20):
            size += len(received)
        return size

    def _receive(self) -> bool:
        try:
            received = self.sock.recv(1 << 20)
        except ConnectionResetError:
            received = b""
        self._frames += self._reader.feed(received)
        return bool(received)

    def is_at_end(self) -> bool:
        """True when the peer has closed the connection and nothing more came."""
        return [] == self.rest()

    def end_writing(self) -> None:
        """Close the sending half only."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Go with a reset, where the transport has one."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Go."""
        self.sock.close()


def pair(buffer_size: int = 0) -> tuple[Script, socket.socket]:
    """Return a scripted end and the socket of the other; both with small buffers if asked."""
    ours, theirs = socket.socketpair()
    if buffer_size:
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_size)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_size)
    return Script(ours), theirs


def dial(address: str) -> Script:
    """Return a raw client of a server on a unix socket."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(address.removeprefix("unix://"))
    except OSError:
        sock.close()
        raise
    return Script(sock)
