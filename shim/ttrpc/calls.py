"""One call on a server, from its request to its last frame, and the stream that its handler may hold.

Rule: a handler runs outside every lock, and whatever it raises is contained to its call.  The peer's lock guards what
the loop and a handler's thread share: the inbox, and what is written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, Protocol

from shim.ttrpc._inbox import Inbox
from shim.ttrpc.context import CallContext, Deferred
from shim.ttrpc.rpc import RequestT, ResponseT
from shim.ttrpc.service import Endpoint
from shim.ttrpc.status import Code, RpcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.ttrpc.loop import Timer
    from shim.ttrpc.peer import Peer


class OpenCall(NamedTuple):
    """A call that has no answer yet: `service/Method`, since when (`time.monotonic()`), and of which process."""

    method: str
    began: float
    pid: int


class Waker(Protocol):
    """Who waits for an inbox to fill or for an outgoing queue to empty; called with the peer's lock held."""

    def wake(self) -> None:
        """Look again."""


class ServerStream(Generic[RequestT, ResponseT]):
    """What a blocking handler has of a stream: iterate it for the client's messages, `send` the server's."""

    __slots__ = ("_call", "_condition")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._condition = threading.Condition(call.peer.lock)
        call.waker = self

    def wake(self) -> None:
        """Let the threads that wait look again."""
        self._condition.notify_all()

    def recv(self) -> RequestT | None:
        """Return the client's next message, or None once it has sent its last.

        Raises:
            RpcError: The call is over: CANCELED, the client has gone; DEADLINE_EXCEEDED; INTERNAL, the bytes are not
                this method's request.
        """
        call = self._call
        inbox = call.inbox
        with self._condition:
            while not inbox.is_ready:
                self._condition.wait()
            payload = inbox.take()
            call.peer.inbox_taken(call)
        return None if payload is None else call.endpoint.decode(payload)  # type: ignore[return-value]  # by its table

    def __iter__(self) -> Iterator[RequestT]:
        while (message := self.recv()) is not None:
            yield message

    def send(self, response: ResponseT) -> None:
        """Send one message; waits while the client does not read.  Any thread may send.

        Raises:
            RpcError: The call is over, as in `recv`; RESOURCE_EXHAUSTED, the message is over 4 MiB.
            LocalProtocolError: The method has no server's stream, or its handler has returned.
        """
        call = self._call
        payload = call.endpoint.encode(response)
        with self._condition:
            while call.peer.is_congested and not call.is_over:
                call.peer.wait_for_room(self)
                self._condition.wait()
            call.raise_if_over()
            call.peer.send_message(call, payload)


class Call:
    """One request on its way through a handler."""

    timer: Timer | None = None
    deferred: Deferred | None = None
    waker: Waker | None = None
    on_over: Callable[[], object] | None = None  # what stops a coroutine
    is_over: bool = False

    def __init__(self, peer: Peer, stream_id: int, endpoint: Endpoint, payload: bytes, context: CallContext) -> None:
        self.peer = peer
        self.stream_id = stream_id
        self.endpoint = endpoint
        self.context = context
        self.began: float = time.monotonic()
        self._payload = payload
        self.inbox: Inbox = _NO_INBOX if not endpoint.kind else Inbox()

    @property
    def holds_up(self) -> bool:
        """True when a graceful end of the server waits for this call."""
        return self.deferred is None or self.deferred.holds_up

    def run(self) -> None:
        """Run the handler and answer with what it returns or raises."""
        endpoint = self.endpoint
        try:
            result = endpoint.handler(self.context, self.request())
            if endpoint.kind & 1:
                if hasattr(result, "__await__") or hasattr(result, "__anext__"):
                    self.peer.server.drive(self, result)
                else:
                    self._send_all(result)
                    self.end()
                return
        except BaseException as error:  # whatever a handler raises is contained to its call
            self.fail(error)
            return
        self.take(result)

    def take(self, result: object) -> None:
        """Answer with what a handler returned, now or later."""
        if isinstance(result, Deferred):
            self.deferred = result
            result.on_done(self._answer_deferred)
            if self.is_over:  # given up while the handler ran
                self._guard(result.abandon)
            return
        try:
            if hasattr(result, "__await__"):
                self.peer.server.drive(self, result)
                return
            payload = self.endpoint.encode(result)
        except Exception as error:  # protobuf has an error of its own for a message that lacks a required field
            self.fail(error)
            return
        self.answer(payload)

    def request(self) -> Any:
        """Return what the handler gets: the request, or the stream where the client streams."""
        if self.endpoint.kind & 2:
            return self.peer.server.make_stream(self)
        return self.endpoint.decode(self._payload)

    def _send_all(self, responses: Any) -> None:
        """Send what a blocking handler yields."""
        if responses is None:
            return
        stream: ServerStream[Any, Any] = ServerStream(self) if self.waker is None else self.waker  # type: ignore[assignment]
        try:
            for response in responses:
                stream.send(response)
        finally:
            close = getattr(responses, "close", None)
            if close is not None:
                close()

    def _answer_deferred(self, deferred: Deferred) -> None:
        try:
            payload = self.endpoint.encode(deferred.result())
        except BaseException as error:  # as in run
            self.fail(error)
            return
        self.answer(payload)

    def answer(self, payload: bytes) -> None:
        """End the call with its one response."""
        self._stop_timer()
        self.peer.send_response(self, payload)
        self._guard(self.context.cancel)

    def end(self) -> None:
        """End the server's stream."""
        self._stop_timer()
        self.peer.send_end(self)
        self._guard(self.context.cancel)

    def fail(self, error: BaseException) -> None:
        """End the call with an exception's status; one that no handler should raise is reported too."""
        self._stop_timer()
        if not self.is_over:  # what a handler raises because its call has been given up is neither answer nor bug
            self.peer.send_error(self, error)
            is_answer = isinstance(error, OSError) or isinstance(getattr(error, "code", None), int)
            if not is_answer or not isinstance(error, Exception):
                self.peer.server.report(self.context.method, error)
        self._guard(self.context.cancel)

    def expire(self) -> None:
        """Answer that the deadline has passed; a handler that runs goes on and its late answer is dropped."""
        error = RpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded", self.context.method)
        self.give_up(error)
        self.peer.send_error(self, error)

    def give_up(self, error: Exception) -> None:
        """Tell the handler that nobody waits any more, and why; the peer has no lock held."""
        self._stop_timer()
        with self.peer.lock:
            self.is_over = True
            if self.inbox is not _NO_INBOX:
                self.inbox.drop()
                self.inbox.end(error)
            if self.waker is not None:
                self.waker.wake()
        self._guard(self.context.cancel)
        if self.deferred is not None:
            self._guard(self.deferred.abandon)
        if self.on_over is not None:
            self._guard(self.on_over)

    def _guard(self, step: Callable[[], object]) -> None:
        """Run what belongs to the author at the end of a call: its fault ends nothing else."""
        self.peer.server.guard(self.context.method, step)

    def end_input(self) -> None:
        """The client has closed its half of the connection: a stream that it has not ended can never be; lock held."""
        if self.endpoint.kind & 2 and not self.inbox.is_ended:
            self.inbox.end(RpcError(Code.CANCELED, "context canceled", self.context.method))
            if self.waker is not None:
                self.waker.wake()

    def raise_if_over(self) -> None:
        """Raise what the call was given up for; the peer's lock is held."""
        if self.is_over:
            raise self.inbox.error or RpcError(Code.CANCELED, "context canceled", self.context.method)

    def _stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


_NO_INBOX = Inbox()
"""Of every call that streams nothing."""
