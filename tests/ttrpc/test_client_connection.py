"""The client's end of a connection: what it sends, and what it makes of everything that comes back."""

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.ttrpc._connection import ClientConnection
from shim.ttrpc._envelope import encode_error, encode_response
from shim.ttrpc._events import ResponseReceived
from shim.ttrpc._frame import DATA, MAX_BODY, REQUEST, RESPONSE, encode_frame
from shim.ttrpc.status import LocalProtocolError, RpcError
from tests import strategies
from tests.strategies import FrameValues

OVER: Final = f"message length {MAX_BODY + 1} exceed maximum message size of 4194304"


@pytest.fixture
def client() -> ClientConnection:
    """A fresh connection."""
    return ClientConnection()


def call(client: ClientConnection) -> int:
    """Send a request and return its id."""
    return client.send_request("a.B", "C", b"")[0]


def test_send_request_matches_golden_bytes(client: ClientConnection) -> None:
    """Ids start at 1 and go up by 2; flags are 0."""
    sent = [
        client.send_request("a.B", "C", b"\x08\x07"),
        client.send_request("a.B", "C", b"\x08\x07", 5_000_000_000, [("k", "v1"), ("k", "v2")]),
        client.send_request("a.B", "C", b"", -1),
    ]

    assert [
        (1, "0000000c0000000101000a03612e421201431a020807"),
        (3, "000000240000000301000a03612e421201431a0208072080e497d0122a070a016b120276312a070a016b12027632"),
        (5, "000000130000000501000a03612e4212014320ffffffffffffffffff01"),
    ] == [(number, frame.hex()) for number, frame in sent]
    assert 3 == client.active


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (encode_frame(1, RESPONSE, 0, encode_response(b"x")), (0, "", b"x")),
        (encode_frame(1, RESPONSE, 0, b""), (0, "", b"")),
        (encode_frame(1, RESPONSE, 0, b"\x0a\x00"), (0, "", b"")),
        (encode_frame(1, RESPONSE, 255, encode_response(b"x")), (0, "", b"x")),
        (encode_frame(1, RESPONSE, 0, encode_error(12, "service a.B")), (12, "service a.B", b"")),
        (encode_frame(1, RESPONSE, 0, encode_error(99, "?")), (99, "?", b"")),
        (encode_frame(1, RESPONSE, 0, b"\x00"), (13, "unmarshal response error: field number is zero", b"")),
        (encode_frame(1, RESPONSE, 0, bytes(MAX_BODY + 1)), (8, OVER, b"")),
        (encode_frame(1, DATA, 0, bytes(MAX_BODY + 1)), (8, OVER, b"")),
        (encode_frame(1, DATA, 5, b""), (13, 'unexpected "data" message received: protocol error', b"")),
        (encode_frame(1, REQUEST, 0, b"x"), (13, 'unexpected "request" message received: protocol error', b"")),
        (encode_frame(1, 9, 0, b""), (13, 'unexpected "unknown" message received: protocol error', b"")),
    ],
)
def test_a_frame_for_a_call_ends_it(client: ClientConnection, frame: bytes, expected: tuple[int, str, bytes]) -> None:
    """With success or a status; the other calls and the connection live on."""
    call(client)
    other = call(client)

    assert [ResponseReceived(1, *expected)] == client.receive_data(frame)
    assert 1 == client.active
    assert [ResponseReceived(other, 0, "", b"y")] == client.receive_data(
        encode_frame(other, RESPONSE, 0, encode_response(b"y"))
    )


def test_frames_for_no_call_are_dropped(client: ClientConnection) -> None:
    """Answers that come late, twice, or for ids that were never used; of whatever size and type."""
    first, second = call(client), call(client)
    client.forget(first)
    client.forget(first)
    answer = encode_frame(second, RESPONSE, 0, b"")
    noise = [
        encode_frame(first, RESPONSE, 0, encode_response(b"late")),
        encode_frame(first, RESPONSE, 0, bytes(MAX_BODY + 1)),
        encode_frame(2, RESPONSE, 0, encode_error(3, "StreamID must be odd for client initiated streams")),
        encode_frame(0, DATA, 0, b"x"),
        encode_frame(4711, 200, 9, b"x"),
        answer,
        answer,
    ]

    assert [ResponseReceived(second, 0, "", b"")] == client.receive_data(b"".join(noise))
    assert 0 == client.active


def test_a_request_of_exactly_the_limit_goes_out(client: ClientConnection) -> None:
    """The envelope counts; an answer may be that long too."""
    overhead = len(client.send_request("a.B", "C", b"x" * 3_000_000)[1]) - 10 - 3_000_000

    assert MAX_BODY + 10 == len(client.send_request("a.B", "C", bytes(MAX_BODY - overhead))[1])
    assert [ResponseReceived(3, 0, "", bytes(MAX_BODY - 5))] == client.receive_data(
        encode_frame(3, RESPONSE, 0, encode_response(bytes(MAX_BODY - 5)))
    )


def test_a_request_over_the_limit_is_refused_here(client: ClientConnection) -> None:
    """It costs no id and leaves nothing behind."""
    with pytest.raises(RpcError, match=r"^a\.B/C: RESOURCE_EXHAUSTED: message length 4194\d{3} exceed") as caught:
        client.send_request("a.B", "C", bytes(MAX_BODY))

    assert 8 == caught.value.code
    assert 0 == client.active
    assert 1 == call(client)


def test_ids_end_and_never_start_over(client: ClientConnection) -> None:
    """The last one is usable; then the connection is."""
    client._next_id = 0xFFFFFFFF  # two thousand million calls are too many for a test

    assert 0xFFFFFFFF == call(client)
    with pytest.raises(LocalProtocolError, match=r"^stream ids of this connection are used up$"):
        call(client)
    assert [0xFFFFFFFF] == [event.stream_id for event in client.receive_data(encode_frame(0xFFFFFFFF, 2, 0, b""))]


@given(st.lists(st.binary(max_size=80), max_size=5))
def test_garbage_never_raises(pieces: list[bytes]) -> None:
    """Whatever bytes come, they are taken."""
    client = ClientConnection()
    calls = [call(client) for _ in range(20)]
    ended = [event.stream_id for piece in pieces for event in client.receive_data(piece)]

    assert len(set(ended)) == len(ended)
    assert set(ended) <= set(calls)
    assert len(calls) - len(ended) == client.active


@strategies.FEWER
@given(st.lists(st.tuples(st.integers(0, 12), strategies.KINDS, strategies.FLAGS, st.binary(max_size=20))), st.data())
def test_any_frames_end_each_call_at_most_once(frames: list[FrameValues], data: st.DataObject) -> None:
    """The first frame for a call is its answer, whatever the frame is."""
    client = ClientConnection()
    calls = [call(client) for _ in range(5)]
    wire = b"".join(encode_frame(*frame) for frame in frames)
    ended = [event.stream_id for piece in data.draw(strategies.cuts(wire)) for event in client.receive_data(piece)]

    assert list(dict.fromkeys(frame[0] for frame in frames if frame[0] in calls)) == ended
