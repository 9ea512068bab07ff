"""The client's end of a ttrpc connection, without any input or output.

Rule: bytes in, events out; what must be written comes back as bytes.  Nothing is ever sent on a stream that has ended:
that ends the process of many a Go server.  No sockets, threads or clocks here; the owner serialises calls, and writes
bytes in the order in which it got them. Spec: containerd/ttrpc PROTOCOL.md, and what real Go and Rust peers send.
"""

from __future__ import annotations

from typing import Final

from shim.ttrpc._envelope import Metadata, decode_response, encode_tail
from shim.ttrpc._events import ClientEvent, EndReceived, FaultReceived, MessageReceived, ResponseReceived
from shim.ttrpc._frame import (
    DATA,
    END_OF_STREAM,
    HEADER,
    LARGE,
    MAX_BODY,
    MAX_STREAM_ID,
    NO_DATA,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    REQUEST,
    RESPONSE,
    FrameReader,
    encode_message,
    keep_heap,
    oversize_text,
)
from shim.ttrpc._streams import NEW, Kind, Side, Step, Stream, advance, check_may_send
from shim.ttrpc.status import Code, LocalProtocolError, RpcError
from shim.ttrpc.wire import DecodeError, varint

_UNARY: Final = NEW[Side.CLIENT, Kind.UNARY]
# A Rust server takes the payload of an opening request for a message unless NO_DATA says that it is none.
_OPENING_FLAGS: Final = {
    Kind.UNARY: 0,
    Kind.SERVER_STREAM: REMOTE_CLOSED,
    Kind.CLIENT_STREAM: REMOTE_OPEN | NO_DATA,
    Kind.BIDI: REMOTE_OPEN | NO_DATA,
}
# Python 3.11 runs a property for each use of an enum's member.
_RECV_MESSAGE: Final = Step.RECV_MESSAGE
_RECV_FINAL: Final = Step.RECV_FINAL
_new = tuple.__new__  # a third of the time that ResponseReceived(...) takes
_KIND_NAMES: Final = {REQUEST: "request", RESPONSE: "response", DATA: "data"}


class ClientConnection:
    """The client's end: requests and data go out; responses, data and errors come in."""

    __slots__ = ("_next_id", "_reader", "_streams")

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._streams: dict[int, Stream] = {}
        self._next_id = 1

    @property
    def active(self) -> int:
        """How many calls have not ended."""
        return len(self._streams)

    def is_active(self, stream_id: int) -> bool:
        """True until the call has ended, or has been forgotten."""
        return stream_id in self._streams

    def send_request(
        self,
        head: bytes,
        payload: bytes,
        kind: Kind = Kind.UNARY,
        timeout_ns: int = 0,
        metadata: Metadata = (),
    ) -> tuple[int, bytes]:
        """Return the new call's stream id and its frame; `head` is `encode_head` of the names.

        Frames must be written in the order of their ids.

        Raises:
            RpcError: RESOURCE_EXHAUSTED, the request is over the limit of 4 MiB.
            LocalProtocolError: The ids of this connection are used up.
        """
        if len(payload) >= LARGE:
            keep_heap()
        if timeout_ns or metadata or not payload:
            parts = [b"", head, *encode_tail(payload, timeout_ns, metadata)]
            length = sum(map(len, parts))
        else:
            prefix = b"\x1a" + varint(len(payload))
            parts = [b"", head, prefix, payload]
            length = len(head) + len(prefix) + len(payload)
        if length > MAX_BODY:
            raise RpcError(Code.RESOURCE_EXHAUSTED, oversize_text(length))
        stream_id = self._next_id
        if stream_id > MAX_STREAM_ID:
            raise LocalProtocolError("stream ids of this connection are used up")
        self._next_id = stream_id + 2
        self._streams[stream_id] = NEW[Side.CLIENT, kind] if kind else _UNARY
        parts[0] = HEADER.pack(length, stream_id, REQUEST, _OPENING_FLAGS[kind])
        return stream_id, b"".join(parts)

    def send_message(self, stream_id: int, payload: bytes) -> bytes:
        """Return the frame of one message of a client's stream.

        Raises:
            LocalProtocolError: The call or this side's stream has ended: data on a stream that a Go server does not
                hold ends its process.
            RpcError: RESOURCE_EXHAUSTED, the message is over 4 MiB.
        """
        check_may_send(self._streams, stream_id)
        return encode_message(stream_id, payload)

    def send_end(self, stream_id: int) -> bytes:
        """Return the frame that ends a client's stream; no bytes when the call itself has ended.

        Raises:
            LocalProtocolError: It has been ended before, or the method has none.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return b""
        rules, state = stream
        self._streams[stream_id] = rules, advance(rules, state, Step.SEND_END)
        return HEADER.pack(0, stream_id, DATA, END_OF_STREAM)

    def forget(self, stream_id: int) -> None:
        """Give a call up; the server is not told (the protocol cannot), what still comes of it is dropped."""
        self._streams.pop(stream_id, None)

    def receive_data(self, data: bytes) -> list[ClientEvent]:
        """Take bytes from the peer and return what they complete; frames for no known call are dropped."""
        streams = self._streams
        header = self._reader.lone(data)
        if header is not None:  # one small answer, what a caller alone mostly gets
            length, stream_id, kind, _ = header
            if kind == RESPONSE and 1 < length < 0x82 and data[10] == 0x12 and data[11] == length - 2:
                if streams.get(stream_id) is _UNARY:
                    del streams[stream_id]
                    return [_new(ResponseReceived, (stream_id, 0, "", data[12:], ()))]
        events: list[ClientEvent] = []
        for frame in self._reader.feed(data):
            stream_id, kind, flags, length, body = frame
            stream = streams.get(stream_id)
            if stream is None:
                continue
            if stream is _UNARY and kind == RESPONSE and body is not None:
                del streams[stream_id]
                if len(body) > 1 and body[0] == 0x12 and body[1] == len(body) - 2 < 0x80:  # a small payload alone
                    events.append(_new(ResponseReceived, (stream_id, 0, "", body[2:], ())))
                else:
                    self._take_response(stream_id, body, False, events)
                continue
            rules, state = stream
            if body is not None and kind == DATA and _RECV_MESSAGE in rules[state]:
                if not flags & NO_DATA:
                    events.append(_new(MessageReceived, (stream_id, body)))
                if flags & REMOTE_CLOSED:
                    advance(rules, state, _RECV_FINAL)
                    del streams[stream_id]
                    events.append(EndReceived(stream_id))
                continue
            advance(rules, state, _RECV_FINAL)
            del streams[stream_id]
            if body is None:
                events.append(ResponseReceived(stream_id, Code.RESOURCE_EXHAUSTED, oversize_text(length), b""))
            elif kind != RESPONSE:
                name = _KIND_NAMES.get(kind, "unknown")
                events.append(FaultReceived(stream_id, f'unexpected "{name}" message received: protocol error'))
            else:
                self._take_response(stream_id, body, _RECV_MESSAGE in rules[state], events)
        return events

    @staticmethod
    def _take_response(stream_id: int, body: bytes, has_server_stream: bool, events: list[ClientEvent]) -> None:
        try:
            response = decode_response(body)
        except DecodeError as error:
            events.append(FaultReceived(stream_id, f"unmarshal response error: {error}"))
            return
        if response.code != Code.OK or not has_server_stream:
            events.append(ResponseReceived(stream_id, *response))
            return
        if response.payload:  # no server should end a stream so; what it says is not lost
            events.append(MessageReceived(stream_id, response.payload))
        events.append(EndReceived(stream_id))
