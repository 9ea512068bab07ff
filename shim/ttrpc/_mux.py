"""NRI's mux frames: connection id and length, four bytes each, then bytes of that connection.

Rule: bytes in, bytes out; no sockets or clocks here.  Reading takes any cut.  Writing keeps to one that containerd can
read: its ttrpc asks for 4096 bytes until it knows a message's length, then for all the rest, and a mux frame that is
larger than what it asks for ends every connection; so do more than 256 mux frames of one connection that wait.
Spec: containerd/nri pkg/net/multiplex (mux.go, ttrpc.go).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from shim.ttrpc._frame import HEADER_SIZE, MAX_BODY
from shim.ttrpc.status import Code, LocalProtocolError, TtrpcError

MUX_HEADER: Final = struct.Struct(">II")
MAX_PAYLOAD: Final = HEADER_SIZE + MAX_BODY
FIRST_CUT: Final = 4096
MAX_CONNECTION_ID: Final = 0xFFFFFFFF

_LENGTH: Final = struct.Struct(">I")


class MuxError(TtrpcError):
    """The peer broke the framing that carries the connections; none of them can go on."""

    code = Code.INTERNAL


class MuxReader:
    """Sorts a trunk's bytes by connection; holds none of them back but those of an unfinished header."""

    __slots__ = ("_connection_id", "_header", "_left")

    def __init__(self) -> None:
        self._header = b""
        self._connection_id = 0
        self._left = 0

    @property
    def is_between_frames(self) -> bool:
        """True when the trunk may end here without cutting a frame short."""
        return not self._header and not self._left

    def feed(self, data: bytes) -> Iterator[tuple[int, memoryview]]:
        """Take the next bytes and yield (connection id, bytes of it), which may be a part of a mux frame.

        To be iterated to its end.

        Raises:
            MuxError: A frame is over the limit; what came before it has been yielded.
        """
        view = memoryview(data)
        while view:
            if not self._left:
                missing = MUX_HEADER.size - len(self._header)
                self._header += view[:missing]
                view = view[missing:]
                if len(self._header) == MUX_HEADER.size:
                    self._connection_id, self._left = MUX_HEADER.unpack(self._header)
                    self._header = b""
                    if self._left > MAX_PAYLOAD:
                        text = f"mux frame of {self._left} bytes for connection {self._connection_id}"
                        raise MuxError(f"{text}: the maximum is {MAX_PAYLOAD}")
                continue
            part = view[: self._left]
            self._left -= len(part)
            view = view[len(part) :]
            yield self._connection_id, part


class MuxCutter:
    """Makes mux frames of the ttrpc frames of one connection, whatever the sizes they arrive in.

    A ttrpc frame leaves once it is whole.  Its first mux frame carries at most 4096 bytes, a second one all the rest;
    several small ones share a mux frame as long as that has at most 4096 bytes.
    """

    __slots__ = ("_connection_id", "_held")

    def __init__(self, connection_id: int) -> None:
        self._connection_id = connection_id
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes and yield the mux frames that they complete; to be iterated to its end.

        Raises:
            LocalProtocolError: A ttrpc frame is over the limit; what came before it has been yielded.
        """
        held = self._held
        held += data
        shared = 0  # so many bytes at the front are small frames that leave together
        while len(held) - shared >= _LENGTH.size:
            size = HEADER_SIZE + _LENGTH.unpack_from(held, shared)[0]
            is_whole = len(held) - shared >= size
            if shared and (not is_whole or shared + size > FIRST_CUT):
                yield self._take(shared)
                shared = 0
            if size > MAX_PAYLOAD:
                text = f"ttrpc frame of {size} bytes on connection {self._connection_id}"
                raise LocalProtocolError(f"{text}: the maximum is {MAX_PAYLOAD}")
            if not is_whole:
                return
            if size > FIRST_CUT:
                yield self._take(FIRST_CUT)
                yield self._take(size - FIRST_CUT)
            else:
                shared += size
        if shared:
            yield self._take(shared)

    def _take(self, size: int) -> bytes:
        with memoryview(self._held) as held, held[:size] as payload:
            frame = b"".join((MUX_HEADER.pack(self._connection_id, size), payload))
        del self._held[:size]
        return frame
