"""Mux frames written out as NRI's code has them, apart from ours, and ttrpc frames to carry in them."""

from __future__ import annotations

import struct

from shim.ttrpc._frame import HEADER, REQUEST, encode_frame


def mux_frame(connection_id: int, payload: bytes) -> bytes:
    """Return one mux frame, written out as the specification has it."""
    return struct.pack(">II", connection_id, len(payload)) + payload


def split(wire: bytes) -> list[tuple[int, bytes]]:
    """Return the mux frames of bytes that hold nothing but whole ones."""
    frames = []
    while wire:
        connection_id, size = struct.unpack_from(">II", wire)
        assert len(wire) >= 8 + size, "a mux frame is cut short"
        frames.append((connection_id, wire[8 : 8 + size]))
        wire = wire[8 + size :]
    return frames


def frame(size: int, fill: int = 0) -> bytes:
    """Return a ttrpc frame of so many bytes, its header included."""
    return encode_frame(1, REQUEST, 0, bytes([fill]) * (size - HEADER.size))
