"""Where the bytes of the fuzzing go: a target takes any input, and asserts what must hold whatever that is.

What must hold: nothing raises but what is documented, every byte that comes back belongs to a whole frame that the
protocol allows, a call ends once, tables and buffers stay small. The cores get a small limit for bodies, so that the
paths for oversized ones are near. The first two bytes of an input for a connection say how it is cut, and what the
connection's owner does meanwhile.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

from google.protobuf.message import DecodeError as PbDecodeError
from google.protobuf.message import Message

from shim.ttrpc._client_connection import ClientConnection
from shim.ttrpc._envelope import (
    decode_request,
    decode_response,
    decode_tail,
    encode_error,
    encode_request,
    encode_response,
    split_head,
)
from shim.ttrpc._events import MessageReceived, RequestReceived
from shim.ttrpc._frame import DATA, END_OF_STREAM, HEADER, HEADER_SIZE, RESPONSE, FrameReader, encode_frame
from shim.ttrpc._server_connection import ServerConnection
from shim.ttrpc._streams import Kind
from shim.ttrpc.status import LocalProtocolError
from shim.ttrpc.wire import DecodeError
from tests.fuzz.reference import ComparedPair
from tests.fuzz.schema import PbRequest, PbResponse
from tests.ttrpc.pairs import METHODS, Method, cut, head

Target = Callable[[bytes], None]

_LIMIT: Final = 120
_MOST_STRAYS: Final = 256
_KINDS: Final = list(Kind)


def _pieces(wire: bytes, pace: int) -> Iterator[bytes]:
    """Yield the bytes in pieces of `pace`; all at once for 0."""
    step = pace or len(wire) + 1
    for at in range(0, len(wire), step):
        yield wire[at : at + step]


def _check_reader(reader: FrameReader) -> None:
    assert sum(map(len, reader._held)) <= HEADER_SIZE + _LIMIT
    assert len(reader._held) < 300


def frames(data: bytes) -> None:
    """The reader of frames against the plainest possible one."""
    pace, wire = data[0] if data else 0, data[1:]
    expected = []
    at = 0
    while len(wire) - at >= HEADER_SIZE:
        length, stream_id, kind, flags = HEADER.unpack_from(wire, at)
        after = at + HEADER_SIZE + length
        if after > len(wire):
            break
        expected.append((stream_id, kind, flags, length, wire[after - length : after] if length <= _LIMIT else None))
        at = after
    reader = FrameReader(_LIMIT)
    received = []
    for piece in _pieces(wire, pace):
        received += reader.feed(piece)
        _check_reader(reader)
    assert expected == received
    assert reader.is_between_frames == (at == len(wire))


def envelope(data: bytes) -> None:
    """Both envelopes against protobuf's own code, and the short way through a request against the long one."""
    try:
        request = decode_request(data)
    except DecodeError:
        request = None
    _check_tail(data)
    _check_tail(data[split_head(data) :])
    theirs = _parse(PbRequest, data)
    if request is not None:
        lowered = request._replace(metadata=tuple((key.lower(), value) for key, value in request.metadata))
        assert lowered == decode_request(encode_request(*request))
        if theirs is not None:
            pairs = tuple((pair.key, pair.value) for pair in theirs.metadata)
            assert request == (theirs.service, theirs.method, theirs.payload, theirs.timeout_nano, pairs)
    _check_response(data)


def _check_tail(tail: bytes) -> None:
    """Behind the names of a method, the short way may leave the bytes to the long one; else it finds the same."""
    body = head() + tail
    try:
        found = decode_tail(body, len(head()))
    except DecodeError:
        try:
            decode_request(body)
        except DecodeError:
            return
        raise
    if found is not None:
        assert found[:3] == decode_request(body)[2:]


def _parse(kind: type[Message], data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except PbDecodeError:
        return None


def _check_response(data: bytes) -> None:
    try:
        response = decode_response(data)
    except DecodeError:
        return
    code, message, payload, details = response
    if code:
        assert (code, message, b"", details) == decode_response(encode_error(code, message, details))
    assert (0, "", payload, ()) == decode_response(encode_response(payload))
    theirs = _parse(PbResponse, data)
    if theirs is not None:
        status = theirs.status
        packed = tuple((each.type_url, each.value) for each in status.details)
        assert response == (status.code, status.message, theirs.payload, packed)


def server(data: bytes) -> None:
    """Arbitrary bytes to a server, whose owner answers some calls in some way."""
    connection = ServerConnection(METHODS)
    reader = connection._reader = FrameReader(_LIMIT)
    pace, habit = (*data[:2], 0, 0)[:2]
    live: dict[int, Kind] = {}
    ended: set[int] = set()
    for piece in _pieces(data[2:], pace):
        for event in connection.receive_data(piece):
            stream_id = event.stream_id
            if isinstance(event, RequestReceived):
                assert stream_id % 2 == 1
                assert stream_id not in live
                assert stream_id not in ended
                live[stream_id] = event.method.kind
            assert stream_id in live or stream_id in ended
            habit = habit * 5 + 1 & 255
            _check_sent(_act(connection, stream_id, habit >> 5))
            if not connection.is_active(stream_id) and live.pop(stream_id, None) is not None:
                ended.add(stream_id)
        _check_sent(connection.data_to_send())
        _check_reader(reader)
        assert len(live) == connection.active
        assert len(connection._strays) <= _MOST_STRAYS


def _act(connection: ServerConnection[Method], stream_id: int, habit: int) -> bytes:
    """Do one or two of the things that an owner can do."""
    acts: tuple[Callable[[], bytes], ...] = (
        lambda: b"",
        lambda: connection.send_response(stream_id, b"\x08\x08"),
        lambda: connection.send_error(stream_id, 5, "nf"),
        lambda: connection.send_message(stream_id, b""),
        lambda: connection.send_end(stream_id),
    )
    sent = []
    for number in {habit % 5, habit >> 1}:
        is_active = connection.is_active(stream_id)
        try:
            sent.append(acts[number]())
        except LocalProtocolError:
            continue
        assert is_active or sent[-1] == b""
        if number in {1, 2, 4}:
            assert not connection.is_active(stream_id)
    return b"".join(sent)


def _check_sent(wire: bytes) -> None:
    """Every frame is one that a server may send, and its envelope one that protobuf reads."""
    for _, kind, flags, body in cut(wire):
        if kind == RESPONSE:
            assert flags == 0
            response = _parse(PbResponse, body)
            assert response is not None
            assert not (response.status.code and response.payload)
        else:
            assert kind == DATA
            assert flags in {0, END_OF_STREAM}
            assert flags == 0 or body == b""


def client(data: bytes) -> None:
    """Arbitrary bytes to a client with a dozen calls, whose owner sends more or gives some up."""
    connection = ClientConnection()
    reader = connection._reader = FrameReader(_LIMIT)
    pace, habit = (*data[:2], 0, 0)[:2]
    live = {connection.send_request(head(kind), b"", kind)[0]: kind for kind in _KINDS * 3}
    calls = list(live)
    for piece in _pieces(data[2:], pace):
        for event in connection.receive_data(piece):
            kind = live[event.stream_id]
            if isinstance(event, MessageReceived):
                assert kind.has_server_stream
            else:
                del live[event.stream_id]
        habit = habit * 5 + 1 & 255
        number = calls[(habit >> 2) % len(calls)]
        _send(connection, number, is_live=number in live, habit=habit)
        if habit % 8 == 0:
            connection.forget(number)
            live.pop(number, None)
        _check_reader(reader)
        assert len(live) == connection.active
        assert all(map(connection.is_active, live))


def _send(connection: ClientConnection, stream_id: int, *, is_live: bool, habit: int) -> None:
    """Send a message or the end; nothing may go out for a call that has ended."""
    try:
        if habit % 8 < 4:
            sent, expected = connection.send_message(stream_id, b"x"), encode_frame(stream_id, DATA, 0, b"x")
        else:
            sent, expected = connection.send_end(stream_id), encode_frame(stream_id, DATA, END_OF_STREAM, b"")
    except LocalProtocolError:
        return
    assert sent == (expected if is_live else b"")


# Bodies, of requests, responses and messages, that mean something to somebody.
_BODIES: Final = (
    b"",
    b"\x08\x07",
    *(encode_request("a.B", name, payload) for name in "CTSE" for payload in (b"", b"\x08\x07")),
    encode_request("a.X", "C", b""),
    encode_request("a.B", "X", b""),
    b"\x0a\x00",
    b"\x12\x00",
    b"\x0a\x01",
    encode_response(b"\x08\x08"),
    encode_error(5, "nf"),
    bytes(200),
    bytes(201),
)
_FLAGS: Final = (0, 1, 4, 5, 2, 6, 7, 255)


def pair(data: bytes) -> None:
    """A script for two cores on a link, each step of which is compared with the reference."""
    compared = ComparedPair()
    numbers = iter(data)

    def number() -> int:
        return next(numbers, 0)

    def body() -> bytes:
        return _BODIES[number() % len(_BODIES)]

    def stream_id() -> int:
        return number() % (compared.client.next + 4)

    for step in numbers:
        match step % 12:
            case 0 | 1:
                compared.call(_KINDS[step >> 4 & 3], body())
            case 2:
                compared.send(stream_id(), body())
            case 3:
                compared.close_send(stream_id())
            case 4:
                compared.forget(stream_id())
            case 5:
                compared.respond(stream_id(), body())
            case 6:
                compared.fail(stream_id(), 1 + number() % 20, "text")
            case 7:
                compared.finish(stream_id())
            case 8:
                compared.emit(stream_id(), body())
            case 9:
                frame = stream_id(), number() % 5, _FLAGS[step >> 4 & 7], body()
                compared.inject(frame, is_for_server=step >= 128)
            case _:
                compared.deliver(number() * (1 + step % 12 - 10), is_for_server=step >= 128)
    for is_for_server in (True, False):
        compared.deliver(1 << 20, is_for_server=is_for_server)
    compared.check()


TARGETS: Final[Mapping[str, Target]] = {
    "server": server,
    "client": client,
    "frames": frames,
    "envelope": envelope,
    "pair": pair,
}


def legal_sequence(choices: bytes) -> bytes:
    """Return frames of a client that keeps the rules, as an input for the server: calls, then their streams."""
    wire = [choices[:2].ljust(2, b"\0")]
    for at, (choice, other) in enumerate(pairwise(choices[2:])):
        kind = _KINDS[choice & 3]
        stream_id = 2 * at + 1
        wire.append(encode_frame(stream_id, 1, (0, 1, 6, 6)[kind], encode_request("a.B", "CTSE"[kind], b"")))
        if kind.has_client_stream:
            wire += [encode_frame(stream_id, DATA, 0, bytes(other & 7))] * (other & 3)
            wire.append(encode_frame(stream_id, DATA, END_OF_STREAM, b""))
    return b"".join(wire)
