"""The cut of the bytes of several connections on one socket."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.ttrpc._frame import HEADER, MAX_BODY, REQUEST, encode_frame
from shim.ttrpc._mux import FIRST_CUT, MAX_CONNECTION_ID, MAX_PAYLOAD, MuxCutter, MuxError, MuxReader
from shim.ttrpc.status import LocalProtocolError
from tests.strategies import FEWER, cuts
from tests.ttrpc.mux_bytes import frame, mux_frame, split


def collect(reader: MuxReader, pieces: Sequence[bytes]) -> dict[int, bytes]:
    """Return what the reader makes of pieces, by connection."""
    found: dict[int, bytes] = {}
    for piece in pieces:
        for connection_id, part in reader.feed(piece):
            found[connection_id] = found.get(connection_id, b"") + part
    return found


@given(
    st.data(), st.lists(st.tuples(st.sampled_from([0, 1, 2, MAX_CONNECTION_ID]), st.binary(max_size=40)), max_size=8)
)
def test_reader_sorts_bytes_whatever_the_pieces(data: st.DataObject, frames: list[tuple[int, bytes]]) -> None:
    """Each connection gets its bytes in order, and no frame needs to come whole."""
    expected: dict[int, bytes] = {}
    for connection_id, payload in frames:
        if payload:
            expected[connection_id] = expected.get(connection_id, b"") + payload
    reader = MuxReader()
    found = collect(reader, data.draw(cuts(b"".join(mux_frame(*each) for each in frames))))

    assert expected == found
    assert reader.is_between_frames


@pytest.mark.parametrize("size", range(1, 11))
def test_reader_knows_when_a_frame_is_cut_short(size: int) -> None:
    """In the header as in the payload."""
    reader = MuxReader()
    wire = mux_frame(1, b"abc")
    collect(reader, [wire[:size]])

    assert not reader.is_between_frames


def test_reader_takes_the_largest_frame_and_none_larger() -> None:
    """What came before the one that is too large is not lost."""
    header = struct.pack(">II", 7, MAX_PAYLOAD + 1)
    parts = MuxReader().feed(mux_frame(1, b"abc") + mux_frame(1, bytes(MAX_PAYLOAD)) + header)

    assert 4194314 == MAX_PAYLOAD
    assert b"abc" == bytes(next(parts)[1])
    assert MAX_PAYLOAD == len(next(parts)[1])
    with pytest.raises(MuxError, match=r"^mux frame of 4194315 bytes for connection 7: the maximum is 4194314$"):
        next(parts)


SIZES: Final = st.one_of(
    st.integers(HEADER.size, 60),
    st.sampled_from([FIRST_CUT - 1, FIRST_CUT, FIRST_CUT + 1, 2 * FIRST_CUT, 3 * FIRST_CUT + 5]),
)


@given(st.data(), st.lists(SIZES, max_size=8))
def test_cutter_makes_frames_that_containerd_can_read(data: st.DataObject, sizes: list[int]) -> None:
    """A ttrpc frame's first mux frame has at most 4096 bytes, the second all the rest; only small frames share one."""
    sent = [frame(size, fill) for fill, size in enumerate(sizes)]
    cutter = MuxCutter(5)
    made = b"".join(part for piece in data.draw(cuts(b"".join(sent))) for part in cutter.feed(piece))
    payloads = [payload for connection_id, payload in split(made) if connection_id == 5]

    assert b"".join(sent) == b"".join(payloads)
    assert b"".join(mux_frame(5, payload) for payload in payloads) == made
    for size in sizes:
        if size > FIRST_CUT:
            assert [FIRST_CUT, size - FIRST_CUT] == [len(payloads.pop(0)) for _ in range(2)]
        elif payloads[0]:
            assert len(payloads[0]) <= FIRST_CUT
            payloads[0] = payloads[0][size:]
        if payloads and not payloads[0]:
            payloads.pop(0)
    assert [] == payloads


@given(st.data(), st.lists(st.sampled_from(["", "0807", "00" * 5000]), max_size=4))
@FEWER
def test_what_the_cutter_made_reads_back(data: st.DataObject, bodies: list[str]) -> None:
    """Across any pieces on both sides, for two connections in turn."""
    cutters = {number: MuxCutter(number) for number in (1, 2)}
    sent = dict.fromkeys(cutters, b"")
    wire = b""
    for place, body in enumerate(bodies):
        number = place % 2 + 1
        whole = encode_frame(place, REQUEST, 0, bytes.fromhex(body))
        sent[number] += whole
        for piece in data.draw(cuts(whole)):
            wire += b"".join(cutters[number].feed(piece))

    assert sent == {1: b"", 2: b""} | collect(MuxReader(), data.draw(cuts(wire)))


def test_cutter_keeps_a_frame_until_it_is_whole() -> None:
    """A writer that stops in the middle must not keep the trunk from others."""
    cutter = MuxCutter(1)
    whole = frame(20)

    assert [] == list(cutter.feed(whole[:-1]))
    assert [mux_frame(1, whole)] == list(cutter.feed(whole[-1:]))


def test_cutter_lets_small_frames_share_a_mux_frame() -> None:
    """containerd ends the trunk once 256 mux frames of one connection wait."""
    cutter = MuxCutter(1)
    made = b"".join(cutter.feed(frame(100) * 300))

    assert [4000] * 7 + [2000] == [len(payload) for _, payload in split(made)]


def test_cutter_takes_the_largest_frame_and_none_larger() -> None:
    """What came before the one that is too large is not lost."""
    cutter = MuxCutter(9)
    made = cutter.feed(frame(30) + frame(MAX_PAYLOAD) + HEADER.pack(MAX_BODY + 1, 1, REQUEST, 0))

    assert [30, FIRST_CUT, MAX_PAYLOAD - FIRST_CUT] == [len(next(made)) - 8 for _ in range(3)]
    with pytest.raises(
        LocalProtocolError, match=r"^ttrpc frame of 4194315 bytes on connection 9: the maximum is 4194314$"
    ):
        next(made)
