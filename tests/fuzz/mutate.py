"""The random engine's inputs: seeds with damage, frames without sense, legal sequences, and noise.

Rule: the same seed gives the same inputs, so that a number is enough to see a failure again.
"""

import struct
from collections.abc import Sequence
from random import Random
from typing import Final

from tests.fuzz.targets import legal_sequence

_ODD_LENGTHS: Final = (0, 1, 119, 120, 121, 200, 201, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 0x7FFFFFFF, 0xFFFFFFFF)
_ODD_IDS: Final = (0, 1, 1, 2, 3, 5, 7, 9, 11, 0x7FFFFFFF, 0xFFFFFFFD, 0xFFFFFFFE, 0xFFFFFFFF)
_ODD_BYTES: Final = b"\x00\x01\x02\x03\x04\x05\x06\x08\x0a\x12\x1a\x20\x2a\x7f\x80\xff"


class Mutator:
    """Makes inputs out of seeds."""

    def __init__(self, seed: int, seeds: Sequence[bytes]) -> None:
        self._random = Random(seed)  # noqa: S311 - to be repeatable is what counts
        self._seeds = seeds

    def make(self) -> bytes:
        """Return the next input."""
        random = self._random.random()
        if random < 0.06:
            return self._random.randbytes(self._below(64))
        if random < 0.20:
            return self._frames()
        if random < 0.26:
            return legal_sequence(self._random.randbytes(2 + self._below(12)))
        return self._damaged()

    def _below(self, end: int) -> int:
        return int(self._random.random() * end)  # a third of the time that randrange takes

    def _frames(self) -> bytes:
        """Return headers that are well formed, with bodies that need not be."""
        wire = [self._random.randbytes(2)]
        for _ in range(1 + self._below(8)):
            body = self._body()
            length = _ODD_LENGTHS[self._below(12)] if self._below(12) == 0 else len(body)
            stream_id = _ODD_IDS[self._below(13)] if self._below(4) == 0 else self._below(24)
            wire.append(struct.pack(">IIBB", length, stream_id, self._below(5), self._below(8)) + body)
        return b"".join(wire)

    def _body(self) -> bytes:
        choice = self._below(4)
        if choice == 0:
            return b""
        if choice == 1:
            return (
                b"\x0a\x03a.B\x12\x01"
                + b"CTSE"[(at := self._below(4)) : at + 1]
                + self._random.randbytes(self._below(6))
            )
        return self._random.randbytes(self._below(140 if choice == 2 else 6))

    def _damaged(self) -> bytes:
        """Return a seed after up to four mishaps."""
        wire = bytearray(self._seeds[self._below(len(self._seeds))])
        for _ in range(self._below(5)):
            at = self._below(len(wire) + 1)
            match self._below(7):
                case 0 if at < len(wire):
                    wire[at] ^= 1 << self._below(8)
                case 1 if at < len(wire):
                    wire[at] = _ODD_BYTES[self._below(16)]
                case 2:
                    wire[at:at] = self._random.randbytes(1 + self._below(4))
                case 3:
                    del wire[at : at + 1 + self._below(12)]
                case 4:
                    wire[at:at] = wire[at : at + self._below(40)]
                case 5:
                    other = self._seeds[self._below(len(self._seeds))]
                    wire[at:] = other[self._below(len(other) + 1) :]
                case _:
                    wire[at : at + 4] = struct.pack(">I", _ODD_LENGTHS[self._below(12)])
        return bytes(wire[:2000])
