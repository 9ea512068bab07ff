"""What the two cores should do, as sets and plain conditions, and a pair of cores that is compared with that.

Rule: nothing of the core but its constants is used to say what is expected; envelopes are read by protobuf's code.
The tables are containerd/ttrpc's PROTOCOL.md and what its peers do. Used by the state machine and by the fuzzing.
"""

import re
import struct
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from shim.ttrpc._frame import DATA, MAX_BODY, NO_DATA, REMOTE_CLOSED, REQUEST, RESPONSE
from shim.ttrpc._streams import Kind
from shim.ttrpc.status import LocalProtocolError
from tests.fuzz.schema import PbRequest, PbResponse
from tests.ttrpc.pairs import NAMES, ConnectionPair, head, heard, told

LIMIT: Final = 200  # of the bodies that the cores of a pair take
KIND_NAMES: Final = {REQUEST: "request", DATA: "data"}
KINDS: Final = {name: kind for kind, name in NAMES.items()}

# (stream id, type, flags, body)
Frame = tuple[int, int, int, bytes]


def _parse(kind: type[Message], body: bytes) -> Any:
    """Return the message, whose fields no checker knows, or None."""
    try:
        return kind.FromString(body)
    except DecodeError:
        return None


def _oversize(body: bytes) -> str:
    return f"message length {len(body)} exceed maximum message size of {MAX_BODY}"


class ReferenceServer:
    """The server's rows."""

    def __init__(self) -> None:
        self.live: dict[int, Kind] = {}
        self.inputs: set[int] = set()  # of the live ones, those whose client may send
        self.told: set[int] = set()  # whose data has been answered
        self.last = 0

    def take(self, stream_id: int, kind: int, flags: int, body: bytes) -> tuple[list[str], list[str]]:
        """Return the events and the answers of a frame."""
        if kind == REQUEST:
            return self._request(stream_id, body)
        if kind == DATA:
            return self._data(stream_id, flags, body)
        return [], []

    def _request(self, stream_id: int, body: bytes) -> tuple[list[str], list[str]]:
        if len(body) > LIMIT:
            return [], [f"{stream_id} error 8 {_oversize(body)}"]
        if stream_id % 2 == 0:
            return [], [f"{stream_id} error 3 StreamID must be odd for client initiated streams"]
        if stream_id <= self.last:
            return [], [f"{stream_id} error 3 StreamID cannot be re-used and must increment"]
        self.last = stream_id
        asked = _parse(PbRequest, body)
        if asked is None:
            return [], [f"{stream_id} error 3 unmarshal request error"]
        if asked.service != "a.B":
            return [], [f"{stream_id} error 12 service {asked.service}".rstrip()]
        if asked.method not in KINDS:
            return [], [f"{stream_id} error 12 method {asked.method}".rstrip()]
        kind = self.live[stream_id] = KINDS[asked.method]
        if not kind & 2:
            return [f"{stream_id} call {asked.method} {asked.payload.hex()}".rstrip()], []
        self.inputs.add(stream_id)
        first = [f"{stream_id} message {asked.payload.hex()}"] if asked.payload else []
        return [f"{stream_id} call {asked.method}", *first], []

    def _data(self, stream_id: int, flags: int, body: bytes) -> tuple[list[str], list[str]]:
        if stream_id in self.inputs and len(body) > LIMIT:
            self.end(stream_id)
            return [f"{stream_id} fault {_oversize(body)}"], [f"{stream_id} error 8 {_oversize(body)}"]
        if stream_id in self.inputs:
            events = [] if flags & NO_DATA else [f"{stream_id} message {body.hex()}".rstrip()]
            if flags & REMOTE_CLOSED:
                self.inputs.remove(stream_id)
                events.append(f"{stream_id} end")
            return events, []
        is_mere_end = flags & REMOTE_CLOSED and flags & NO_DATA and len(body) <= LIMIT
        if stream_id in self.told or (stream_id in self.live and is_mere_end):
            return [], []
        self.told.add(stream_id)
        if len(body) > LIMIT:
            return [], [f"{stream_id} error 8 {_oversize(body)}"]
        if stream_id % 2 == 0:
            return [], [f"{stream_id} error 3 StreamID must be odd for client initiated streams"]
        return [], [f"{stream_id} error 3 StreamID is no longer active"]

    def end(self, stream_id: int) -> None:
        """Note that a call has its last frame."""
        del self.live[stream_id]
        self.inputs.discard(stream_id)


class ReferenceClient:
    """The client's rows."""

    def __init__(self) -> None:
        self.live: dict[int, Kind] = {}
        self.outputs: set[int] = set()  # of the live ones, those that may send
        self.next = 1

    def call(self, kind: Kind) -> int:
        """Note a call, and return its id."""
        stream_id = self.next
        self.next += 2
        self.live[stream_id] = kind
        if kind & 2:
            self.outputs.add(stream_id)
        return stream_id

    def take(self, stream_id: int, kind: int, flags: int, body: bytes) -> list[str]:
        """Return the events of a frame."""
        if stream_id not in self.live:
            return []
        is_stream = bool(self.live[stream_id] & 1)
        if kind == DATA and is_stream and len(body) <= LIMIT:
            events = [] if flags & NO_DATA else [f"{stream_id} message {body.hex()}".rstrip()]
            if flags & REMOTE_CLOSED:
                self.end(stream_id)
                events.append(f"{stream_id} end")
            return events
        self.end(stream_id)
        if len(body) > LIMIT:
            return [f"{stream_id} error 8 {_oversize(body)}"]
        if kind != RESPONSE:
            name = KIND_NAMES.get(kind, "unknown")
            return [f'{stream_id} fault unexpected "{name}" message received: protocol error']
        return self._response(stream_id, is_stream, _parse(PbResponse, body))

    @staticmethod
    def _response(stream_id: int, is_stream: bool, answer: Any) -> list[str]:
        if answer is None:
            return [f"{stream_id} fault unmarshal response error"]
        if answer.status.code:
            return [f"{stream_id} error {answer.status.code} {answer.status.message} {answer.payload.hex()}".rstrip()]
        if not is_stream:
            return [f"{stream_id} OK {answer.payload.hex()}".rstrip()]
        last = [f"{stream_id} message {answer.payload.hex()}"] if answer.payload else []
        return [*last, f"{stream_id} end"]

    def end(self, stream_id: int) -> None:
        """Note that a call has ended."""
        self.live.pop(stream_id, None)
        self.outputs.discard(stream_id)


def expect(expected: object, actual: object) -> None:
    """Compare, with both in the error."""
    if expected != actual:
        raise AssertionError(f"expected {expected!r}, got {actual!r}")


def _without_reason(lines: list[str]) -> list[str]:
    """Leave out why an envelope could not be read: protobuf has other words for it."""
    return [re.sub(r"(unmarshal \w+ error): .*", r"\1", line) for line in lines]


def _try(send: Callable[[], bytes]) -> bytes | None:
    """Return what a core would send, or None when it refuses."""
    try:
        return send()
    except LocalProtocolError:
        return None


def _frame(stream_id: int, kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack(">IIBB", len(body), stream_id, kind, flags) + body


class ComparedPair:
    """Two cores on a link: each step goes to them and to the reference, and both must say the same."""

    def __init__(self) -> None:
        self.pair = ConnectionPair(LIMIT)
        self.server = ReferenceServer()
        self.client = ReferenceClient()

    # The client's owner.

    def call(self, kind: Kind, payload: bytes) -> None:
        """Call a method."""
        expected = self.client.call(kind)
        flags = 6 if kind & 2 else 1 if kind else 0
        body = PbRequest(service="a.B", method=NAMES[kind], payload=payload).SerializeToString()
        wire = _frame(expected, REQUEST, flags, body)
        expect((expected, wire), self.pair.client.send_request(head(kind), payload, kind))
        self.pair.to_server.put(wire)

    def send(self, stream_id: int, payload: bytes) -> None:
        """Send a message of a client's stream; refused once it or the call has ended."""
        wire = _frame(stream_id, DATA, 0, payload) if stream_id in self.client.outputs else None
        expect(wire, _try(lambda: self.pair.client.send_message(stream_id, payload)))
        self.pair.to_server.put(wire or b"")

    def close_send(self, stream_id: int) -> None:
        """End a client's stream; nothing goes out once the call has ended."""
        wire = b"" if stream_id not in self.client.live else None
        if stream_id in self.client.outputs:
            wire = _frame(stream_id, DATA, 5, b"")
            self.client.outputs.remove(stream_id)
        expect(wire, _try(lambda: self.pair.client.send_end(stream_id)))
        self.pair.to_server.put(wire or b"")

    def forget(self, stream_id: int) -> None:
        """Give a call up."""
        self.client.end(stream_id)
        self.pair.client.forget(stream_id)

    # The server's owner.

    def respond(self, stream_id: int, payload: bytes) -> None:
        """Answer a call; refused for a server's stream, nothing for a call that has ended."""
        kind = self.server.live.get(stream_id)
        body = PbResponse(payload=payload).SerializeToString()
        wire = b"" if kind is None else None if kind & 1 else _frame(stream_id, RESPONSE, 0, body)
        self._end(stream_id, wire, lambda: self.pair.server.send_response(stream_id, payload))

    def fail(self, stream_id: int, code: int, text: str) -> None:
        """Answer a call of any kind with an error."""
        body = PbResponse(status={"code": code, "message": text}).SerializeToString()
        wire = _frame(stream_id, RESPONSE, 0, body) if stream_id in self.server.live else b""
        self._end(stream_id, wire, lambda: self.pair.server.send_error(stream_id, code, text))

    def finish(self, stream_id: int) -> None:
        """End a server's stream."""
        kind = self.server.live.get(stream_id)
        wire = b"" if kind is None else _frame(stream_id, DATA, 5, b"") if kind & 1 else None
        self._end(stream_id, wire, lambda: self.pair.server.send_end(stream_id))

    def _end(self, stream_id: int, wire: bytes | None, send: Callable[[], bytes]) -> None:
        expect(wire, _try(send))
        if wire:
            self.server.end(stream_id)
            self.pair.to_client.put(wire)

    def emit(self, stream_id: int, payload: bytes) -> None:
        """Send a message of a server's stream."""
        wire = _frame(stream_id, DATA, 0, payload) if self.server.live.get(stream_id, 0) & 1 else None
        expect(wire, _try(lambda: self.pair.server.send_message(stream_id, payload)))
        self.pair.to_client.put(wire or b"")

    # The link.

    def inject(self, frame: Frame, *, is_for_server: bool) -> None:
        """Put a frame on the link that no core has sent."""
        (self.pair.to_server if is_for_server else self.pair.to_client).put(_frame(*frame))

    def deliver(self, size: int, *, is_for_server: bool) -> None:
        """Let some bytes arrive."""
        if not is_for_server:
            piece, frames = self.pair.to_client.take(size)
            expected = [line for frame in frames for line in self.client.take(*frame)]
            expect(_without_reason(expected), _without_reason(heard(self.pair.client.receive_data(piece))))
            return
        piece, frames = self.pair.to_server.take(size)
        taken = [self.server.take(*frame) for frame in frames]
        events = heard(self.pair.server.receive_data(piece))
        answers = self.pair.server.data_to_send()
        expect([line for lines, _ in taken for line in lines], events)
        expect([line for _, lines in taken for line in lines], _without_reason(told(answers)))
        self.pair.to_client.put(answers)

    def check(self) -> None:
        """Compare what both think is going on."""
        expect(len(self.server.live), self.pair.server.active)
        expect(len(self.client.live), self.pair.client.active)
        ids = range(self.client.next)
        expect([number for number in ids if number in self.client.live], [*filter(self.pair.client.is_active, ids)])
        expect([number for number in ids if number in self.server.live], [*filter(self.pair.server.is_active, ids)])
