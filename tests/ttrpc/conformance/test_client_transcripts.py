"""What our clients say to and make of servers that speak bytes: recorded transcripts, and the rows of table 3.2."""

import threading

import pytest
from google.protobuf.empty_pb2 import Empty

from shim.ttrpc import Code, ConnectionClosedError, LocalProtocolError, RemoteProtocolError, RpcError
from shim.ttrpc._envelope import decode_request
from shim.ttrpc._frame import HEADER, MAX_BODY, REQUEST, RESPONSE, encode_frame
from tests.fakes import wait_until
from tests.protos.conformance_pb2 import Part, Payload, Total
from tests.protos.conformance_ttrpc import ConformanceRpcs as Rpcs
from tests.ttrpc.conformance.ends import End
from tests.ttrpc.conformance.script import Script, data, end, response, status

Scripted = tuple[Script, End]
GARBAGE = b"\x0a\x05"


def test_unary_on_the_wire(scripted: Scripted) -> None:
    """Transcript 11.6, unary: R/0 with the timeout and one pair for each metadata value, keys in lower case."""
    script, client = scripted
    call = client.begin(
        lambda: client.call(Rpcs.ECHO, Payload(seq=1), timeout_s=5.0, metadata=[("K", "v1"), ("k", "v2")])
    )
    (frame,) = script.frames(1)
    asked = decode_request(frame.body or b"")
    script.send(response(1, Payload(seq=2)))

    assert (1, REQUEST, 0) == (frame.stream_id, frame.kind, frame.flags)
    assert (Rpcs.ECHO.service, "Echo", b"\x08\x01") == (asked.service, asked.method, asked.payload)
    assert (("k", "v1"), ("k", "v2")) == asked.metadata
    assert 4 * 10**9 < asked.timeout_ns <= 5 * 10**9
    assert Payload(seq=2) == call.result()


def test_openings_on_the_wire(scripted: Scripted) -> None:
    """Table 2.1: R/1 with the payload where the server streams alone, R/6 without one where the client streams (T4)."""
    script, client = scripted
    client.open(Rpcs.DIVIDE, Total(count=2))
    client.open(Rpcs.SUM)
    client.open(Rpcs.ECHO_NULL)
    stream = client.open(Rpcs.ECHO_STREAM)
    stream.send(Payload(seq=1))
    stream.send(Payload())
    stream.close_send()

    assert ["1 R/1 Divide 1002", "3 R/6 Sum", "5 R/6 EchoNull", "7 R/6 EchoStream"] == script.said(4)
    assert ["7 D/0 0801", "7 D/0", "7 D/5"] == script.said(3)


def test_streams_carry_metadata_and_timeout(scripted: Scripted) -> None:
    """As wished for in ttrpc#159: Go's clients send neither."""
    script, client = scripted
    client.open(Rpcs.DIVIDE, Total(), timeout_s=5.0, metadata={"k": "v"})
    (frame,) = script.frames(1)
    asked = decode_request(frame.body or b"")

    assert (("k", "v"),) == asked.metadata
    assert 4 * 10**9 < asked.timeout_ns <= 5 * 10**9


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([data(1), data(1, Part(value=1)), end(1)], [Part(), Part(value=1)]),
        ([data(1, Part(value=1)), data(1, Part(value=2), 1)], [Part(value=1), Part(value=2)]),
        ([data(1, Part(value=1)), response(1)], [Part(value=1)]),
        ([data(1, Part(value=1)), response(1, Part(value=2))], [Part(value=1), Part(value=2)]),
        ([data(1, b"", 4), end(1)], []),
        ([data(1, b"", 1)], [Part()]),
        ([end(1)], []),
        ([end(1), end(1), data(1), status(1, 5, "late"), response(1)], []),
    ],
    ids=["end", "end with data", "OK", "OK with data", "lone ND", "end without ND", "nothing", "after the end"],
)
def test_server_stream_ends(scripted: Scripted, frames: list[bytes], expected: list[Part]) -> None:
    """Transcript 11.6 and table 2.2, live S and B: every way to end well, read twice; the connection goes on."""
    script, client = scripted
    stream = client.open(Rpcs.DIVIDE, Total())
    script.send(*frames)
    assert expected == stream.rest()
    assert stream.recv() is None
    call = client.start(Rpcs.ECHO, Payload())
    script.frames(2)
    script.send(response(3))

    assert Payload() == call.result()


def test_server_stream_error(scripted: Scripted) -> None:
    """Transcript 11.6, D/0 and an error: the message, then the status for ever (Go blocks there, T9)."""
    script, client = scripted
    stream = client.open(Rpcs.ECHO_STREAM)
    script.send(data(1, Payload(seq=1)), status(1, 5, "gone"), end(1))
    assert Payload(seq=1) == stream.recv()
    for _ in range(3):
        with pytest.raises(RpcError, match="NOT_FOUND: gone"):
            stream.recv()


@pytest.mark.parametrize(
    "rest", [b"", b"\0\0\0", HEADER.pack(100, 1, 2, 0) + b"x", HEADER.pack(1 << 31, 1, 3, 0) + b"x"]
)
def test_connection_ends_with_calls_in_flight(scripted: Scripted, rest: bytes) -> None:
    """Table 3.2, peer closes cleanly, in a header, in a body, in an oversized one: what came, then `closed` for all."""
    script, client = scripted
    stream = client.open(Rpcs.ECHO_STREAM)
    call = client.start(Rpcs.ECHO, Payload())
    script.frames(2)
    script.send(data(1, Payload(seq=1)), rest)
    script.close()

    with pytest.raises(ConnectionClosedError, match="Conformance/Echo: ttrpc: closed"):
        call.result()
    assert Payload(seq=1) == stream.recv()
    for _ in range(2):
        with pytest.raises(ConnectionClosedError, match="EchoStream: ttrpc: closed"):
            stream.recv()
    with pytest.raises(ConnectionClosedError):
        stream.send(Payload())
    with pytest.raises(ConnectionClosedError, match="ttrpc: closed"):
        client.call(Rpcs.ECHO, Payload())
    with pytest.raises(ConnectionClosedError):
        client.open(Rpcs.ECHO_STREAM)
    assert (True, 0) == (client.is_closed, client.active - client.core.active)


def test_client_stream_is_answered_before_its_end(scripted: Scripted) -> None:
    """Transcript 11.6, client-streaming: the answer counts; nothing is sent after it was seen (T1: Go would die)."""
    script, client = scripted
    stream = client.open(Rpcs.SUM)
    script.send(response(1, Total(sum=1)))
    assert Total(sum=1) == stream.recv()
    with pytest.raises(LocalProtocolError, match="finished"):
        stream.send(Part())
    stream.close_send()
    client.close()

    assert ["1 R/6 Sum"] == script.said(2)


def test_second_end_is_refused_here(scripted: Scripted) -> None:
    """Table 2.2, half-closed-local: one D/5 reaches the wire, no message after it."""
    script, client = scripted
    stream = client.open(Rpcs.SUM)
    stream.close_send()
    for again in (stream.close_send, lambda: stream.send(Part())):
        with pytest.raises(LocalProtocolError, match=r"Conformance/Sum: cannot send \w+: the stream is local closed"):
            again()
    client.close()

    assert ["1 R/6 Sum", "1 D/5"] == script.said(3)


def test_server_stream_has_no_end_of_ours(scripted: Scripted) -> None:
    """Data on a call whose client half never opened ends a Go server (2.3)."""
    script, client = scripted
    stream = client.open(Rpcs.DIVIDE, Total())
    for send in (stream.close_send, lambda: stream.send(Total())):
        with pytest.raises(LocalProtocolError, match="local closed"):
            send()
    client.close()

    assert ["1 R/1 Divide"] == script.said(2)


@pytest.mark.parametrize(
    ("frame", "name"),
    [
        (data(1, Payload()), "data"),
        (end(1), "data"),
        (encode_frame(1, REQUEST, 0, b""), "request"),
        (encode_frame(1, 0, 0, b""), "unknown"),
        (encode_frame(1, 9, 0, b"x"), "unknown"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True], ids=["unary", "sum"])
def test_unexpected_type_ends_its_call_alone(scripted: Scripted, frame: bytes, name: str, is_stream: bool) -> None:
    """Table 3.2, Data / Request / unknown type; Rust streaming_server_false_rejects_data for the Sum."""
    script, client = scripted
    wait = client.open(Rpcs.SUM).recv if is_stream else client.start(Rpcs.ECHO, Payload()).result
    script.frames(1)
    script.send(frame, response(1))
    with pytest.raises(RemoteProtocolError, match=f'unexpected "{name}" message received: protocol error'):
        wait()
    call = client.start(Rpcs.ECHO, Payload())
    script.frames(1)
    script.send(response(3, Payload(seq=9)))

    assert Payload(seq=9) == call.result()


def test_unknown_ids_are_dropped(scripted: Scripted) -> None:
    """Table 3.2, reply for an unknown id; two Responses for one id; anything on even ids (T7)."""
    script, client = scripted
    call = client.start(Rpcs.ECHO, Payload())
    script.frames(1)
    script.send(response(3), status(2, 3, "even"), data(0), encode_frame(99, RESPONSE, 0, bytes(MAX_BODY + 1)))
    script.send(response(1, Payload(seq=1)), response(1, Payload(seq=2)), status(1, 5, "again"))
    assert Payload(seq=1) == call.result()
    call = client.start(Rpcs.ECHO, Payload())
    assert ["3 R/0 Echo"] == script.said(1)
    script.send(response(3, Payload(seq=3)))

    assert Payload(seq=3) == call.result()


@pytest.mark.parametrize("kind", [RESPONSE, 3])
@pytest.mark.parametrize("is_stream", [False, True], ids=["unary", "stream"])
def test_oversized_frame_ends_its_call_alone(scripted: Scripted, kind: int, is_stream: bool) -> None:
    """Table 3.2, oversized Response: code 8 on that call, drained, and the connection goes on."""
    script, client = scripted
    wait = client.open(Rpcs.ECHO_STREAM).recv if is_stream else client.start(Rpcs.ECHO, Payload()).result
    script.frames(1)
    sender = threading.Thread(target=script.send, args=(encode_frame(1, kind, 0, bytes(MAX_BODY + 1)),))
    sender.start()
    with pytest.raises(RpcError, match=f"RESOURCE_EXHAUSTED: message length {MAX_BODY + 1} exceed maximum"):
        wait()
    sender.join()
    call = client.start(Rpcs.ECHO, Payload())
    script.frames(1)
    script.send(response(3))

    assert Payload() == call.result()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", Payload()),
        (b"\x0a\x00", Payload()),
        (b"\x0a\x04\x12\x02ok\x12\x02\x08\x07", Payload(seq=7)),
        (b"\x12\x02\x08\x07\x0a\x00", Payload(seq=7)),
    ],
    ids=["Go", "Rust", "code 0 with text", "payload first"],
)
def test_ok_has_many_spellings(scripted: Scripted, body: bytes, expected: Payload) -> None:
    """T6: absent, empty or code 0 status; a zero-length body is a response (ttrpc-rust#49)."""
    script, client = scripted
    call = client.start(Rpcs.ECHO, Payload())
    script.frames(1)
    script.send(encode_frame(1, RESPONSE, 0xFF, body))

    assert expected == call.result()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (GARBAGE, "INTERNAL: unmarshal response error: "),
        (b"\x12\x02" + GARBAGE, "INTERNAL: ttrpc: error unmarshalling payload: "),
        (b"\x0a\x03\x12\x01\xff", "INTERNAL: unmarshal response error: status message is not valid UTF-8"),
        (b"\x0a\x06\x08\x05\x12\x02nf\x12\x02" + GARBAGE, "NOT_FOUND: nf"),
        (b"\x0a\x02\x08\x63", "99: "),
    ],
    ids=["envelope", "payload", "text", "status wins", "code 99"],
)
def test_bad_answers_cost_their_own_call(scripted: Scripted, body: bytes, text: str) -> None:
    """Table 3.2, error status and garbage payload, status code 99; 8.4, invalid UTF-8."""
    script, client = scripted
    call = client.start(Rpcs.ECHO, Payload())
    script.frames(1)
    script.send(encode_frame(1, RESPONSE, 0, body))
    with pytest.raises(RpcError, match=text):
        call.result()
    call = client.start(Rpcs.ECHO, Payload())
    script.frames(1)
    script.send(response(3))

    assert Payload() == call.result()


def test_garbage_in_a_stream_is_an_error_of_that_message(scripted: Scripted) -> None:
    """The bytes were no Payload: said once, and the connection goes on."""
    script, client = scripted
    stream = client.open(Rpcs.ECHO_STREAM)
    script.send(data(1, GARBAGE), data(1, Payload(seq=2)), end(1))
    with pytest.raises(RemoteProtocolError, match="ttrpc: error unmarshalling payload"):
        stream.recv()

    assert [Payload(seq=2)] == stream.rest()


def test_request_too_large_is_refused_here(scripted: Scripted) -> None:
    """Table 3.2, request too large, and Go TestMessageOversize: code 8, no byte of it is sent, no id is used."""
    script, client = scripted
    with pytest.raises(RpcError, match="Echo: RESOURCE_EXHAUSTED: message length"):
        client.call(Rpcs.ECHO, Payload(data=bytes(MAX_BODY)))
    stream = client.open(Rpcs.ECHO_STREAM)
    with pytest.raises(RpcError, match="EchoStream: RESOURCE_EXHAUSTED: message length"):
        stream.send(Payload(data=bytes(MAX_BODY)))
    stream.send(Payload(seq=1))

    assert ["1 R/6 EchoStream", "1 D/0 0801"] == script.said(2)


def test_late_reply_after_the_deadline(scripted: Scripted) -> None:
    """Table 3.2, own deadline: nothing is sent for it, the late reply is dropped, the id not used again."""
    script, client = scripted
    with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
        client.call(Rpcs.ECHO, Payload(), timeout_s=0.02)
    assert 0 == client.active
    call = client.start(Rpcs.ECHO, Payload())
    assert [1, 3] == [frame.stream_id for frame in script.frames(2)]
    script.send(response(1, Payload(seq=1)), response(3, Payload(seq=3)))

    assert Payload(seq=3) == call.result()


def test_cancelled_call(scripted: Scripted) -> None:
    """Table 3.2, own cancel: at once, nothing is sent for it, nothing stays."""
    script, client = scripted
    calls = [client.start(Rpcs.ECHO, Payload()) for _ in range(3)]
    assert 3 == len(script.frames(3))
    for call in calls:
        call.cancel()
        with pytest.raises(RpcError) as caught:
            call.result()
        assert (Code.CANCELED, "context canceled") == (caught.value.code, caught.value.message)
    assert wait_until(lambda: client.active == 0)
    client.close()

    assert [] == script.rest()


def test_close_fails_what_is_in_flight(scripted: Scripted) -> None:
    """Table 3.2, close(): one canonical error (ttrpc#137, #160) for calls, readers and senders; twice is fine."""
    script, client = scripted
    calls = [client.start(Rpcs.ECHO, Payload()) for _ in range(3)]
    stream = client.open(Rpcs.ECHO_STREAM)
    reader = client.begin(stream.recv)
    script.frames(4)
    client.close()
    client.close()
    for wait in [*[call.result for call in calls], reader.result]:
        with pytest.raises(ConnectionClosedError, match="ttrpc: closed"):
            wait()

    assert script.is_at_end()
    assert client.is_closed


@pytest.mark.parametrize("start", [0xFFFFFFFB, 0xFFFFFFFF])
def test_ids_near_their_end(scripted: Scripted, start: int) -> None:
    """8.4, exhaustion: the last id is 0xffffffff, then calls are refused here and those in flight are answered."""
    script, client = scripted
    client.core._next_id = start
    calls = [client.start(Rpcs.ECHO, Payload()) for _ in range((0x100000001 - start) // 2)]
    assert [*range(start, 0x100000000, 2)] == [frame.stream_id for frame in script.frames(len(calls))]
    with pytest.raises(LocalProtocolError, match="stream ids of this connection are used up"):
        client.call(Rpcs.ECHO, Payload())
    with pytest.raises(LocalProtocolError, match="stream ids of this connection are used up"):
        client.open(Rpcs.EMPTY_REQUEST, Empty())
    script.send(*[response(stream_id) for stream_id in range(start, 0x100000000, 2)])

    assert [Payload()] * len(calls) == [call.result() for call in calls]
    assert 0 == client.active
