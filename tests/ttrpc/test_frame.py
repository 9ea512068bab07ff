"""Frames: bytes to values and back, whatever the pieces they arrive in."""

import tracemalloc
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.ttrpc import _frame
from shim.ttrpc._frame import DATA, MAX_BODY, Frame, FrameReader, encode_frame, encode_message
from shim.ttrpc.status import RpcError
from tests import strategies
from tests.strategies import FrameValues

# (hex, stream id, kind, flags, body): recorded from Go and Rust peers.
GOLDEN: Final = [
    ("0000000c0000000101000a03612e421201431a020807", 1, 1, 0, "0a03612e421201431a020807"),
    (
        "000000240000000301000a03612e421201431a0208072080e497d0122a070a016b120276312a070a016b12027632",
        3,
        1,
        0,
        "0a03612e421201431a0208072080e497d0122a070a016b120276312a070a016b12027632",
    ),
    ("000000130000000501000a03612e4212014320ffffffffffffffffff01", 5, 1, 0, "0a03612e4212014320ffffffffffffffffff01"),
    ("0000000400000001020012020808", 1, 2, 0, "12020808"),
    ("00000000000000010200", 1, 2, 0, ""),
    ("000000020000000102000a00", 1, 2, 0, "0a00"),
    (
        "000000110000000102000a0f080c120b7365727669636520612e42",
        1,
        2,
        0,
        "0a0f080c120b7365727669636520612e42",
    ),
    ("000000080000000701060a03612e42120153", 7, 1, 6, "0a03612e42120153"),
    ("000000020000000703000801", 7, 3, 0, "0801"),
    ("00000000000000070300", 7, 3, 0, ""),
    ("00000000000000070305", 7, 3, 5, ""),
    ("0000000c0000000901010a03612e421201541a020802", 9, 1, 1, "0a03612e421201541a020802"),
]

TWO: Final = bytes.fromhex(GOLDEN[0][0] + GOLDEN[6][0])
TWO_FRAMES: Final = [
    Frame(1, 1, 0, 12, bytes.fromhex(GOLDEN[0][4])),
    Frame(1, 2, 0, 17, bytes.fromhex(GOLDEN[6][4])),
]


@pytest.mark.parametrize(("wire", "stream_id", "kind", "flags", "body"), GOLDEN)
def test_encode_and_feed_match_golden_bytes(wire: str, stream_id: int, kind: int, flags: int, body: str) -> None:
    """What real peers send is what we send, and is read as what it is."""
    content = bytes.fromhex(body)
    reader = FrameReader()

    assert wire == encode_frame(stream_id, kind, flags, content).hex()
    assert [Frame(stream_id, kind, flags, len(content), content)] == reader.feed(bytes.fromhex(wire))
    assert reader.is_between_frames


@pytest.mark.parametrize("place", range(len(TWO) + 1))
def test_feed_of_two_frames_cut_anywhere_gives_both(place: int) -> None:
    """No place to cut is special, the headers' insides included."""
    reader = FrameReader()

    assert TWO_FRAMES == reader.feed(TWO[:place]) + reader.feed(TWO[place:])
    assert reader.is_between_frames


@pytest.mark.parametrize("first", range(27))
def test_feed_of_an_oversized_frame_cut_twice_anywhere(first: int) -> None:
    """Its end and the next frame's begin are found wherever the pieces end."""
    wire = encode_frame(1, 1, 0, b"12345") + encode_frame(3, 3, 5, b"12")
    for second in range(first, len(wire) + 1):
        reader = FrameReader(limit=4)
        received = reader.feed(wire[:first]) + reader.feed(wire[first:second]) + reader.feed(wire[second:])

        assert [Frame(1, 1, 0, 5, None), Frame(3, 3, 5, 2, b"12")] == received
        assert reader.is_between_frames


def test_feed_of_single_bytes_gives_both_frames() -> None:
    """A frame comes out with its last byte, not before and not after."""
    reader = FrameReader()
    counts = [len(reader.feed(TWO[at : at + 1])) for at in range(len(TWO))]

    assert [21, 48] == [at for at, count in enumerate(counts) if count]


def test_feed_of_many_frames_at_once_keeps_their_order() -> None:
    """One read may hold thousands of frames."""
    frames = FrameReader().feed(b"".join(encode_frame(number, 1, 0, b"x") for number in range(5000)))

    assert list(range(5000)) == [frame.stream_id for frame in frames]


def test_is_between_frames_only_where_the_stream_may_end() -> None:
    """Inside a header, a body or an oversized body it may not."""
    cut_header, cut_body, cut_oversized = FrameReader(), FrameReader(), FrameReader()
    cut_header.feed(TWO[:3])
    cut_body.feed(TWO[:12])
    cut_oversized.feed(_frame.HEADER.pack(MAX_BODY + 1, 1, 1, 0) + b"xyz")

    assert [False] * 3 == [reader.is_between_frames for reader in (cut_header, cut_body, cut_oversized)]
    assert FrameReader().is_between_frames


def test_feed_takes_a_body_of_exactly_the_limit() -> None:
    """4 MiB are allowed."""
    body = bytes(MAX_BODY)

    assert [Frame(1, 1, 0, MAX_BODY, body)] == FrameReader().feed(encode_frame(1, 1, 0, body))


@pytest.mark.parametrize("size", [0, 1])
def test_encode_message_takes_exactly_the_limit(size: int) -> None:
    """One byte more is refused before anything is copied."""
    assert encode_frame(7, DATA, 0, bytes(MAX_BODY * size)) == encode_message(7, bytes(MAX_BODY * size))
    with pytest.raises(RpcError, match=r"^RESOURCE_EXHAUSTED: message length 4194305 exceed maximum message size of"):
        encode_message(7, bytes(MAX_BODY + 1))


@pytest.mark.parametrize("kind", [0, _frame.REQUEST, _frame.RESPONSE, _frame.DATA, 9])
def test_feed_drops_a_body_one_byte_over_the_limit(kind: int) -> None:
    """Its header comes out with the length it had, and what follows is read as ever."""
    frames = FrameReader().feed(encode_frame(3, kind, 7, bytes(MAX_BODY + 1)) + TWO)

    assert [Frame(3, kind, 7, MAX_BODY + 1, None), *TWO_FRAMES] == frames


def test_feed_tells_of_an_oversized_frame_only_at_its_end() -> None:
    """The answer to it must not overtake its last byte."""
    reader = FrameReader(limit=4)
    wire = encode_frame(1, 1, 0, b"12345") + encode_frame(3, 1, 0, b"1234")

    assert [] == reader.feed(wire[:14])
    assert [Frame(1, 1, 0, 5, None)] == reader.feed(wire[14:15])
    assert [Frame(3, 1, 0, 4, b"1234")] == reader.feed(wire[15:])


def test_feed_of_a_body_by_small_pieces_costs_what_the_body_does() -> None:
    """A small bytes object is fifty times as large as what it holds: a peer must not choose that."""
    size = 100_000
    wire = encode_frame(1, 1, 0, bytes(range(256)) * (size // 256))
    reader = FrameReader()
    pieces = (wire[at : at + 3] for at in range(0, len(wire) - 3, 3))
    tracemalloc.start()
    try:
        frames = [frame for piece in pieces for frame in reader.feed(piece)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert [] == frames
    assert peak < 2 * size
    assert not reader.is_between_frames
    (frame,) = reader.feed(wire[(len(wire) - 3 + 2) // 3 * 3 :])
    assert frame.body == wire[10:]
    assert isinstance(frame.body, bytes)


def test_feed_of_nothing_changes_nothing() -> None:
    """Wherever it stands."""
    reader = FrameReader(limit=4)
    wire = encode_frame(1, 1, 0, b"12345") + encode_frame(3, 3, 5, b"12")
    received = []
    for at in range(len(wire)):
        assert [] == reader.feed(b"")
        received += reader.feed(wire[at : at + 1])

    assert [Frame(1, 1, 0, 5, None), Frame(3, 3, 5, 2, b"12")] == received


def test_feed_takes_a_first_byte_that_should_be_zero_for_a_length() -> None:
    """Which is then over the limit: no peer rejects it in another way."""
    reader = FrameReader()

    assert [] == reader.feed(b"\x01" + bytes(9))
    assert not reader.is_between_frames


def test_feed_drains_four_gigabytes_without_holding_them() -> None:
    """The longest body that a header can announce costs no memory."""
    reader = FrameReader()
    chunk = bytes(1 << 20)
    reader.feed(_frame.HEADER.pack(0xFFFFFFFF, 1, 1, 0))
    tracemalloc.start()
    try:
        frames = [frame for _ in range(4095) for frame in reader.feed(chunk)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    last = reader.feed(chunk[:-1] + TWO)

    assert [] == frames
    assert peak < 100_000
    assert [Frame(1, 1, 0, 0xFFFFFFFF, None), *TWO_FRAMES] == last


@strategies.FEWER
@given(st.lists(strategies.FRAMES, max_size=6), st.data())
def test_feed_gives_back_what_was_encoded(values: list[FrameValues], data: st.DataObject) -> None:
    """Frames survive any cutting; those over the limit come out without a body."""
    limit = 20
    wire = b"".join(encode_frame(*frame) for frame in values)
    reader = FrameReader(limit)
    received = [frame for piece in data.draw(strategies.cuts(wire)) for frame in reader.feed(piece)]

    assert [
        Frame(number, kind, flags, len(body), body if len(body) <= limit else None)
        for number, kind, flags, body in values
    ] == received
    assert reader.is_between_frames


@strategies.FEWER
@given(st.binary(max_size=200), st.data())
def test_feed_of_garbage_depends_on_the_bytes_alone(garbage: bytes, data: st.DataObject) -> None:
    """Nothing raises, and the pieces that bytes come in change nothing."""
    whole, reader = FrameReader(limit=30), FrameReader(limit=30)
    received = [frame for piece in data.draw(strategies.cuts(garbage)) for frame in reader.feed(piece)]

    assert whole.feed(garbage) == received
    assert whole.is_between_frames == reader.is_between_frames
