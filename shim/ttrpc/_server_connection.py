"""The server's end of a ttrpc connection, without any input or output.

Rule: bytes in, events out; what must be written comes back as bytes.  Every fault is contained to its own call:
containerd takes a dropped connection for a dead shim.  No sockets, threads or clocks here; the owner serialises
calls, and writes bytes in the order in which it got them. Spec: containerd/ttrpc PROTOCOL.md; what is sent, and how
bad input is answered, is what real Go and Rust peers need.
"""

from __future__ import annotations

import struct
from typing import Final, Generic, Protocol, TypeVar

from shim.ttrpc._envelope import Details, KnownMetadata, decode_request, decode_tail, encode_error, split_head
from shim.ttrpc._events import EndReceived, FaultReceived, MessageReceived, RequestReceived, ServerEvent
from shim.ttrpc._frame import (
    DATA,
    END_OF_STREAM,
    HEADER,
    HEADER_SIZE,
    MAX_BODY,
    NO_DATA,
    REMOTE_CLOSED,
    REQUEST,
    RESPONSE,
    Frame,
    FrameReader,
    encode_frame,
    encode_message,
    oversize_text,
)
from shim.ttrpc._streams import NEW, Kind, Side, Step, Stream, advance, check_may_send
from shim.ttrpc.status import Code, LocalProtocolError, RpcError
from shim.ttrpc.wire import DecodeError, read_varint, varint

# A peer that floods a dead stream with data gets one answer for it; so many dead streams are remembered.
_REMEMBERED_STRAYS: Final = 256

_UNARY: Final = NEW[Side.SERVER, Kind.UNARY]
_UNARY_KIND: Final = Kind.UNARY  # Python 3.11 runs a property for each use of an enum's member
_SMALL_RESPONSE: Final = struct.Struct(">IIBBBB")  # the header, and the payload's tag and length
_new = tuple.__new__  # a third of the time that RequestReceived(...) takes
_RECV_MESSAGE: Final = Step.RECV_MESSAGE  # on 3.11 a member of an enum costs ten times what a global does
_NO_METADATA: Final[tuple[tuple[str, str], ...]] = ()
_NO_LONGER_ACTIVE: Final = "StreamID is no longer active"
_MUST_BE_ODD: Final = "StreamID must be odd for client initiated streams"


class HasKind(Protocol):
    """What a connection wants to know of a method."""

    @property
    def kind(self) -> Kind:
        """Which sides stream."""


MethodT = TypeVar("MethodT", bound=HasKind)


class MethodTable(Protocol[MethodT]):
    """Where a server's connection finds its methods.

    `heads` maps the encoded service and method names of a request to the method; `find` raises RpcError for names that
    it does not know, which the connection answers.
    """

    @property
    def heads(self) -> dict[bytes, MethodT]:
        """Methods by `encode_head` of their names."""

    def find(self, service: str, method: str) -> MethodT:
        """Return the method."""


class ServerConnection(Generic[MethodT]):
    """The server's end: requests and data come in; responses, data and errors go out."""

    __slots__ = (
        "_head",
        "_head_method",
        "_known_metadata",
        "_last_id",
        "_out",
        "_reader",
        "_strays",
        "_streams",
        "_table",
    )

    def __init__(self, table: MethodTable[MethodT]) -> None:
        self._table = table
        self._reader = FrameReader()
        self._streams: dict[int, Stream] = {}
        self._strays: dict[int, None] = {}
        self._last_id = 0
        self._out: list[bytes] = []
        self._head = b""  # of the latest call: the next one is mostly of the same method
        self._head_method: MethodT | None = None
        self._known_metadata: KnownMetadata = b"", ()

    @property
    def active(self) -> int:
        """How many calls have been received and not yet ended."""
        return len(self._streams)

    def is_active(self, stream_id: int) -> bool:
        """True until the call has been ended from this side."""
        return stream_id in self._streams

    def receive_data(self, data: bytes) -> list[ServerEvent[MethodT]]:
        """Take bytes from the peer and return what they complete; see `data_to_send` afterwards."""
        header = self._reader.lone(data)
        method = self._head_method
        if header is not None and method is not None:  # one request, as most are: see _receive_request
            _, stream_id, kind, _ = header
            if (
                kind == REQUEST
                and stream_id & 1
                and stream_id > self._last_id
                and method.kind is _UNARY_KIND
                and data.startswith(self._head, HEADER_SIZE)
                and (from_ := _only_payload(data, HEADER_SIZE + len(self._head)))
            ):
                self._last_id = stream_id
                self._streams[stream_id] = _UNARY
                return [_new(RequestReceived, (stream_id, method, data[from_:], 0, _NO_METADATA))]
        events: list[ServerEvent[MethodT]] = []
        for frame in self._reader.feed(data):
            if frame.kind == REQUEST:
                self._receive_request(frame, events)
            elif frame.kind == DATA:
                self._receive_message(frame, events)
            # Other kinds are ignored, as Go's server does: a later protocol may add some.
        return events

    @property
    def has_answers(self) -> bool:
        """True when `data_to_send` has something."""
        return bool(self._out)

    def data_to_send(self) -> bytes:
        """Return the answers to bad frames that `receive_data` produced, and forget them."""
        out, self._out = b"".join(self._out), []
        return out

    def send_response(self, stream_id: int, payload: bytes) -> bytes:
        """Return the frame that answers a call of a method without a server's stream.

        An answer over the size limit becomes RESOURCE_EXHAUSTED for the caller, since a frame over 4 MiB ends the
        process of a Go 1.1 client (containerd#6248).  A call already ended gives no bytes: its deadline was faster.

        Raises:
            LocalProtocolError: The method streams: Go's client would take the response for one more message.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return b""
        size = len(payload)
        if stream is _UNARY:
            if 0 < size < 0x80:
                del self._streams[stream_id]
                return _SMALL_RESPONSE.pack(size + 2, stream_id, RESPONSE, 0, 0x12, size) + payload
        else:
            rules, state = stream
            if Step.SEND_MESSAGE in rules[state]:
                raise LocalProtocolError("a server's stream ends with send_end, not with a response")
            advance(rules, state, Step.SEND_FINAL)
        if size >= MAX_BODY - 5:
            length = size + 1 + len(varint(size))
            if length > MAX_BODY:
                return self.send_error(stream_id, Code.RESOURCE_EXHAUSTED, oversize_text(length))
        del self._streams[stream_id]
        if not size:
            return HEADER.pack(0, stream_id, RESPONSE, 0)
        prefix = b"\x12" + varint(size)
        return b"".join((HEADER.pack(len(prefix) + size, stream_id, RESPONSE, 0), prefix, payload))

    def send_error(self, stream_id: int, code: int, message: str, details: Details = ()) -> bytes:
        """Return the frame that ends a call of any kind with a status; no bytes if it has ended."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return b""
        body = self._error_body(code, message, details)  # first: if it raises, the call can still be answered
        advance(*stream, Step.SEND_FINAL)
        del self._streams[stream_id]
        return encode_frame(stream_id, RESPONSE, 0, body)

    def send_message(self, stream_id: int, payload: bytes) -> bytes:
        """Return the frame of one message of a server's stream.

        Raises:
            LocalProtocolError: The call has ended, or its method has no server's stream.
            RpcError: RESOURCE_EXHAUSTED, the message is over 4 MiB.
        """
        check_may_send(self._streams, stream_id)
        return encode_message(stream_id, payload)

    def send_end(self, stream_id: int) -> bytes:
        """Return the frame that ends a server's stream well; no bytes if the call has ended.

        Raises:
            LocalProtocolError: The method has no server's stream: it ends with `send_response`.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return b""
        rules, state = stream
        if Step.SEND_MESSAGE not in rules[state]:
            raise LocalProtocolError("a method without a server's stream ends with a response")
        advance(rules, state, Step.SEND_FINAL)
        del self._streams[stream_id]
        return HEADER.pack(0, stream_id, DATA, END_OF_STREAM)

    @staticmethod
    def _error_body(code: int, message: str, details: Details = ()) -> bytes:
        if not code & 0xFFFFFFFF:  # peers would read it as success, and on a stream as one more message
            code = Code.UNKNOWN
        body = encode_error(code, message, details)
        return body if len(body) <= MAX_BODY else encode_error(code, message[: 64 << 10])

    def _reject(self, stream_id: int, code: int, message: str) -> None:
        self._out.append(encode_frame(stream_id, RESPONSE, 0, self._error_body(code, message)))

    def _receive_request(self, frame: Frame, events: list[ServerEvent[MethodT]]) -> None:
        stream_id, _, _, length, body = frame
        if body is None:
            self._reject(stream_id, Code.RESOURCE_EXHAUSTED, oversize_text(length))
            return
        if not stream_id & 1:
            self._reject(stream_id, Code.INVALID_ARGUMENT, _MUST_BE_ODD)
            return
        if stream_id <= self._last_id:
            self._reject(stream_id, Code.INVALID_ARGUMENT, "StreamID cannot be re-used and must increment")
            return
        self._last_id = stream_id
        method = self._head_method
        try:
            if (
                method is not None and body.startswith(self._head) and (from_ := _only_payload(body, len(self._head)))
            ):  # as most calls are: the same method as before, a payload, nothing else
                payload, timeout_ns, metadata = body[from_:], 0, _NO_METADATA
            else:
                method, payload, timeout_ns, metadata = self._decode(body)
        except DecodeError as error:
            self._reject(stream_id, Code.INVALID_ARGUMENT, f"unmarshal request error: {error}")
            return
        except RpcError as error:
            self._reject(stream_id, error.code, error.message)
            return
        kind = method.kind
        if kind is _UNARY_KIND:
            self._streams[stream_id] = _UNARY
            events.append(_new(RequestReceived, (stream_id, method, payload, timeout_ns, metadata)))
            return
        self._streams[stream_id] = NEW[Side.SERVER, kind]
        if kind is Kind.SERVER_STREAM:
            events.append(RequestReceived(stream_id, method, payload, timeout_ns, metadata))
            return
        events.append(RequestReceived(stream_id, method, b"", timeout_ns, metadata))
        if payload:  # whatever the flags say: Go's server takes it for the first message
            events.append(MessageReceived(stream_id, payload))

    def _decode(self, body: bytes) -> tuple[MethodT, bytes, int, tuple[tuple[str, str], ...]]:
        """Return what a request calls, and its payload, timeout and metadata.  Raises DecodeError, RpcError."""
        method, at = self._head_method, len(self._head)
        if method is None or not body.startswith(self._head):
            at = split_head(body)
            method = self._table.heads.get(body[:at])
            if method is not None:
                self._head, self._head_method = body[:at], method
        if method is not None:
            tail = decode_tail(body, at, self._known_metadata)
            if tail is not None:
                payload, timeout_ns, metadata, self._known_metadata = tail
                return method, payload, timeout_ns, metadata
        service, name, payload, timeout_ns, metadata = decode_request(body)
        return self._table.find(service, name), payload, timeout_ns, metadata

    def _receive_message(self, frame: Frame, events: list[ServerEvent[MethodT]]) -> None:
        stream_id, _, flags, length, body = frame
        stream = self._streams.get(stream_id)
        if body is None:
            if stream is None or Step.RECV_MESSAGE not in stream[0][stream[1]]:
                self._answer_stray(stream_id, Code.RESOURCE_EXHAUSTED, oversize_text(length))
                return
            # A message of the stream is lost, so the call cannot go on.
            text = oversize_text(length)
            self._out.append(self.send_error(stream_id, Code.RESOURCE_EXHAUSTED, text))
            events.append(FaultReceived(stream_id, text))
            return
        if stream is None:
            self._answer_stray(stream_id, Code.INVALID_ARGUMENT, _NO_LONGER_ACTIVE if stream_id & 1 else _MUST_BE_ODD)
            return
        rules, state = stream
        if _RECV_MESSAGE not in rules[state]:
            if flags & END_OF_STREAM != END_OF_STREAM:  # an end too many is harmless
                self._answer_stray(stream_id, Code.INVALID_ARGUMENT, _NO_LONGER_ACTIVE)
            return
        if not flags & NO_DATA:
            events.append(_new(MessageReceived, (stream_id, body)))
        if flags & REMOTE_CLOSED:
            self._streams[stream_id] = rules, advance(rules, state, Step.RECV_END)
            events.append(EndReceived(stream_id))

    def _answer_stray(self, stream_id: int, code: Code, message: str) -> None:
        """Answer data that no call takes, once for each stream."""
        if stream_id in self._strays:
            return
        self._strays[stream_id] = None
        if len(self._strays) > _REMEMBERED_STRAYS:
            del self._strays[next(iter(self._strays))]
        self._reject(stream_id, code, message)


def _only_payload(body: bytes, at: int) -> int:
    """Return where the payload begins if it, behind its tag, is all that follows from `at` on, else 0."""
    end = len(body)
    if end - at < 2 or body[at] != 0x1A:
        return 0
    size = body[at + 1]
    if size < 0x80:
        return at + 2 if at + 2 + size == end else 0
    try:
        size, at = read_varint(body, at + 1)
    except DecodeError:  # answered by who decodes all of it
        return 0
    return at if at + size == end else 0
