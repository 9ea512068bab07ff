"""One connection of a server.

Rule: reading happens on the loop; answers may come from any thread, under the lock.  A peer that does not read its
answers, or whose stream's handler does not take what was sent, is not read from any more: what it may make the server
hold is bounded (Go 1.2 grows without end).
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Sequence

from shim.ttrpc._events import EndReceived, FaultReceived, MessageReceived, RequestReceived, ServerEvent
from shim.ttrpc._frame import LARGE_READ_SIZE, READ_SIZE
from shim.ttrpc._server_connection import ServerConnection
from shim.ttrpc.address import has_hung_up
from shim.ttrpc.calls import Call, OpenCall, Waker
from shim.ttrpc.context import CallContext, Credentials
from shim.ttrpc.loop import READABLE, WRITABLE, Timer
from shim.ttrpc.service import Endpoint
from shim.ttrpc.status import Code, RpcError, status_of
from shim.ttrpc.unsent import JOINED_SIZE, Unsent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.ttrpc.loop_server import LoopServer


class Peer:
    """A connected client."""

    __slots__ = (
        "_backlog",
        "_calls",
        "_connection",
        "_fd",
        "_gathered",
        "_gathered_size",
        "_is_broken",
        "_is_closed",
        "_is_corked",
        "_is_ended",
        "_is_paused",
        "_is_watch_due",
        "_limit",
        "_out",
        "_read_size",
        "_sock",
        "_stall_timer",
        "_stalled",
        "_waiting",
        "_watched",
        "credentials",
        "lock",
        "server",
    )

    def __init__(self, server: LoopServer, sock: socket.socket, credentials: Credentials | None) -> None:
        self.server: LoopServer = server
        self.credentials: Credentials | None = credentials
        self.lock: threading.Lock = threading.Lock()
        self._sock = sock
        self._fd = sock.fileno()
        self._limit = server.limits.unsent_bytes
        self._connection: ServerConnection[Endpoint] = ServerConnection(server.table)
        self._calls: dict[int, Call] = {}
        self._out = Unsent()
        self._gathered: list[bytes] = []  # written while corked
        self._gathered_size = 0
        self._backlog: deque[ServerEvent[Endpoint]] = deque()  # received, and held back while the peer is paused
        self._waiting: set[Waker] = set()  # handlers that want to send and may not yet
        self._stalled: dict[Call, float] = {}  # calls whose inbox is full, and when something was taken last
        self._stall_timer: Timer | None = None
        self._is_broken = False  # a write has failed: the peer is gone
        self._is_closed = False
        self._is_corked = False
        self._is_ended = False
        self._is_paused = False
        self._is_watch_due = False
        self._read_size = READ_SIZE
        self._watched = READABLE
        server.loop.register(self._fd, READABLE, self._ready)

    @property
    def is_idle(self) -> bool:
        """True when every answer has been written; calls whose answer was put off (Wait) may never have one."""
        if self._out or self._gathered or self._is_corked:
            return False
        return not any(call.holds_up for call in list(self._calls.values()))

    @property
    def is_congested(self) -> bool:
        """True while a handler should not send more; the lock is held."""
        return (self._out.size + self._gathered_size > self._limit or self._is_broken) and not self._is_closed

    def open_calls(self) -> list[OpenCall]:
        """Return the calls of this connection that wait for their answer."""
        pid = 0 if self.credentials is None else self.credentials.pid
        return [OpenCall(call.context.method, call.began, pid) for call in list(self._calls.values())]

    def close(self) -> None:
        """Close the connection and tell the calls in flight that nobody waits; runs on the loop."""
        with self.lock:
            if self._is_closed:
                return
            self._is_closed = True
            self.server.loop.unregister(self._fd)
            self._sock.close()
            calls, self._calls = self._calls, {}
            self._out.clear()
            self._gathered.clear()
            self._backlog.clear()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        for call in calls.values():
            call.give_up(RpcError(Code.CANCELED, "context canceled", call.context.method))
        self.server.forget(self)
        self.server.check_drained()

    # Reading, on the loop.

    def _ready(self, events: int) -> None:
        if events & WRITABLE:
            with self.lock:
                self._flush()
            self._go_on()
            self.server.check_drained()
            if events == WRITABLE:
                return
        try:
            data = self._sock.recv(self._read_size)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data:
            self._end_input()
            return
        self._read_size = READ_SIZE if len(data) < READ_SIZE else LARGE_READ_SIZE
        connection = self._connection
        lock = self.lock
        lock.acquire()  # `with` costs twice as much
        try:
            received = connection.receive_data(data)
            lone = received[0] if len(received) == 1 and not connection.has_answers else None
            if type(lone) is not RequestReceived or not self._is_quick(lone):
                lone = None
                self._is_corked = True
                if connection.has_answers:
                    self._write(connection.data_to_send())
        finally:
            lock.release()
        if lone is not None:
            self._answer_alone(lone)
            return
        self._dispatch(received)
        if self._backlog:
            self._go_on()

    def _dispatch(self, events: list[ServerEvent[Endpoint]]) -> None:
        """Act on events; what answers leave at once is sent together.  The cork is in."""
        limit = self._limit
        is_plain = self.server.is_plain
        answers: list[bytes] = []
        size = 0
        try:
            for at, event in enumerate(events):
                if self._out.size + self._gathered_size + size > limit:
                    self._backlog.extend(events[at:])
                    break
                if type(event) is not RequestReceived:
                    self._feed(event)
                elif is_plain and event.method.is_quick and not event.timeout_ns:
                    answer = self._answer_quickly(event)
                    if answer:
                        answers.append(answer)
                        size += len(answer)
                else:
                    self._start(event)
        finally:
            self.uncork(answers, size)
        if self.server.is_draining:
            self.server.loop.call_soon(self.server.check_drained)

    def _is_quick(self, request: RequestReceived[Endpoint]) -> bool:
        """Tell whether a request can be answered at once, past what might be held back; the lock is held."""
        if not request.method.is_quick or request.timeout_ns or not self.server.is_plain:
            return False
        return not (self._is_corked or self._backlog or self._out.size) and self._watched == READABLE

    def _answer_alone(self, request: RequestReceived[Endpoint]) -> None:
        """Answer a request that came alone: `_dispatch` in short, without a cork, which only several answers need."""
        answer = self._answer_quickly(request)
        if answer:
            lock = self.lock
            lock.acquire()
            try:
                self._write(answer)
            finally:
                lock.release()
        if self.server.is_draining:
            self.server.loop.call_soon(self.server.check_drained)

    def _answer_quickly(self, request: RequestReceived[Endpoint]) -> bytes:
        """Run a handler that never blocks, of a unary call without a deadline, and return the frame of its answer.

        Such a call needs no entry in any table; without a frame it has taken another way.
        """
        stream_id, endpoint, payload, _, metadata = request
        context = CallContext(endpoint.full_name, 0, metadata, self.credentials)
        try:
            message = endpoint.from_string(payload)
        except Exception:  # said better where it is said for all
            Call(self, stream_id, endpoint, payload, context).run()
            return b""
        try:
            result = endpoint.handler(context, message)
            if type(result) is endpoint.response:
                frame = self._connection.send_response(stream_id, result.SerializeToString())  # atomic: no lock
                self.server.guard(context.method, context.cancel)
                return frame
        except BaseException as error:  # contained to its call
            Call(self, stream_id, endpoint, payload, context).fail(error)
            return b""
        call = self._calls[stream_id] = Call(self, stream_id, endpoint, payload, context)
        call.take(result)
        return b""

    def _end_input(self) -> None:
        """The peer has closed its sending half, and may still read the answers to what it asked, or all of it."""
        if has_hung_up(self._sock):
            self.close()
            return
        with self.lock:
            self._is_ended = True
            self._set_watch()
            for call in self._calls.values():
                call.end_input()
        self._close_if_finished()

    def _close_if_finished(self) -> None:
        if self._is_ended and not self._calls and not self._out and not self._backlog:
            self.close()

    def _start(self, request: RequestReceived[Endpoint]) -> None:
        stream_id, endpoint, payload, timeout_ns, metadata = request
        server = self.server
        context = CallContext(endpoint.full_name, timeout_ns, metadata, self.credentials)
        call = Call(self, stream_id, endpoint, payload, context)
        if server.is_draining:
            self.send_error(call, RpcError(Code.UNAVAILABLE, "server is shutting down"))
            return
        if server.limits.calls and len(self._calls) >= server.limits.calls:
            text = f"more than {server.limits.calls} calls in flight on this connection"
            self.send_error(call, RpcError(Code.RESOURCE_EXHAUSTED, text))
            return
        self._calls[stream_id] = call
        if timeout_ns:
            call.timer = server.loop.call_later(max(0.0, timeout_ns / 1e9), call.expire)
        server.run(call)

    def _feed(self, event: ServerEvent[Endpoint]) -> None:
        """Hand a message or the end of a client's stream to its call."""
        with self.lock:
            call = self._calls.get(event.stream_id)
            if call is None:
                return
            if isinstance(event, MessageReceived):
                call.inbox.put(event.payload)
                if call.inbox.is_full and call not in self._stalled:
                    self._stall(call)
            elif isinstance(event, EndReceived):
                call.inbox.end()
                if call in self._stalled:  # all of it has come, so it need not keep the others waiting
                    del self._stalled[call]
                    self._want_watch()
            if call.waker is not None:
                call.waker.wake()
        if isinstance(event, FaultReceived):
            with self.lock:
                self._forget(call)
            call.give_up(RpcError(Code.RESOURCE_EXHAUSTED, event.message, call.context.method))

    def _stall(self, call: Call) -> None:
        """Read no more until the handler takes something, and not for long; the lock is held."""
        self._stalled[call] = time.monotonic()
        self._set_watch()
        if self._stall_timer is None:
            self._stall_timer = self.server.loop.call_later(self.server.limits.stall_s, self._give_up_stalled)

    def _give_up_stalled(self) -> None:
        """End the calls whose handlers have taken nothing for so long: every call of the connection waits for them."""
        patience_s = self.server.limits.stall_s
        self._stall_timer = None
        with self.lock:
            now = time.monotonic()
            given_up = [call for call, since in self._stalled.items() if now - since >= patience_s]
            rest = [since for since in self._stalled.values() if now - since < patience_s]
        for call in given_up:
            error = RpcError(Code.RESOURCE_EXHAUSTED, "ttrpc: stream buffer full", call.context.method)
            call.give_up(error)
            self.send_error(call, error)
        if rest:
            self._stall_timer = self.server.loop.call_later(min(rest) + patience_s - now, self._give_up_stalled)

    def inbox_taken(self, call: Call) -> None:
        """Read on if a full inbox was what kept us; the lock is held, any thread."""
        if call not in self._stalled:
            return
        if call.inbox.is_full:
            self._stalled[call] = time.monotonic()
        else:
            del self._stalled[call]
            if not self._stalled:
                self._want_watch()

    def _go_on(self) -> None:
        """Act on what was held back while the peer did not read."""
        while self._backlog and not self._is_paused and not self._is_closed:
            events = list(self._backlog)
            with self.lock:
                self._backlog.clear()
                self._is_corked = True
            self._dispatch(events)
        self._close_if_finished()

    # Writing, from any thread.

    def send_response(self, call: Call, payload: bytes) -> None:
        """End a call with its response."""
        with self.lock:
            self._forget(call)
            self._write(self._connection.send_response(call.stream_id, payload))
        self._ended()

    def send_error(self, call: Call, error: BaseException) -> None:
        """End a call with an exception's status."""
        code, message = status_of(error)
        details = error.details if isinstance(error, RpcError) else ()
        with self.lock:
            self._forget(call)
            self._write(self._connection.send_error(call.stream_id, code, message, details))
        self._ended()

    def send_message(self, call: Call, payload: bytes) -> None:
        """Send one message of a server's stream; the lock is held."""
        self._write(self._connection.send_message(call.stream_id, payload))

    def send_end(self, call: Call) -> None:
        """End a server's stream."""
        with self.lock:
            self._forget(call)
            self._write(self._connection.send_end(call.stream_id))
        self._ended()

    def wait_for_room(self, waker: Waker) -> None:
        """Wake `waker` when the connection is congested no more; the lock is held."""
        self._waiting.add(waker)

    def cork_for_others(self) -> None:
        """Hold writes back until the loop's next turn if other calls are in flight, so that answers leave together."""
        if len(self._calls) > 1 and not self._is_corked:
            self._is_corked = True
            self.server.loop.call_soon(self.uncork)

    def uncork(self, answers: Sequence[bytes] = (), size: int = 0) -> None:
        """Send what has gathered, and `answers`, which have `size` bytes; runs on the loop."""
        with self.lock:
            self._is_corked = False
            if self._gathered:
                answers = [*self._gathered, *answers]
                self._gathered.clear()
                size += self._gathered_size
                self._gathered_size = 0
            if answers and not self._is_closed:
                if size <= JOINED_SIZE and not self._out:
                    self._write(answers[0] if len(answers) == 1 else b"".join(answers))
                else:
                    self._out.extend(answers)
                    self._flush()
            if self._waiting and not self.is_congested:
                self._wake_waiting()
            if self._out or self._backlog or self._watched != READABLE:
                self._set_watch()

    def _wake_waiting(self) -> None:
        """Let those go on that want to send; the lock is held."""
        waiting, self._waiting = self._waiting, set()
        for waker in waiting:
            waker.wake()

    def _forget(self, call: Call) -> None:
        self._calls.pop(call.stream_id, None)
        if self._stalled and call in self._stalled:
            del self._stalled[call]
            self._want_watch()

    def _ended(self) -> None:
        if self.server.is_draining:
            self.server.loop.call_soon(self.server.check_drained)
        if self._is_ended:
            self.server.loop.call_soon(self._close_if_finished)

    def _write(self, data: bytes) -> None:
        """Send or queue bytes; the lock is held."""
        if self._is_corked:
            self._gathered.append(data)
            self._gathered_size += len(data)
            return
        if not data or self._is_closed:
            return
        sent = 0
        if not self._out:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                pass
            except OSError:
                self._break()
                return
        if sent < len(data):
            self._out.add(data, sent)
            self._want_watch()

    def _flush(self) -> None:
        """Send what is queued; the lock is held, on the loop."""
        if self._is_closed:
            return
        try:
            self._out.send(self._sock)
        except OSError:
            self._break()
        if self._waiting and not self.is_congested:
            self._wake_waiting()
        self._set_watch()

    def _break(self) -> None:
        """Nobody reads any more: hold handlers back, which could go on for ever, and close; the lock is held."""
        self._out.clear()
        if not self._is_broken:
            self._is_broken = True
            self.server.loop.call_soon(self.close)

    # What the loop watches.

    def _want_watch(self) -> None:
        """Ask the loop to look at what it watches; the lock is held, any thread."""
        if not self._is_watch_due:
            self._is_watch_due = True
            self.server.loop.call_soon(self._set_watch_soon)

    def _set_watch_soon(self) -> None:
        with self.lock:
            self._is_watch_due = False
            self._set_watch()
        if self._backlog:
            self._go_on()

    def _set_watch(self) -> None:
        """Bring what the loop watches in line with the queues; the lock is held, on the loop."""
        if self._is_closed:
            return
        self._is_paused = self._out.size > (self._limit >> 3 if self._is_paused else self._limit)
        is_reading = not (self._is_paused or self._is_ended or self._stalled or self._backlog)
        events = (READABLE if is_reading else 0) | (WRITABLE if self._out else 0)
        if events != self._watched:
            self._watched = events
            self.server.loop.modify(self._fd, events)
