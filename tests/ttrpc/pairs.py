"""A client's and a server's core with a link between them, and a short way to write what goes over it.

Frames are written as ttrpc's transcripts have it, behind the stream's id: `7 D/0 0801`, `7 D/5`, `1 OK 0808`,
`1 error 12 service a.B`, `1 R/0 <body>`; events as `1 call C 0807`, `7 message 0801`, `7 end`, `7 fault <text>`.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from shim.ttrpc._client_connection import ClientConnection
from shim.ttrpc._envelope import decode_response, encode_head, encode_request
from shim.ttrpc._events import ClientEvent, EndReceived, MessageReceived, RequestReceived, ResponseReceived, ServerEvent
from shim.ttrpc._frame import DATA, HEADER, HEADER_SIZE, MAX_BODY, REQUEST, RESPONSE, FrameReader, encode_frame
from shim.ttrpc._server_connection import ServerConnection
from shim.ttrpc._streams import Kind
from shim.ttrpc.status import Code, RpcError

# (stream id, type, flags, body)
FrameValues = tuple[int, int, int, bytes]
LETTERS: Final = {REQUEST: "R", DATA: "D"}


@dataclass(frozen=True, slots=True)
class Method:
    """A method, as far as a connection looks at it."""

    name: str
    kind: Kind


class Methods:
    """The method table of one service, `a.B`."""

    def __init__(self, *methods: Method) -> None:
        self.heads = {encode_head("a.B", method.name): method for method in methods}
        self._names = {method.name: method for method in methods}

    def find(self, service: str, method: str) -> Method:
        """Return the method, or raise in Go's words."""
        if service != "a.B":
            raise RpcError(Code.UNIMPLEMENTED, f"service {service}")
        if method not in self._names:
            raise RpcError(Code.UNIMPLEMENTED, f"method {method}")
        return self._names[method]


# One of each kind, under the letters of the golden vectors.
NAMES: Final = {Kind.UNARY: "C", Kind.SERVER_STREAM: "T", Kind.CLIENT_STREAM: "S", Kind.BIDI: "E"}
METHODS: Final = Methods(*(Method(name, kind) for kind, name in NAMES.items()))


def head(kind: Kind = Kind.UNARY) -> bytes:
    """Return the encoded names of the method of this kind."""
    return encode_head("a.B", NAMES[kind])


def request(stream_id: int, kind: Kind = Kind.UNARY, flags: int = 0, payload: bytes = b"\x08\x07") -> bytes:
    """Return the frame that calls the method of this kind."""
    return encode_frame(stream_id, REQUEST, flags, encode_request("a.B", NAMES[kind], payload))


def data(stream_id: int, flags: int = 0, body: str | bytes = b"") -> bytes:
    """Return a data frame; the body may be in hex."""
    return encode_frame(stream_id, DATA, flags, bytes.fromhex(body) if isinstance(body, str) else body)


def cut(wire: bytes) -> Iterator[FrameValues]:
    """Yield the frames of bytes that hold nothing but whole ones."""
    at = 0
    while at < len(wire):
        length, stream_id, kind, flags = HEADER.unpack_from(wire, at)
        at += HEADER_SIZE + length
        assert at <= len(wire), "a frame is cut short"
        yield stream_id, kind, flags, wire[at - length : at]


def told(wire: bytes) -> list[str]:
    """Return what bytes on the link say."""
    return [_tell(*frame) for frame in cut(wire)]


def _tell(stream_id: int, kind: int, flags: int, body: bytes) -> str:
    if kind != RESPONSE:
        return f"{stream_id} {LETTERS[kind]}/{flags} {body.hex()}".rstrip()
    assert flags == 0
    response = decode_response(body)
    if response.code:
        assert response.payload == b""
        return f"{stream_id} error {response.code} {response.message}".rstrip()
    return f"{stream_id} OK {response.payload.hex()}".rstrip()


def heard(events: Iterable[ServerEvent[Method] | ClientEvent]) -> list[str]:
    """Return what events say."""
    return [_hear(event) for event in events]


def _hear(event: ServerEvent[Method] | ClientEvent) -> str:
    if isinstance(event, RequestReceived):
        text = f"{event.stream_id} call {event.method.name} {event.payload.hex()}"
    elif isinstance(event, MessageReceived):
        text = f"{event.stream_id} message {event.payload.hex()}"
    elif isinstance(event, EndReceived):
        text = f"{event.stream_id} end"
    elif isinstance(event, ResponseReceived):
        status = f"error {event.code} {event.message}" if event.code else "OK"
        text = f"{event.stream_id} {status} {event.payload.hex()}"
    else:
        text = f"{event.stream_id} fault {event.message}"
    return text.rstrip()


class Link:
    """One direction: bytes arrive in the order in which they were sent, in pieces of any size."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._frames: deque[tuple[int, FrameValues]] = deque()  # behind where each one ends
        self._taken = 0
        self._put = 0

    def __len__(self) -> int:
        return len(self._bytes)

    def put(self, wire: bytes) -> None:
        """Send whole frames."""
        for frame in cut(wire):
            self._put += HEADER_SIZE + len(frame[3])
            self._frames.append((self._put, frame))
        self._bytes += wire

    def take(self, size: int) -> tuple[bytes, list[FrameValues]]:
        """Return the next bytes, and the frames that end in them."""
        piece = bytes(self._bytes[:size])
        del self._bytes[:size]
        self._taken += len(piece)
        ended = []
        while self._frames and self._frames[0][0] <= self._taken:
            ended.append(self._frames.popleft()[1])
        return piece, ended


class ConnectionPair:
    """Two cores; what either sends waits in its link until it is asked for."""

    def __init__(self, limit: int = MAX_BODY) -> None:
        self.client = ClientConnection()
        self.server = ServerConnection(METHODS)
        if limit != MAX_BODY:  # so that a few bytes are too many
            self.client._reader = FrameReader(limit)
            self.server._reader = FrameReader(limit)
        self.to_server = Link()
        self.to_client = Link()

    def serve(self) -> list[str]:
        """Let all that was sent reach the server; its answers to bad frames go on their way back."""
        events = heard(self.server.receive_data(self.to_server.take(len(self.to_server))[0]))
        self.to_client.put(self.server.data_to_send())
        return events

    def read(self) -> list[str]:
        """Let all that was sent reach the client."""
        return heard(self.client.receive_data(self.to_client.take(len(self.to_client))[0]))

    def call(self, kind: Kind = Kind.UNARY, payload: bytes = b"") -> int:
        """Send a request and return its id."""
        stream_id, wire = self.client.send_request(head(kind), payload, kind)
        self.to_server.put(wire)
        return stream_id
