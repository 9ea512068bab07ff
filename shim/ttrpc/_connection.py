"""The two ends of a ttrpc connection, without any input or output.

Rule: bytes in, events out; what must be written comes back as bytes.  Every fault is contained to its own call:
containerd takes a dropped connection for a dead shim.  No sockets, threads or clocks here; the owner serialises
calls. Spec: containerd/ttrpc PROTOCOL.md; answers to bad input are those that real Go peers need.
"""

from __future__ import annotations

from typing import Final

from shim.ttrpc import _frame
from shim.ttrpc._envelope import (
    Metadata,
    decode_request,
    decode_response,
    encode_error,
    encode_request,
    encode_response,
)
from shim.ttrpc._events import RequestReceived, ResponseReceived
from shim.ttrpc._frame import Frame, FrameReader, encode_frame
from shim.ttrpc._streams import State, Step, advance
from shim.ttrpc.status import Code, LocalProtocolError, RpcError
from shim.ttrpc.wire import DecodeError

# A peer that floods a dead stream with data gets one answer for it; so many dead streams are remembered.
_REMEMBERED_STRAYS: Final = 256


def _oversize_text(length: int) -> str:
    return f"message length {length} exceed maximum message size of {_frame.MAX_BODY}"


class ServerConnection:
    """The server's end: requests come in, responses go out."""

    __slots__ = ("_last_id", "_out", "_reader", "_strays", "_streams")

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._streams: dict[int, State] = {}
        self._strays: dict[int, None] = {}
        self._last_id = 0
        self._out: list[bytes] = []

    @property
    def active(self) -> int:
        """How many calls have been received and not yet answered."""
        return len(self._streams)

    def receive_data(self, data: bytes) -> list[RequestReceived]:
        """Take bytes from the peer and return the calls they complete; see `data_to_send` afterwards."""
        events: list[RequestReceived] = []
        for frame in self._reader.feed(data):
            if frame.kind == _frame.REQUEST:
                event = self._receive_request(frame)
                if event is not None:
                    events.append(event)
            elif frame.kind == _frame.DATA:
                self._receive_data_frame(frame)
            # Other kinds are ignored, as Go's server does: a later protocol may add some.
        return events

    def data_to_send(self) -> bytes:
        """Return the answers to bad frames that `receive_data` produced, and forget them."""
        out, self._out = b"".join(self._out), []
        return out

    def send_response(self, stream_id: int, payload: bytes) -> bytes:
        """Return the frame that answers a call with success.

        An answer over the size limit becomes RESOURCE_EXHAUSTED for the caller, since a frame over 4 MiB ends the
        process of a Go 1.1 client (containerd#6248).  A call already answered gives no bytes: its deadline was
        faster.
        """
        body = encode_response(payload)
        if len(body) > _frame.MAX_BODY:
            return self.send_error(stream_id, Code.RESOURCE_EXHAUSTED, _oversize_text(len(body)))
        return self._finish(stream_id, body)

    def send_error(self, stream_id: int, code: int, message: str) -> bytes:
        """Return the frame that answers a call with a status; no bytes if it has been answered."""
        body = encode_error(code, message)
        if len(body) > _frame.MAX_BODY:
            body = encode_error(code, message[: 64 << 10])
        return self._finish(stream_id, body)

    def _finish(self, stream_id: int, body: bytes) -> bytes:
        state = self._streams.pop(stream_id, None)
        if state is None:
            return b""
        advance(state, Step.SEND_END)
        return encode_frame(stream_id, _frame.RESPONSE, 0, body)

    def _reject(self, stream_id: int, code: Code, message: str) -> None:
        self._out.append(encode_frame(stream_id, _frame.RESPONSE, 0, encode_error(code, message)))

    def _receive_request(self, frame: Frame) -> RequestReceived | None:
        stream_id = frame.stream_id
        if frame.body is None:
            self._reject(stream_id, Code.RESOURCE_EXHAUSTED, _oversize_text(frame.length))
            return None
        if not stream_id % 2:
            self._reject(stream_id, Code.INVALID_ARGUMENT, "StreamID must be odd for client initiated streams")
            return None
        if stream_id <= self._last_id:
            self._reject(stream_id, Code.INVALID_ARGUMENT, "StreamID cannot be re-used and must increment")
            return None
        self._last_id = stream_id
        try:
            request = decode_request(frame.body)
        except DecodeError as error:
            self._reject(stream_id, Code.INVALID_ARGUMENT, f"unmarshal request error: {error}")
            return None
        self._streams[stream_id] = advance(State.OPEN, Step.RECV_END)
        return RequestReceived(stream_id, *request)

    def _receive_data_frame(self, frame: Frame) -> None:
        """Answer data that no call takes, once for each stream; a call in flight is left alone."""
        stream_id = frame.stream_id
        if frame.body is None:
            self._reject(stream_id, Code.RESOURCE_EXHAUSTED, _oversize_text(frame.length))
        elif not stream_id % 2:
            self._reject(stream_id, Code.INVALID_ARGUMENT, "StreamID must be odd for client initiated streams")
        elif stream_id not in self._strays:
            closes_only = frame.flags & _frame.REMOTE_CLOSED and frame.flags & _frame.NO_DATA
            if stream_id in self._streams and closes_only:
                return
            self._strays[stream_id] = None
            if len(self._strays) > _REMEMBERED_STRAYS:
                del self._strays[next(iter(self._strays))]
            self._reject(stream_id, Code.INVALID_ARGUMENT, "StreamID is no longer active")


class ClientConnection:
    """The client's end: requests go out, responses come in."""

    __slots__ = ("_next_id", "_reader", "_streams")

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._streams: dict[int, State] = {}
        self._next_id = 1

    @property
    def active(self) -> int:
        """How many calls wait for their answer."""
        return len(self._streams)

    def send_request(
        self, service: str, method: str, payload: bytes, timeout_ns: int = 0, metadata: Metadata = ()
    ) -> tuple[int, bytes]:
        """Return the new call's stream id and its frame; frames must be written in the order of their ids.

        Raises:
            RpcError: RESOURCE_EXHAUSTED, the request is over the limit of 4 MiB.
            LocalProtocolError: The ids of this connection are used up.
        """
        body = encode_request(service, method, payload, timeout_ns, metadata)
        if len(body) > _frame.MAX_BODY:
            raise RpcError(Code.RESOURCE_EXHAUSTED, _oversize_text(len(body)), f"{service}/{method}")
        stream_id = self._next_id
        if stream_id > _frame.MAX_STREAM_ID:
            raise LocalProtocolError("stream ids of this connection are used up")
        self._next_id = stream_id + 2
        self._streams[stream_id] = advance(State.OPEN, Step.SEND_END)
        return stream_id, encode_frame(stream_id, _frame.REQUEST, 0, body)

    def forget(self, stream_id: int) -> None:
        """Give a call up; the server is not told (the protocol cannot), a late answer is dropped."""
        self._streams.pop(stream_id, None)

    def receive_data(self, data: bytes) -> list[ResponseReceived]:
        """Take bytes from the peer and return the answers they complete; frames for no known call are dropped."""
        events: list[ResponseReceived] = []
        for frame in self._reader.feed(data):
            state = self._streams.pop(frame.stream_id, None)
            if state is None:
                continue
            advance(state, Step.RECV_END)
            events.append(self._answer(frame))
        return events

    @staticmethod
    def _answer(frame: Frame) -> ResponseReceived:
        if frame.body is None:
            return ResponseReceived(frame.stream_id, Code.RESOURCE_EXHAUSTED, _oversize_text(frame.length), b"")
        if frame.kind != _frame.RESPONSE:
            kind = {_frame.REQUEST: "request", _frame.DATA: "data"}.get(frame.kind, "unknown")
            text = f'unexpected "{kind}" message received: protocol error'
            return ResponseReceived(frame.stream_id, Code.INTERNAL, text, b"")
        try:
            response = decode_response(frame.body)
        except DecodeError as error:
            return ResponseReceived(frame.stream_id, Code.INTERNAL, f"unmarshal response error: {error}", b"")
        return ResponseReceived(frame.stream_id, *response)
