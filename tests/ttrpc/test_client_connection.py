"""The client's end of a connection: what it sends, and what it makes of everything that comes back."""

from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.ttrpc._client_connection import ClientConnection
from shim.ttrpc._envelope import encode_error, encode_head, encode_response
from shim.ttrpc._events import EndReceived, FaultReceived, MessageReceived, ResponseReceived
from shim.ttrpc._frame import DATA, HEADER, MAX_BODY, REQUEST, RESPONSE, encode_frame
from shim.ttrpc._streams import Kind
from shim.ttrpc.status import LocalProtocolError, RpcError
from tests import strategies
from tests.fuzz.schema import PbRequest, PbResponse
from tests.strategies import FrameValues
from tests.ttrpc.pairs import data, head, heard, told

OVER: Final = f"message length {MAX_BODY + 1} exceed maximum message size of 4194304"
WITHOUT_SERVER_STREAM: Final = [Kind.UNARY, Kind.CLIENT_STREAM]
WITH_SERVER_STREAM: Final = [Kind.SERVER_STREAM, Kind.BIDI]
WITH_CLIENT_STREAM: Final = [Kind.CLIENT_STREAM, Kind.BIDI]


@pytest.fixture
def client() -> ClientConnection:
    """A fresh connection."""
    return ClientConnection()


def call(client: ClientConnection, kind: Kind = Kind.UNARY) -> int:
    """Send a request and return its id."""
    return client.send_request(head(kind), b"", kind)[0]


def answer(stream_id: int, body: bytes = b"") -> bytes:
    """Return a response's frame."""
    return encode_frame(stream_id, RESPONSE, 0, body)


# What goes out.


def test_golden_requests(client: ClientConnection) -> None:
    """Ids start at 1 and go up by 2; the flags say which streams there will be."""
    unary = head()
    pairs = [("k", "v1"), ("k", "v2")]
    sent = [
        client.send_request(unary, b"\x08\x07"),
        client.send_request(unary, b"\x08\x07", Kind.UNARY, 5_000_000_000, pairs),
        client.send_request(unary, b"", timeout_ns=-1),
        client.send_request(head(Kind.CLIENT_STREAM), b"", Kind.CLIENT_STREAM),
        client.send_request(head(Kind.SERVER_STREAM), b"\x08\x02", Kind.SERVER_STREAM),
        client.send_request(head(Kind.BIDI), b"", Kind.BIDI),
    ]

    assert [
        (1, "0000000c0000000101000a03612e421201431a020807"),
        (3, "000000240000000301000a03612e421201431a0208072080e497d0122a070a016b120276312a070a016b12027632"),
        (5, "000000130000000501000a03612e4212014320ffffffffffffffffff01"),
        (7, "000000080000000701060a03612e42120153"),
        (9, "0000000c0000000901010a03612e421201541a020802"),
        (11, "000000080000000b01060a03612e42120145"),
    ] == [(number, frame.hex()) for number, frame in sent]
    assert 6 == client.active


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384])
def test_a_payload_of_any_size_is_what_protobuf_writes_and_reads(client: ClientConnection, size: int) -> None:
    """Also where its length takes one byte more."""
    payload = bytes(size)
    body = PbRequest(service="a.B", method="C", payload=payload).SerializeToString()

    assert (1, encode_frame(1, REQUEST, 0, body)) == client.send_request(head(), payload)
    assert [ResponseReceived(1, 0, "", payload)] == client.receive_data(
        answer(1, PbResponse(payload=payload).SerializeToString())
    )


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300])
def test_an_answer_says_the_same_whole_and_in_pieces(size: int) -> None:
    """One that comes alone takes a shorter way if it is small."""
    frame = answer(1, PbResponse(payload=bytes(size)).SerializeToString())
    for pieces in ([frame], [frame[:12], frame[12:]], [frame[at : at + 1] for at in range(len(frame))]):
        client = ClientConnection()
        call(client)

        assert [ResponseReceived(1, 0, "", bytes(size))] == [
            event for piece in pieces for event in client.receive_data(piece)
        ]
        assert not client.is_active(1)


def test_a_payload_that_looks_like_an_answer_is_none(client: ClientConnection) -> None:
    """Though it comes by itself, behind the rest of its frame."""
    first, second = call(client), call(client)
    inner = answer(second, encode_response(b"no"))
    frame = answer(first, encode_response(inner))

    assert [] == client.receive_data(frame[: -len(inner)])
    assert [ResponseReceived(first, 0, "", inner)] == client.receive_data(inner)
    assert client.is_active(second)


def test_golden_data(client: ClientConnection) -> None:
    """A message, an empty one, and the end in a frame of its own."""
    for _ in range(3):
        call(client)
    number = call(client, Kind.CLIENT_STREAM)

    assert "000000020000000703000801" == client.send_message(number, b"\x08\x01").hex()
    assert "00000000000000070300" == client.send_message(number, b"").hex()
    assert "00000000000000070305" == client.send_end(number).hex()
    assert client.is_active(number)


@pytest.mark.parametrize("kind", WITH_CLIENT_STREAM)
def test_nothing_goes_out_behind_the_end(client: ClientConnection, kind: Kind) -> None:
    """A second end or a message ends the process of a Go 1.2.7 server (trap T1)."""
    number = call(client, kind)
    client.send_end(number)
    sends: list[Callable[[], bytes]] = [lambda: client.send_end(number), lambda: client.send_message(number, b"")]
    for send in sends:
        with pytest.raises(LocalProtocolError, match=r"the stream is local closed$"):
            send()

    assert client.is_active(number)


@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.SERVER_STREAM])
def test_a_method_without_a_client_stream_sends_no_data(client: ClientConnection, kind: Kind) -> None:
    """Data on a unary call ends the process of every Go server since 1.2."""
    number = call(client, kind)
    sends: list[Callable[[], bytes]] = [lambda: client.send_end(number), lambda: client.send_message(number, b"")]
    for send in sends:
        with pytest.raises(LocalProtocolError, match=r"the stream is local closed$"):
            send()


LAST_FRAMES: Final = [
    pytest.param(answer(1), id="response"),
    pytest.param(answer(1, encode_error(5, "nf")), id="error"),
    pytest.param(answer(1, b"\x00"), id="garbage"),
    pytest.param(data(1, 5), id="end"),
    pytest.param(data(1, 1), id="message that closes"),
    pytest.param(encode_frame(1, REQUEST, 0, b""), id="request"),
    pytest.param(answer(1, bytes(MAX_BODY + 1)), id="oversized"),
]


@pytest.mark.parametrize("frame", LAST_FRAMES)
@pytest.mark.parametrize("kind", WITH_CLIENT_STREAM)
def test_nothing_goes_out_behind_the_servers_last_frame(client: ClientConnection, kind: Kind, frame: bytes) -> None:
    """The server has forgotten the id: no message, and not even the end that this side still owes."""
    number = call(client, kind)
    client.send_message(number, b"x")
    client.receive_data(frame)

    assert not client.is_active(number)
    assert b"" == client.send_end(number)
    with pytest.raises(LocalProtocolError, match=r"^cannot send message: the stream is finished$"):
        client.send_message(number, b"x")


@pytest.mark.parametrize("kind", Kind)
def test_a_forgotten_call_is_silent(client: ClientConnection, kind: Kind) -> None:
    """Nothing goes out for it, since it may have ended at the server, and what comes is dropped."""
    number = call(client, kind)
    client.forget(number)
    client.forget(number)

    assert 0 == client.active
    assert b"" == client.send_end(number)
    with pytest.raises(LocalProtocolError):
        client.send_message(number, b"x")
    assert [] == client.receive_data(data(number, 0, b"x") + data(number, 5) + answer(number))
    assert number + 2 == call(client)


def test_a_request_of_exactly_the_limit_goes_out(client: ClientConnection) -> None:
    """The envelope counts."""
    overhead = len(client.send_request(head(), b"x" * 3_000_000)[1]) - 10 - 3_000_000
    number, frame = client.send_request(head(), bytes(MAX_BODY - overhead))

    assert (MAX_BODY, number, REQUEST, 0) == HEADER.unpack_from(frame)
    assert MAX_BODY + 10 == len(frame)


@pytest.mark.parametrize("kind", Kind)
def test_a_request_over_the_limit_is_refused_here(client: ClientConnection, kind: Kind) -> None:
    """It costs no id and leaves nothing behind."""
    overhead = len(client.send_request(head(), b"x" * 3_000_000)[1]) - 10 - 3_000_000
    with pytest.raises(RpcError, match=r"^RESOURCE_EXHAUSTED: message length 4194305 exceed maximum") as caught:
        client.send_request(head(), bytes(MAX_BODY - overhead + 1), kind)

    assert 8 == caught.value.code
    assert 1 == client.active
    assert 3 == call(client)


def test_a_message_over_the_limit_is_refused_here(client: ClientConnection) -> None:
    """The stream goes on; one of exactly the limit is fine."""
    number = call(client, Kind.BIDI)
    with pytest.raises(RpcError, match=r"^RESOURCE_EXHAUSTED: message length 4194305 exceed"):
        client.send_message(number, bytes(MAX_BODY + 1))

    assert encode_frame(number, DATA, 0, bytes(MAX_BODY)) == client.send_message(number, bytes(MAX_BODY))


def test_ids_end_and_never_start_over(client: ClientConnection) -> None:
    """The last one is usable; then the connection is."""
    client._next_id = 0xFFFFFFFD  # two thousand million calls are too many for a test

    assert [0xFFFFFFFD, 0xFFFFFFFF] == [call(client), call(client)]
    with pytest.raises(LocalProtocolError, match=r"^stream ids of this connection are used up$"):
        call(client)
    assert [0xFFFFFFFF] == [event.stream_id for event in client.receive_data(answer(0xFFFFFFFF))]
    assert 1 == client.active


# What comes back.


@pytest.mark.parametrize("kind", WITHOUT_SERVER_STREAM)
@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (answer(1, encode_response(b"x")), ResponseReceived(1, 0, "", b"x")),
        (answer(1), ResponseReceived(1, 0, "", b"")),
        (answer(1, b"\x0a\x00"), ResponseReceived(1, 0, "", b"")),
        (encode_frame(1, RESPONSE, 255, encode_response(b"x")), ResponseReceived(1, 0, "", b"x")),
        (answer(1, b"\x0a\x04\x12\x02ok"), ResponseReceived(1, 0, "ok", b"")),
        (answer(1, encode_error(12, "service a.B")), ResponseReceived(1, 12, "service a.B", b"")),
        (answer(1, encode_error(5, "nf", (("t", b"v"),))), ResponseReceived(1, 5, "nf", b"", (("t", b"v"),))),
        (answer(1, encode_error(99, "?")), ResponseReceived(1, 99, "?", b"")),
        (answer(1, encode_error(5, "nf") + b"\x12\x01\xff"), ResponseReceived(1, 5, "nf", b"\xff")),
        (answer(1, b"\x00"), FaultReceived(1, "unmarshal response error: field number is zero")),
        (answer(1, bytes(MAX_BODY + 1)), ResponseReceived(1, 8, OVER, b"")),
        (data(1, 0, bytes(MAX_BODY + 1)), ResponseReceived(1, 8, OVER, b"")),
        (encode_frame(1, 9, 0, bytes(MAX_BODY + 1)), ResponseReceived(1, 8, OVER, b"")),
        (data(1), FaultReceived(1, 'unexpected "data" message received: protocol error')),
        (data(1, 5), FaultReceived(1, 'unexpected "data" message received: protocol error')),
        (encode_frame(1, REQUEST, 0, b"x"), FaultReceived(1, 'unexpected "request" message received: protocol error')),
        (encode_frame(1, 0, 0, b""), FaultReceived(1, 'unexpected "unknown" message received: protocol error')),
        (encode_frame(1, 9, 0, b""), FaultReceived(1, 'unexpected "unknown" message received: protocol error')),
    ],
)
def test_any_frame_ends_a_call_without_a_server_stream(
    client: ClientConnection, kind: Kind, frame: bytes, expected: object
) -> None:
    """With success or a status; the other calls and the connection live on."""
    call(client, kind)
    other = call(client)

    assert [expected] == client.receive_data(frame)
    assert [] == client.receive_data(frame)
    assert 1 == client.active
    assert [ResponseReceived(other, 0, "", b"y")] == client.receive_data(answer(other, encode_response(b"y")))


@pytest.mark.parametrize("kind", WITH_SERVER_STREAM)
@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        pytest.param(answer(1, encode_response(b"x")), ["1 message 78", "1 end"], id="full response"),
        pytest.param(answer(1), ["1 end"], id="empty response"),
        pytest.param(answer(1, b"\x0a\x00"), ["1 end"], id="empty response of Rust's"),
        pytest.param(answer(1, encode_error(5, "nf")), ["1 error 5 nf"], id="error"),
        pytest.param(answer(1, b"\x00"), ["1 fault unmarshal response error: field number is zero"], id="garbage"),
        pytest.param(data(1, 5), ["1 end"], id="end"),
        pytest.param(data(1, 5, "08"), ["1 end"], id="end with bytes that are no message"),
        pytest.param(data(1, 1, "08"), ["1 message 08", "1 end"], id="message that closes"),
        pytest.param(data(1, 1), ["1 message", "1 end"], id="empty message that closes"),
        pytest.param(data(1, 0, bytes(MAX_BODY + 1)), [f"1 error 8 {OVER}"], id="oversized message"),
        pytest.param(answer(1, bytes(MAX_BODY + 1)), [f"1 error 8 {OVER}"], id="oversized response"),
        pytest.param(
            encode_frame(1, REQUEST, 0, b""),
            ['1 fault unexpected "request" message received: protocol error'],
            id="request",
        ),
        pytest.param(
            encode_frame(1, 4, 0, b""), ['1 fault unexpected "unknown" message received: protocol error'], id="unknown"
        ),
    ],
)
def test_what_ends_a_server_stream(client: ClientConnection, kind: Kind, frame: bytes, expected: list[str]) -> None:
    """Well or badly, behind the messages that came before; what follows is dropped."""
    call(client, kind)
    before = [MessageReceived(1, b"a"), MessageReceived(1, b"")]

    assert before == client.receive_data(data(1, 0, b"a") + data(1) + data(1, 4, b"no data"))
    assert expected == heard(client.receive_data(frame + data(1) + data(1, 5) + answer(1)))
    assert 0 == client.active


def test_a_message_of_exactly_the_limit_comes(client: ClientConnection) -> None:
    """In data as in a response."""
    call(client, Kind.BIDI)
    call(client)

    assert [MessageReceived(1, bytes(MAX_BODY))] == client.receive_data(data(1, 0, bytes(MAX_BODY)))
    assert [ResponseReceived(3, 0, "", bytes(MAX_BODY - 5))] == client.receive_data(
        answer(3, encode_response(bytes(MAX_BODY - 5)))
    )


@pytest.mark.parametrize("kind", WITH_CLIENT_STREAM)
def test_an_end_from_both_sides_in_either_order(client: ClientConnection, kind: Kind) -> None:
    """A server may end before the client has; the client's end alone ends nothing."""
    first, second = call(client, kind), call(client, kind)
    last = data if kind.has_server_stream else lambda number, _flags: answer(number)
    client.send_end(first)

    assert client.is_active(first)
    assert 2 == len(client.receive_data(last(first, 5) + last(second, 5)))
    assert b"" == client.send_end(second)
    assert 0 == client.active


def test_frames_for_no_call_are_dropped(client: ClientConnection) -> None:
    """Answers that come late, twice, or for ids that were never used; of whatever size and type."""
    first, second = call(client), call(client)
    client.forget(first)
    noise = [
        answer(first, encode_response(b"late")),
        answer(first, bytes(MAX_BODY + 1)),
        answer(2, encode_error(3, "StreamID must be odd for client initiated streams")),
        answer(second + 2),
        data(0, 0, b"x"),
        encode_frame(4711, 200, 9, b"x"),
        answer(second),
        answer(second),
    ]

    assert [ResponseReceived(second, 0, "", b"")] == client.receive_data(b"".join(noise))
    assert 0 == client.active


def test_answers_in_any_order(client: ClientConnection) -> None:
    """Error replies overtake others routinely."""
    numbers = [call(client) for _ in range(50)]
    shuffled = numbers[::-3] + numbers[-2::-3] + numbers[-3::-3]

    assert shuffled == [event.stream_id for event in client.receive_data(b"".join(map(answer, shuffled)))]


def test_a_head_is_made_once() -> None:
    """It is what every request for a method begins with."""
    client = ClientConnection()
    frames = [client.send_request(encode_head("a.B", "C"), payload)[1] for payload in (b"", b"\x08\x07")]

    assert ["1 R/0 0a03612e42120143", "3 R/0 0a03612e421201431a020807"] == [*told(frames[0]), *told(frames[1])]


# Anything at all.


@given(st.lists(st.binary(max_size=80), max_size=5))
def test_garbage_never_raises(pieces: list[bytes]) -> None:
    """Whatever bytes come, they are taken."""
    client = ClientConnection()
    calls = [call(client, kind) for _ in range(5) for kind in Kind]
    events = [event for piece in pieces for event in client.receive_data(piece)]
    ended = [event.stream_id for event in events if not isinstance(event, MessageReceived)]

    assert len(set(ended)) == len(ended)
    assert set(ended) <= set(calls)
    assert len(calls) - len(ended) == client.active


@strategies.FEWER
@given(st.lists(st.tuples(st.integers(0, 12), strategies.KINDS, strategies.FLAGS, st.binary(max_size=20))), st.data())
def test_any_frames_end_each_call_at_most_once(frames: list[FrameValues], drawn: st.DataObject) -> None:
    """The first frame for a unary call is its answer, whatever the frame is; a stream's goes on until it ends."""
    client = ClientConnection()
    unary = [call(client) for _ in range(3)]
    streams = [call(client, Kind.BIDI) for _ in range(2)]
    wire = b"".join(encode_frame(*frame) for frame in frames)
    events = [event for piece in drawn.draw(strategies.cuts(wire)) for event in client.receive_data(piece)]
    ended = [event.stream_id for event in events if not isinstance(event, MessageReceived)]

    assert list(dict.fromkeys(frame[0] for frame in frames if frame[0] in unary)) == [n for n in ended if n in unary]
    assert len(set(ended)) == len(ended)
    assert all(event.stream_id in streams for event in events if isinstance(event, (MessageReceived, EndReceived)))
