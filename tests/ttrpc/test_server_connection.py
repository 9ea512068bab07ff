"""The server's end of a connection: what it takes for a call, and what it answers to everything else."""

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.ttrpc._envelope import decode_response, encode_error, encode_request
from shim.ttrpc._events import EndReceived, FaultReceived, MessageReceived, RequestReceived
from shim.ttrpc._frame import DATA, HEADER, MAX_BODY, MAX_STREAM_ID, REQUEST, RESPONSE, encode_frame
from shim.ttrpc._server_connection import ServerConnection
from shim.ttrpc._streams import Kind
from shim.ttrpc.status import LocalProtocolError, RpcError
from tests import strategies
from tests.fuzz.schema import PbResponse
from tests.strategies import FrameValues
from tests.ttrpc.pairs import METHODS, NAMES, Method, data, heard, request, told

Server = ServerConnection[Method]

OVER: Final = f"message length {MAX_BODY + 1} exceed maximum message size of 4194304"
EVEN: Final = "error 3 StreamID must be odd for client initiated streams"
REUSED: Final = "error 3 StreamID cannot be re-used and must increment"
INACTIVE: Final = "error 3 StreamID is no longer active"
GARBLED: Final = "error 3 unmarshal request error: field number is zero"
STREAMING: Final = [Kind.SERVER_STREAM, Kind.CLIENT_STREAM, Kind.BIDI]


@pytest.fixture
def server() -> Server:
    """A fresh connection."""
    return ServerConnection(METHODS)


def say(server: Server, *frames: bytes) -> tuple[list[str], list[str]]:
    """Return the events and the answers of frames."""
    return heard(server.receive_data(b"".join(frames))), told(server.data_to_send())


# Calls that are taken.


def test_a_request_becomes_an_event(server: Server) -> None:
    """With everything the envelope says."""
    body = encode_request("a.B", "C", b"\x08\x07", 5, [("k", "v")])
    method = METHODS.find("a.B", "C")

    assert [RequestReceived(1, method, b"\x08\x07", 5, (("k", "v"),))] == server.receive_data(
        encode_frame(1, REQUEST, 0, body)
    )
    assert b"" == server.data_to_send()
    assert 1 == server.active


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        ("0000000c0000000101000a03612e421201431a020807", [(1, "C", "0807", 0, ())]),
        (
            "000000240000000301000a03612e421201431a0208072080e497d0122a070a016b120276312a070a016b12027632",
            [(3, "C", "0807", 5_000_000_000, (("k", "v1"), ("k", "v2")))],
        ),
        ("000000130000000501000a03612e4212014320ffffffffffffffffff01", [(5, "C", "", -1, ())]),
        ("000000080000000701060a03612e42120153", [(7, "S", "", 0, ())]),
        ("0000000c0000000901010a03612e421201541a020802", [(9, "T", "0802", 0, ())]),
    ],
)
def test_golden_requests_are_read(server: Server, wire: str, expected: list[object]) -> None:
    """As Go's and Rust's clients send them."""
    events = server.receive_data(bytes.fromhex(wire))

    assert expected == [
        (event.stream_id, event.method.name, event.payload.hex(), event.timeout_ns, event.metadata)
        for event in events
        if isinstance(event, RequestReceived)
    ]


def test_golden_data_is_read(server: Server) -> None:
    """A message, an empty one, and the end."""
    wire = "000000020000000703000801", "00000000000000070300", "00000000000000070305"
    server.receive_data(request(7, Kind.CLIENT_STREAM, 6, b""))

    assert [MessageReceived(7, b"\x08\x01"), MessageReceived(7, b""), EndReceived(7)] == server.receive_data(
        bytes.fromhex("".join(wire))
    )


@pytest.mark.parametrize("kind", Kind)
def test_request_flags_are_ignored(server: Server, kind: Kind) -> None:
    """Go's server looks at none, and its clients and Rust's set different ones; RC closes no client's stream."""
    calls = [request(1 + 2 * flags, kind, flags, b"") for flags in range(256)]
    events, answers = say(server, *calls)
    after, stray = say(server, data(3, 0, "08"))

    assert ([f"{1 + 2 * flags} call {NAMES[kind]}" for flags in range(256)], []) == (events, answers)
    assert ((["3 message 08"], []) if kind.has_client_stream else ([], [f"3 {INACTIVE}"])) == (after, stray)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Kind.UNARY, ["1 call C 0807"]),
        (Kind.SERVER_STREAM, ["1 call T 0807"]),
        (Kind.CLIENT_STREAM, ["1 call S", "1 message 0807"]),
        (Kind.BIDI, ["1 call E", "1 message 0807"]),
    ],
)
@pytest.mark.parametrize("flags", [0, 2, 6])
def test_a_payload_in_the_opening_request(server: Server, kind: Kind, expected: list[str], flags: int) -> None:
    """Is the first message of a client's stream where there is one, whatever the flags say; else part of the call."""
    assert (expected, []) == say(server, request(1, kind, flags))


def test_another_order_of_fields_is_the_same_call(server: Server) -> None:
    """The usual one is only read faster."""
    body = bytes.fromhex("2005 1a020807 2a060a016b120176 120143 0a03612e42")

    assert [RequestReceived(1, METHODS.find("a.B", "C"), b"\x08\x07", 5, (("k", "v"),))] == server.receive_data(
        encode_frame(1, REQUEST, 0, body)
    )


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        pytest.param(b"\x1a\x80\x01" + bytes(128), [f"3 call C {'00' * 128}"], id="length of two bytes"),
        pytest.param(b"\x1a\x00", ["3 call C"], id="empty payload"),
        pytest.param(b"", ["3 call C"], id="no payload"),
        pytest.param(b"\x1a\x01\x08\x1a\x01\x09", ["3 call C 09"], id="two payloads"),
        pytest.param(b"\x12\x01T", ["3 call T"], id="another method behind"),
        # The first byte of the length, taken for all of it, is what is there.
        pytest.param(b"\x1a\x80\x01" + bytes(127), [], id="payload cut short"),
        pytest.param(b"\x1a", [], id="length cut short"),
    ],
)
def test_the_same_method_with_an_unusual_payload(server: Server, tail: bytes, expected: list[str]) -> None:
    """Is read as that of another would be."""
    server.receive_data(request(1))
    body = encode_request("a.B", "C", b"") + tail
    events, answers = say(server, encode_frame(3, REQUEST, 0, body))

    assert expected == events
    assert ([] if expected else ["3 error 3 unmarshal request error: unexpected end of message"]) == answers


# What ends a call.


def test_golden_responses(server: Server) -> None:
    """As Go's server sends them."""
    server.receive_data(request(1) + request(3) + request(5) + request(7, Kind.BIDI, 6, b""))

    assert "0000000400000001020012020808" == server.send_response(1, b"\x08\x08").hex()
    assert "00000000000000030200" == server.send_response(3, b"").hex()
    assert encode_frame(5, 2, 0, encode_error(12, "service a.B")) == server.send_error(5, 12, "service a.B")
    assert "000000020000000703000801" == server.send_message(7, b"\x08\x01").hex()
    assert "00000000000000070300" == server.send_message(7, b"").hex()
    assert "00000000000000070305" == server.send_end(7).hex()
    assert 0 == server.active


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384])
def test_a_response_of_any_size_is_what_protobuf_writes(server: Server, size: int) -> None:
    """Also where its length takes one byte more."""
    server.receive_data(request(1))
    payload = bytes(size)

    assert encode_frame(1, RESPONSE, 0, PbResponse(payload=payload).SerializeToString()) == server.send_response(
        1, payload
    )


@pytest.mark.parametrize("kind", Kind)
def test_a_call_is_ended_once(server: Server, kind: Kind) -> None:
    """What comes after its deadline's answer gives no bytes; so does an end of no call at all."""
    server.receive_data(request(1, kind))

    assert ["1 error 4 context deadline exceeded"] == told(server.send_error(1, 4, "context deadline exceeded"))
    assert not server.is_active(1)
    for number in (1, 7):
        assert b"" == server.send_response(number, b"x") + server.send_error(number, 2, "x") + server.send_end(number)
        with pytest.raises(LocalProtocolError, match=r"^cannot send message: the stream is finished$"):
            server.send_message(number, b"x")


@pytest.mark.parametrize("kind", [Kind.SERVER_STREAM, Kind.BIDI])
def test_a_server_stream_never_ends_with_a_response(server: Server, kind: Kind) -> None:
    """Go's and Rust's clients would take it for one more message."""
    server.receive_data(request(1, kind))
    with pytest.raises(LocalProtocolError, match=r"^a server's stream ends with send_end, not with a response$"):
        server.send_response(1, b"")

    assert server.is_active(1)
    assert ["1 D/5"] == told(server.send_end(1))


@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.CLIENT_STREAM])
def test_a_method_without_a_server_stream_sends_no_data(server: Server, kind: Kind) -> None:
    """Go's client fails with `received data from non-streaming server`."""
    server.receive_data(request(1, kind))
    with pytest.raises(LocalProtocolError, match=r"^cannot send message: the stream is"):
        server.send_message(1, b"x")
    with pytest.raises(LocalProtocolError, match=r"^a method without a server's stream ends with a response$"):
        server.send_end(1)

    assert ["1 OK 78"] == told(server.send_response(1, b"x"))


@pytest.mark.parametrize("code", [0, 1 << 32])
def test_an_error_is_never_sent_as_success(server: Server, code: int) -> None:
    """A status whose low 32 bits are zero is one; for a stream it would be a message, too."""
    server.receive_data(request(1) + request(3, Kind.BIDI))

    assert ["1 error 2 x", "3 error 2 x"] == told(server.send_error(1, code, "x") + server.send_error(3, code, "x"))


def test_an_error_that_cannot_be_encoded_leaves_the_call_to_be_answered(server: Server) -> None:
    """Else its client waits for ever."""
    server.receive_data(request(1))
    with pytest.raises(TypeError):
        server.send_error(1, 5, "x", (("type", 5),))  # type: ignore[arg-type]

    assert ["1 error 13 x"] == told(server.send_error(1, 13, "x"))


def test_error_details_go_out(server: Server) -> None:
    """As they are, even with a type that no text can be."""
    server.receive_data(request(1))
    frame = server.send_error(1, 5, "nf", (("type.googleapis.com/x", b"\x08\x01"), ("\udcff", b"")))

    assert (5, "nf", b"", (("type.googleapis.com/x", b"\x08\x01"), ("?", b""))) == decode_response(frame[10:])


# Frames that are no call, each answered as real peers expect.


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        pytest.param(request(2), [f"2 {EVEN}"], id="even id"),
        pytest.param(request(0), [f"0 {EVEN}"], id="zero id"),
        pytest.param(request(5) + request(5), [f"5 {REUSED}"], id="id of a call in flight"),
        pytest.param(request(5) + request(3), [f"3 {REUSED}"], id="decreasing id"),
        pytest.param(encode_frame(5, REQUEST, 0, b"\x00"), [f"5 {GARBLED}"], id="bad body"),
        pytest.param(
            encode_frame(5, REQUEST, 0, b"\x00") + request(5),
            [f"5 {GARBLED}", f"5 {REUSED}"],
            id="the id of a bad request is used up",
        ),
        pytest.param(
            encode_frame(5, REQUEST, 0, encode_request("a.B", "X", b"")) + request(5),
            ["5 error 12 method X", f"5 {REUSED}"],
            id="unknown method",
        ),
        pytest.param(
            encode_frame(5, REQUEST, 0, encode_request("a.X", "X", b"")),
            ["5 error 12 service a.X"],
            id="unknown service",
        ),
        pytest.param(encode_frame(5, REQUEST, 0, b""), ["5 error 12 service"], id="empty body"),
        pytest.param(encode_frame(2, REQUEST, 0, b"\x00"), [f"2 {EVEN}"], id="parity comes before the body"),
        pytest.param(
            request(5) + encode_frame(3, REQUEST, 0, b"\x00"),
            [f"3 {REUSED}"],
            id="the order of ids comes before the body",
        ),
        pytest.param(encode_frame(1, REQUEST, 0, bytes(MAX_BODY + 1)), [f"1 error 8 {OVER}"], id="oversized request"),
        pytest.param(
            encode_frame(4, REQUEST, 0, bytes(MAX_BODY + 1)), [f"4 error 8 {OVER}"], id="size comes before parity"
        ),
        pytest.param(data(9, 0, bytes(MAX_BODY + 1)), [f"9 error 8 {OVER}"], id="oversized data"),
        pytest.param(encode_frame(1, RESPONSE, 0, bytes(MAX_BODY + 1)), [], id="oversized response"),
        pytest.param(encode_frame(1, 77, 0, bytes(MAX_BODY + 1)), [], id="oversized frame of unknown type"),
        pytest.param(encode_frame(1, RESPONSE, 0, b"\x0a\x00"), [], id="response"),
        pytest.param(b"".join(encode_frame(1, kind, 0, b"x") for kind in (0, 4, 5, 255)), [], id="unknown types"),
        pytest.param(data(2), [f"2 {EVEN}"], id="data on an even id"),
        pytest.param(data(9), [f"9 {INACTIVE}"], id="data on an id never opened"),
        pytest.param(data(9, 5) * 50, [f"9 {INACTIVE}"], id="data that ends, repeated"),
        pytest.param(request(1) + data(1, 0, b"x") * 50, [f"1 {INACTIVE}"], id="data for a unary call"),
        pytest.param(request(1) + data(1, 4) + data(1, 1), [f"1 {INACTIVE}"], id="half an end for a unary call"),
        pytest.param(request(1) + data(1, 5) * 2, [], id="needless ends for a unary call"),
        pytest.param(
            request(1) + data(1, 0, bytes(MAX_BODY + 1)), [f"1 error 8 {OVER}"], id="oversized data for a unary call"
        ),
    ],
)
def test_bad_frames_are_answered_as_real_peers_expect(server: Server, frames: bytes, expected: list[str]) -> None:
    """Each in its own words, once; the calls in flight and the next one are as if nothing had been."""
    server.receive_data(frames)
    before = server.active

    assert expected == told(server.data_to_send())
    assert (["99 call C 0807"], []) == say(server, request(99))
    assert ["99 OK 78"] == told(server.send_response(99, b"x"))
    assert before == server.active


def test_oversized_data_leaves_a_unary_call_alone(server: Server) -> None:
    """None of its messages is lost by that; its own answer still goes out."""
    server.receive_data(request(1) + request(3, Kind.SERVER_STREAM) + request(5, Kind.BIDI, 6, b"") + data(5, 5))
    say(server, *(data(number, 0, bytes(MAX_BODY + 1)) for number in (1, 3, 5)))

    assert 3 == server.active
    assert ["1 OK 78"] == told(server.send_response(1, b"x"))


@pytest.mark.parametrize("kind", STREAMING)
def test_a_rejected_duplicate_leaves_the_first_call_alone(server: Server, kind: Kind) -> None:
    """Unlike Go, which drops the stream: its messages and its answer still go."""
    assert [f"1 {REUSED}"] == say(server, request(1, kind, 6, b"") + request(1))[1]
    assert ["1 message 08"] * kind.has_client_stream == say(server, data(1, 0, "08"))[0]
    assert server.is_active(1)


def test_a_flood_of_dead_streams_is_remembered_in_part(server: Server) -> None:
    """Memory is bounded: after hundreds of others an id may be answered a second time."""
    say(server, *(data(number) for number in range(1, 2001, 2)))

    assert [f"1 {INACTIVE}"] == say(server, data(1999), data(1))[1]


def test_the_highest_id_is_taken_and_then_no_other(server: Server) -> None:
    """Gaps are fine; there is no wrap."""
    events, answers = say(server, request(9), request(MAX_STREAM_ID - 2), request(MAX_STREAM_ID), request(1))

    assert ["9 call C 0807", "4294967293 call C 0807", "4294967295 call C 0807"] == events
    assert [f"1 {REUSED}"] == answers


# Data of streams: the rows of the protocol's table.


@pytest.mark.parametrize("kind", [Kind.CLIENT_STREAM, Kind.BIDI])
@pytest.mark.parametrize(
    ("flags", "body", "expected"),
    [
        pytest.param(0, "0805", ["1 message 0805"], id="a message"),
        pytest.param(0, "", ["1 message"], id="an empty message"),
        pytest.param(5, "", ["1 end"], id="the end"),
        pytest.param(5, "0805", ["1 end"], id="the end with bytes that are no message"),
        pytest.param(1, "0805", ["1 message 0805", "1 end"], id="a message that closes"),
        pytest.param(1, "", ["1 message", "1 end"], id="an empty message that closes"),
        pytest.param(4, "", [], id="no data"),
        pytest.param(4, "0805", [], id="no data with bytes"),
        pytest.param(0xF8, "08", ["1 message 08"], id="flags that nobody knows"),
    ],
)
def test_data_of_a_client_stream(server: Server, kind: Kind, flags: int, body: str, expected: list[str]) -> None:
    """A message unless no-data says otherwise, and the end when remote-closed says so; nothing is answered."""
    server.receive_data(request(1, kind, 6, b""))

    assert (expected, []) == say(server, data(1, flags, body))
    is_open = "1 end" not in expected
    assert ((["1 message"], []) if is_open else ([], [f"1 {INACTIVE}"])) == say(server, data(1))


@pytest.mark.parametrize("kind", [Kind.CLIENT_STREAM, Kind.BIDI])
def test_data_after_the_end_of_input(server: Server, kind: Kind) -> None:
    """Is answered once, without a word to the handler; one more end is not worth an answer that ends the call."""
    server.receive_data(request(1, kind, 6, b"") + data(1, 5))

    assert ([], []) == say(server, data(1, 5))
    assert ([], [f"1 {INACTIVE}"]) == say(server, data(1, 0, "08"), data(1, 0, "08"), data(1, 1))
    assert server.is_active(1)


@pytest.mark.parametrize("kind", STREAMING)
def test_data_after_the_last_frame(server: Server, kind: Kind) -> None:
    """A handler that returns early, whose client goes on for a while: one answer for the stream."""
    server.receive_data(request(1, kind, 6, b""))
    server.send_error(1, 2, "early")

    assert ([], [f"1 {INACTIVE}"]) == say(server, data(1, 0, "08"), data(1), data(1, 5))


@pytest.mark.parametrize("kind", [Kind.CLIENT_STREAM, Kind.BIDI])
def test_an_oversized_message_ends_its_stream(server: Server, kind: Kind) -> None:
    """It is lost, so the call cannot go on; the handler and the client are told."""
    server.receive_data(request(1, kind, 6, b"") + request(3))

    assert [FaultReceived(1, OVER)] == server.receive_data(data(1, 0, bytes(MAX_BODY + 1)))
    assert [f"1 error 8 {OVER}"] == told(server.data_to_send())
    assert [False, True] == [server.is_active(1), server.is_active(3)]


def test_a_message_of_exactly_the_limit_comes_and_goes(server: Server) -> None:
    """One byte more is refused here, and the stream goes on."""
    server.receive_data(request(1, Kind.BIDI, 6, b""))

    assert [MessageReceived(1, bytes(MAX_BODY))] == server.receive_data(data(1, 0, bytes(MAX_BODY)))
    assert encode_frame(1, DATA, 0, bytes(MAX_BODY)) == server.send_message(1, bytes(MAX_BODY))
    with pytest.raises(RpcError, match=r"^RESOURCE_EXHAUSTED: message length 4194305 exceed") as caught:
        server.send_message(1, bytes(MAX_BODY + 1))
    assert 8 == caught.value.code
    assert server.is_active(1)


@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.CLIENT_STREAM])
def test_an_answer_of_exactly_the_limit_goes_out(server: Server, kind: Kind) -> None:
    """Five bytes of it are the envelope's; one more would end a Go 1.1 client (containerd#6248)."""
    server.receive_data(request(1, kind, 6, b"") + request(3, kind, 6, b""))
    frame = server.send_response(1, bytes(MAX_BODY - 5))

    assert (MAX_BODY, 1, RESPONSE, 0) == HEADER.unpack_from(frame)
    assert bytes(MAX_BODY - 5) == decode_response(frame[10:]).payload
    assert [f"3 error 8 {OVER}"] == told(server.send_response(3, bytes(MAX_BODY - 4)))
    assert 0 == server.active


def test_an_error_text_over_the_limit_is_cut(server: Server) -> None:
    """The code is what counts."""
    server.receive_data(request(1) + request(3))

    assert [f"1 error 5 {'x' * 65536}"] == told(server.send_error(1, 5, "x" * MAX_BODY))
    assert ["3 error 5 x"] == told(server.send_error(3, 5, "x", (("type", bytes(MAX_BODY)),)))


def test_a_request_of_exactly_the_limit_comes(server: Server) -> None:
    """With its envelope."""
    overhead = len(encode_request("a.B", "C", bytes(3_000_000))) - 3_000_000
    (event,) = server.receive_data(request(1, payload=bytes(MAX_BODY - overhead)))

    assert isinstance(event, RequestReceived)
    assert MAX_BODY - overhead == len(event.payload)


# Anything at all.


@given(st.lists(st.binary(max_size=80), max_size=5))
def test_garbage_never_raises(pieces: list[bytes]) -> None:
    """Whatever bytes come, the connection takes them, and what it answers is made of whole frames."""
    server = ServerConnection(METHODS)
    for piece in pieces:
        heard(server.receive_data(piece))
        told(server.data_to_send())


@strategies.FEWER
@given(
    st.binary(max_size=300),
    st.sampled_from([0, 0, 5, -1]),
    st.one_of(st.just([]), strategies.METADATA),
    st.binary(max_size=3),
    st.integers(0, 9),
)
def test_the_same_method_again_is_read_the_same(
    payload: bytes, timeout_ns: int, metadata: list[tuple[str, str]], more: bytes, cut: int
) -> None:
    """A connection may remember the names of its last call, but nothing else of it."""
    body = encode_request("a.B", "C", payload, timeout_ns, metadata) + more
    wire = encode_frame(3, REQUEST, 0, body[: max(0, len(body) - cut)])
    first, again = ServerConnection(METHODS), ServerConnection(METHODS)
    again.receive_data(encode_frame(1, REQUEST, 0, encode_request("a.B", "C", b"earlier", 7, [("k", "v")])))

    assert first.receive_data(wire) == again.receive_data(wire)
    assert first.data_to_send() == again.data_to_send()


@strategies.FEWER
@given(
    st.lists(
        st.one_of(
            strategies.FRAMES, st.tuples(strategies.STREAM_IDS, st.just(1), strategies.FLAGS, strategies.ENVELOPES)
        )
    )
)
def test_calls_have_odd_ids_that_rise(frames: list[FrameValues]) -> None:
    """Whatever comes between them."""
    server = ServerConnection(METHODS)
    events = server.receive_data(b"".join(encode_frame(*frame) for frame in frames))
    told(server.data_to_send())
    calls = [event.stream_id for event in events if isinstance(event, RequestReceived)]

    assert len(calls) == server.active + sum(isinstance(event, FaultReceived) for event in events)
    assert all(number % 2 for number in calls)
    assert sorted(set(calls)) == calls
