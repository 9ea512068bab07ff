"""Envelopes: golden bytes, and the same meaning as protobuf's own code gives them."""

import contextlib
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.ttrpc._envelope import (
    Request,
    Response,
    decode_request,
    decode_response,
    decode_tail,
    encode_error,
    encode_head,
    encode_request,
    encode_response,
    encode_tail,
    split_head,
)
from shim.ttrpc.wire import DecodeError
from tests import strategies
from tests.fuzz.schema import PbRequest, PbResponse

PAIRS: Final = (("k", "v1"), ("k", "v2"))
REQUESTS: Final = [
    ("0a03612e421201431a020807", Request("a.B", "C", b"\x08\x07", 0, ())),
    (
        "0a03612e421201431a0208072080e497d0122a070a016b120276312a070a016b12027632",
        Request("a.B", "C", b"\x08\x07", 5_000_000_000, PAIRS),
    ),
    ("0a03612e4212014320ffffffffffffffffff01", Request("a.B", "C", b"", -1, ())),
    ("", Request("", "", b"", 0, ())),
]


@pytest.mark.parametrize(("wire", "request_"), REQUESTS)
def test_request_matches_golden_bytes(wire: str, request_: Request) -> None:
    """Both ways."""
    assert wire == encode_request(*request_).hex()
    assert request_ == decode_request(bytes.fromhex(wire))


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        ("12020808", Response(0, "", b"\x08\x08")),
        ("", Response(0, "", b"")),  # Go's empty success
        ("0a00", Response(0, "", b"")),  # Rust's
        ("0a0f080c120b7365727669636520612e42", Response(12, "service a.B", b"")),
        ("0a0412026f6b", Response(0, "ok", b"")),  # a text without a code is success
        ("0a020863", Response(99, "", b"")),  # a code that nobody knows
        ("0a0b08ffffffffffffffffff01", Response(-1, "", b"")),
        ("0a06080512001a0012020808", Response(5, "", b"\x08\x08", (("", b""),))),  # the payload is kept
        ("0a0d08051a090a0174120408011001", Response(5, "", b"", (("t", b"\x08\x01\x10\x01"),))),
        ("0a06088080808010", Response(0, "", b"")),  # of a code, protobuf keeps the low 32 bits
        ("0a0608ffffffff0f", Response(-1, "", b"")),
        ("1200", Response(0, "", b"")),
        ("12010112010a", Response(0, "", b"\x0a")),
        ("0a0208050a020807", Response(7, "", b"")),  # the last one wins
    ],
)
def test_decode_response_reads_what_peers_send(wire: str, expected: Response) -> None:
    """An absent, empty or zero status is success."""
    assert expected == decode_response(bytes.fromhex(wire))


def test_encode_response_leaves_the_status_out() -> None:
    """As Go does; an empty message makes an empty body."""
    assert "" == encode_response(b"").hex()
    assert "12020808" == encode_response(b"\x08\x08").hex()


def test_encode_error_has_no_payload() -> None:
    """Go's client would decode that first and lose the status."""
    assert "0a0f080c120b7365727669636520612e42" == encode_error(12, "service a.B").hex()
    assert Response(99, "", b"") == decode_response(encode_error(99, ""))
    assert Response(-5, "x", b"") == decode_response(encode_error(-5, "x"))


def test_encode_error_of_undecodable_text_is_sent_all_the_same() -> None:
    """File names may hold surrogates; the call must be answered."""
    assert Response(2, "no file ?", b"") == decode_response(encode_error(2, "no file \udcff"))


def test_encode_error_keeps_the_details() -> None:
    """Each a type and its bytes; a type that no text can be does not stop the answer."""
    details = (("type.googleapis.com/x", b"\x08\x01"), ("", b""))

    assert Response(5, "nf", b"", details) == decode_response(encode_error(5, "nf", details))
    assert (("?", b"x"),) == decode_response(encode_error(5, "nf", (("\udcff", b"x"),))).details


def test_encode_request_lowers_the_case_of_metadata_keys() -> None:
    """Go's lookup never finds others."""
    assert (("traceparent", "A"),) == decode_request(encode_request("s", "m", b"", 0, [("TraceParent", "A")])).metadata


@pytest.mark.parametrize(
    ("service", "method", "is_short"),
    [("a.B", "C", True), ("a" * 127, "C" * 127, True), ("a" * 128, "C", False), ("a", "C" * 128, False)],
)
def test_split_head_finds_where_the_tail_begins(service: str, method: str, is_short: bool) -> None:
    """Of names that take one byte for their length; the others are read the long way."""
    head = encode_head(service, method)
    body = head + b"".join(encode_tail(b"\x08\x07", 5, PAIRS))

    assert (len(head) if is_short else 0) == split_head(body)
    assert (b"\x08\x07", 5, PAIRS) == (decode_tail(body, len(head)) or ())[:3]
    assert (b"", 0, ()) == (decode_tail(head, len(head)) or ())[:3]


@pytest.mark.parametrize("wire", ["", "0a", "0a03612e42", "0a03612e4212", "1201430a03612e42", "0a80", "0a016112ff"])
def test_split_head_of_anything_else_is_zero(wire: str) -> None:
    """What ends too early, or begins with other fields."""
    assert 0 == split_head(bytes.fromhex(wire))


@pytest.mark.parametrize("tail", ["1a01011a0102", "20051a0101", "2a000a0161", "30012005", "0a0161"])
def test_decode_tail_leaves_unusual_orders_to_others(tail: str) -> None:
    """And repeated or unknown fields."""
    assert decode_tail(bytes.fromhex(tail), 0) is None


@pytest.mark.parametrize("tail", ["1a02", "1a0201", "1a", "20", "20ff", "2a0201", "2a020aff", "2a030a01ff"])
def test_decode_tail_of_what_is_no_request(tail: str) -> None:
    """Raises as the long way does."""
    errors = []
    for decode in (lambda wire: decode_tail(wire, 0), decode_request):
        with pytest.raises(DecodeError) as caught:
            decode(bytes.fromhex(tail))
        errors.append(str(caught.value))

    assert errors[0] == errors[1]


@pytest.mark.parametrize(
    "unknown",
    [
        pytest.param("3001", id="varint"),
        pytest.param("3108000000000000ff", id="eight bytes"),
        pytest.param("3203616263", id="bytes"),
        pytest.param("3500000001", id="four bytes"),
        pytest.param("0805", id="service as a number"),
        pytest.param("2203616263", id="timeout as bytes"),
        pytest.param("9a06020801", id="a high number"),
    ],
)
def test_unknown_fields_are_ignored(unknown: str) -> None:
    """So are known numbers with another wire type."""
    wire, request = REQUESTS[1]

    assert request == decode_request(bytes.fromhex(unknown + wire + unknown))
    assert Response(5, "nf", b"") == decode_response(encode_error(5, "nf") + bytes.fromhex("3203616263"))


def test_the_last_value_of_a_field_wins() -> None:
    """But metadata is kept all, in order."""
    twice = encode_request("a", "b", b"c", 1, PAIRS) + encode_request("d", "e", b"f", 2, PAIRS)

    assert Request("d", "e", b"f", 2, PAIRS + PAIRS) == decode_request(twice)


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        ("0a01ff", "service is not valid UTF-8"),
        ("1201ff", "method is not valid UTF-8"),
        ("2a030a01ff", "metadata key is not valid UTF-8"),
        ("2a031201ff", "metadata value is not valid UTF-8"),
        ("0a05", "unexpected end of message"),
        ("0a", "unexpected end of message"),
        ("20ff", "unexpected end of message"),
        ("25ffffff", "unexpected end of message"),
        ("00", "field number is zero"),
        ("0b", "wire type 3 of field 1 is not supported"),
        ("2effffffff", "wire type 6 of field 5 is not supported"),
        ("20" + "ff" * 10 + "01", "varint is longer than 64 bits"),
    ],
)
def test_decode_request_says_what_is_wrong(wire: str, expected: str) -> None:
    """The text goes to the peer."""
    with pytest.raises(DecodeError) as caught:
        decode_request(bytes.fromhex(wire))

    assert expected == str(caught.value)


def test_decode_response_says_what_is_wrong() -> None:
    """In the status too."""
    with pytest.raises(DecodeError, match=r"^status message is not valid UTF-8$"):
        decode_response(bytes.fromhex("0a031201ff"))
    with pytest.raises(DecodeError, match=r"^unexpected end of message$"):
        decode_response(bytes.fromhex("0a0208"))


def test_ten_thousand_metadata_entries_are_taken() -> None:
    """Go takes them too."""
    pairs = tuple((f"key-{number}", "v") for number in range(10_000))

    assert pairs == decode_request(encode_request("s", "m", b"", 0, pairs)).metadata


@strategies.FEWER
@given(strategies.TEXTS, strategies.TEXTS, st.binary(max_size=40), strategies.INT64, strategies.METADATA)
def test_requests_mean_the_same_to_protobuf(
    service: str, method: str, payload: bytes, timeout_ns: int, metadata: list[tuple[str, str]]
) -> None:
    """Ours is read by protobuf's code, and what that writes is read by ours."""
    ours = encode_request(service, method, payload, timeout_ns, metadata)
    pairs = [(key.lower(), value) for key, value in metadata]
    theirs = PbRequest(
        service=service,
        method=method,
        payload=payload,
        timeout_nano=timeout_ns,
        metadata=[{"key": key, "value": value} for key, value in pairs],
    )

    assert theirs == PbRequest.FromString(ours)
    assert Request(service, method, payload, timeout_ns, tuple(pairs)) == decode_request(theirs.SerializeToString())


@given(st.integers(-(1 << 31), (1 << 31) - 1), strategies.TEXTS, st.binary(max_size=40))
def test_responses_mean_the_same_to_protobuf(code: int, message: str, payload: bytes) -> None:
    """Successes and failures, both ways."""
    failure = PbResponse(status={"code": code, "message": message})

    assert failure == PbResponse.FromString(encode_error(code, message))
    assert PbResponse(payload=payload).SerializeToString() == encode_response(payload)
    assert Response(code, message, b"") == decode_response(failure.SerializeToString())


@strategies.FEWER
@given(st.binary(max_size=20), strategies.INT64, strategies.METADATA, st.binary(max_size=10), st.data())
def test_the_short_way_and_the_long_one_agree(
    payload: bytes, timeout_ns: int, metadata: list[tuple[str, str]], more: bytes, data: st.DataObject
) -> None:
    """Whatever a request ends in, and however its fields are shuffled."""
    tail = data.draw(st.permutations([*encode_tail(payload, timeout_ns, metadata), more]))
    body = encode_head("a.B", "C") + b"".join(tail)
    try:
        expected = decode_request(body)
    except DecodeError:
        expected = None
    try:
        found = decode_tail(body, split_head(body))
    except DecodeError:
        assert expected is None
        return

    assert found is None or (expected is not None and expected[2:] == found[:3])


@given(st.binary(max_size=60))
def test_garbage_is_a_decode_error_or_an_envelope(garbage: bytes) -> None:
    """Nothing else is ever raised, whatever a peer sends."""
    for decode in (decode_request, decode_response):
        with contextlib.suppress(DecodeError):
            decode(garbage)


@strategies.FEWER
@given(st.sampled_from(REQUESTS), st.data())
def test_a_damaged_request_is_a_decode_error_or_an_envelope(case: tuple[str, Request], data: st.DataObject) -> None:
    """Bit flips and cuts in what was right get further than garbage does."""
    wire = bytearray.fromhex(case[0])
    for _ in range(data.draw(st.integers(1, 3)) if wire else 0):
        wire[data.draw(st.integers(0, len(wire) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        request = decode_request(bytes(wire[: data.draw(st.integers(0, len(wire)))]))
    except DecodeError:
        return
    lowered = tuple((key.lower(), value) for key, value in request.metadata)

    assert request._replace(metadata=lowered) == decode_request(encode_request(*request))
