"""What our servers say to clients that speak bytes: transcripts recorded from real peers, and the rows of table 3.1.

Where ours differs from Go's, the table says what it should do instead.
"""

import re

import pytest

from shim.ttrpc._frame import DATA, HEADER, MAX_BODY, REQUEST, RESPONSE, encode_frame
from tests.fakes import wait_until
from tests.protos.conformance_pb2 import Failure, Part, Payload, Total
from tests.ttrpc.conformance.scene import HOLD, RETURN, STALL
from tests.ttrpc.conformance.script import Script, data, end, request
from tests.ttrpc.conformance.servers import ServerEnd

FIVE, SEVEN = Part(value=5), Part(value=7)
INACTIVE = "3 StreamID is no longer active"
ODD = "3 StreamID must be odd for client initiated streams"
TOO_LONG = f"8 message length {MAX_BODY + 1} exceed maximum message size of 4194304"

TRANSCRIPTS = {
    "divide": ([request(1, "Divide", Total(sum=1, count=2), 1)], ["1 D/0", "1 D/0 0801", "1 D/5"]),
    "divide, flags 0": ([request(1, "Divide", Total(sum=1, count=2))], ["1 D/0", "1 D/0 0801", "1 D/5"]),
    "divide, empty payload": ([request(1, "Divide", b"", 1)], ["1 D/5"]),
    "error after one part": (
        [request(1, "FailStream", Failure(code=2, message="after parts", after=1), 1)],
        ["1 D/0 0801", "1 2 after parts"],
    ),
    "sum, flags 6": ([request(1, "Sum", b"", 6), data(1, FIVE), end(1)], ["1 OK 08051001"]),
    "sum, flags 2": ([request(1, "Sum", b"", 2), data(1, FIVE), end(1)], ["1 OK 08051001"]),
    "sum, flags 0": ([request(1, "Sum"), data(1, FIVE), end(1)], ["1 OK 08051001"]),
    "sum, an empty message": ([request(1, "Sum", b"", 2), data(1, FIVE), data(1), end(1)], ["1 OK 08051002"]),
    "sum, with payload": ([request(1, "Sum", SEVEN, 2), data(1, FIVE), end(1)], ["1 OK 080c1002"]),
    "sum, closing frame with data": ([request(1, "Sum", b"", 2), data(1, FIVE, 1)], ["1 OK 08051001"]),
    "sum, closing frame without ND": ([request(1, "Sum", b"", 2), data(1, FIVE), data(1, b"", 1)], ["1 OK 08051002"]),
    "sum, lone ND": ([request(1, "Sum", b"", 6), data(1, b"", 4), data(1, FIVE, 4), end(1)], ["1 OK"]),
    "sum, garbage": ([request(1, "Sum", b"", 2), data(1, b"\x0a\x05")], ["1 13 ttrpc: error unmarshalling payload"]),
    "echo, an empty message": (
        [request(1, "EchoStream", b"", 2), data(1, Payload(seq=1)), data(1), end(1)],
        ["1 D/0 0802", "1 D/0 0801", "1 D/5"],
    ),
    "echo, flags of the request do not close": (
        [request(1, "EchoStream", b"", 1), data(1), end(1)],
        ["1 D/0 0801", "1 D/5"],
    ),
    "unary with data": ([request(1, "Sleep", HOLD), data(1, FIVE), data(1, FIVE)], [f"1 {INACTIVE}"]),
    "data on an id never opened": ([data(7, FIVE), data(7, FIVE), end(7)], [f"7 {INACTIVE}"]),
    "data on an even id": ([data(2, FIVE)], [f"2 {ODD}"]),
    "request on an even id": ([request(2, "Echo")], [f"2 {ODD}"]),
    "request on id zero": ([request(0, "Echo")], [f"0 {ODD}"]),
    "id reused": (
        [request(3, "Sleep", HOLD), request(3, "Echo"), request(1, "Echo")],
        ["3 3 StreamID cannot be re-used and must increment", "1 3 StreamID cannot be re-used and must increment"],
    ),
    "ids jump to the last": (
        [request(9, "Blob"), request(0xFFFFFFFF, "Blob")],
        ["9 OK", "4294967295 OK"],
    ),
    "unknown service": ([request(1, "M", service="X")], ["1 12 service X"]),
    "unknown method": ([request(1, "M")], ["1 12 method M"]),
    "unknown streaming method, then data": (
        [request(1, "M", b"", 6), data(1), data(1)],
        ["1 12 method M", f"1 {INACTIVE}"],
    ),
    "empty request": ([encode_frame(1, REQUEST, 0, b"")], ["1 12 service"]),
    "bad request": (
        [encode_frame(1, REQUEST, 0, b"\xff"), request(1, "Echo")],
        ["1 3 unmarshal request error", "1 3 StreamID"],
    ),
    "bad service text": ([encode_frame(1, REQUEST, 0, b"\x0a\x01\xff")], ["1 3 unmarshal request error: service"]),
    "bad method text": ([encode_frame(1, REQUEST, 0, b"\x12\x01\xff")], ["1 3 unmarshal request error: method"]),
    "oversized request": ([encode_frame(1, REQUEST, 0, bytes(MAX_BODY + 1))], [f"1 {TOO_LONG}"]),
    "oversized request on an even id": ([encode_frame(2, REQUEST, 0, bytes(MAX_BODY + 1))], [f"2 {TOO_LONG}"]),
    "oversized data": ([request(1, "Sum", b"", 6), encode_frame(1, DATA, 0, bytes(MAX_BODY + 1))], [f"1 {TOO_LONG}"]),
    "oversized data for nobody": ([encode_frame(1, DATA, 0, bytes(MAX_BODY + 1))], [f"1 {TOO_LONG}"]),
    "response and unknown types": (
        [encode_frame(1, kind, 0, b"x") for kind in (RESPONSE, 0, 4, 5, 255)]
        + [encode_frame(1, 9, 0, bytes(MAX_BODY + 1))],
        [],
    ),
    "unary with any flags": ([request(1, "Blob", b"", 0xFF)], ["1 OK"]),
    "deadline in the past": ([request(1, "Sleep", HOLD, 0, -1)], ["1 4 context deadline exceeded"]),
    "an end too many on a unary call": ([request(1, "Sleep", HOLD), end(1)], []),
}


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_transcript(raw: Script, name: str) -> None:
    """A client's frames, and the answers; the connection serves the next call, and has nothing else to say."""
    frames, expected = TRANSCRIPTS[name]
    raw.send(*frames)
    said = raw.said(len(expected))
    if name != "ids jump to the last":
        raw.send(request(0x7FFFFFFF, "Echo", Payload(seq=1)))
        assert ["2147483647 OK 0802"] == raw.said(1)

    assert len(expected) == len(said)
    for wanted, got in zip(expected, said, strict=True):
        assert got.startswith(wanted)
        assert got == wanted or re.match(r"\d+ (13 ttrpc: error|3 unmarshal request|3 StreamID)", got)


def test_bidi_without_data_is_silent(raw: Script, server: ServerEnd) -> None:
    """Transcript 11.6, EchoStream R/1 only: nothing comes until the client says more."""
    raw.send(request(1, "EchoStream", b"", 1))
    assert wait_until(lambda: len(server.scene.contexts) == 1)
    raw.send(request(3, "Echo"), end(1))

    assert ["3 OK 0801", "1 D/5"] == sorted(raw.said(2), reverse=True)


def test_stalled_handler_at_its_deadline(raw: Script, server: ServerEnd) -> None:
    """Transcript 11.6, EchoStream with a timeout while the handler stalls: one status; the late end is dropped."""
    raw.send(request(1, "EchoStream", b"", 2, 50_000_000), data(1, STALL))
    assert ["1 4 context deadline exceeded"] == raw.said(1)
    server.scene.gate.open()
    assert wait_until(lambda: server.scene.ended == ["EchoStream"])
    raw.send(request(3, "Echo"))

    assert ["3 OK 0801"] == raw.said(1)


def test_data_after_an_early_return_is_answered_once(raw: Script) -> None:
    """Transcript 11.6, handler returns early: its end, then one status for all that still comes."""
    raw.send(request(1, "EchoStream", b"", 2), data(1, RETURN))
    assert ["1 D/5"] == raw.said(1)
    raw.send(*[data(1, Payload(seq=1))] * 50, end(1), request(3, "Echo"))

    assert [f"1 {INACTIVE}", "3 OK 0801"] == raw.said(2)


def test_data_after_the_end_of_input(raw: Script, server: ServerEnd) -> None:
    """Table 2.2, input ended: code 3 once, and the handler goes on."""
    raw.send(request(1, "EchoStream", b"", 2), data(1, STALL), end(1), data(1), data(1), request(3, "Echo"))
    assert [f"1 {INACTIVE}", "3 OK 0801"] == raw.said(2)
    server.scene.gate.open()

    assert ["1 D/5"] == raw.said(1)


def test_request_on_an_open_streams_id_leaves_it_alone(raw: Script) -> None:
    """Table 3.1, duplicate Request on an open stream: rejected, and the stream goes on."""
    raw.send(request(1, "Sum", b"", 6), data(1, FIVE), request(1, "Sum", b"", 6))
    assert ["1 3 StreamID cannot be re-used and must increment"] == raw.said(1)
    raw.send(data(1, SEVEN), end(1))

    assert ["1 OK 080c1002"] == raw.said(1)


def test_late_answer_after_the_deadline_is_dropped(raw: Script, server: ServerEnd) -> None:
    """Table 3.1, deadline passes: DEADLINE_EXCEEDED once, at the deadline, whatever the handler does."""
    raw.send(request(1, "Sleep", HOLD, 0, 20_000_000))
    assert ["1 4 context deadline exceeded"] == raw.said(1)
    server.scene.gate.open()
    assert wait_until(lambda: server.scene.ended == ["Sleep"])
    raw.send(request(3, "Echo"))

    assert ["3 OK 0801"] == raw.said(1)


def test_three_requests_in_one_write_and_by_single_bytes(raw: Script) -> None:
    """Go TestReadWriteMessage: frames are no packets; after them the end of the connection is no event."""
    frames = b"".join(request(stream_id, "Echo", Payload(seq=stream_id)) for stream_id in (1, 3, 5))
    raw.send(frames)
    assert {"1 OK 0802", "3 OK 0804", "5 OK 0806"} == set(raw.said(3))
    for byte in b"".join(request(stream_id, "Echo", Payload(seq=stream_id)) for stream_id in (7, 9)):
        raw.send(bytes([byte]))
    assert {"7 OK 0808", "9 OK 080a"} == set(raw.said(2))
    raw.end_writing()

    assert raw.is_at_end()


def test_ten_thousand_metadata_entries(raw: Script) -> None:
    """8.4: Go's server takes them too."""
    raw.send(request(1, "Metadata", metadata=[(f"k{number}", "v") for number in range(10_000)]))
    (frame,) = raw.frames(1)

    assert 10_000 == (frame.body or b"").count(b"\x12\x01v")


def test_invalid_text_in_metadata_is_a_bad_request(raw: Script) -> None:
    """8.4, invalid UTF-8 in each string field: key and value."""
    for stream_id, pair in ((1, b"\x0a\x01\xff"), (3, b"\x12\x01\xff")):
        body = request(stream_id, "Echo")[HEADER.size :] + b"\x2a" + bytes([len(pair)]) + pair
        raw.send(encode_frame(stream_id, REQUEST, 0, body))

        assert raw.said(1)[0].startswith(f"{stream_id} 3 unmarshal request error: metadata")


def test_a_storm_of_stray_data_is_answered_once_for_each_stream(raw: Script) -> None:
    """Table 2.2, unknown or finished odd id: no amplification."""
    raw.send(*[data(stream_id) for stream_id in (1, 3, 5) for _ in range(500)], request(7, "Echo"))

    assert [f"1 {INACTIVE}", f"3 {INACTIVE}", f"5 {INACTIVE}", "7 OK 0801"] == raw.said(4)
