"""The blocking client's end of a connection: who reads, who waits, who writes.

Rule: of the threads that wait one reads, the leader; it wakes those whose answers came, and when it has its own, one
that still waits leads on.  One lock guards the tables and is never held in a system call that may block; another keeps
the frames on the wire in the order of their ids.  While threads are woken one after the other, small requests wait for
the last of them, and leave together.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from shim.ttrpc._client_connection import ClientConnection
from shim.ttrpc._envelope import Metadata
from shim.ttrpc._events import ClientEvent, MessageReceived, ResponseReceived
from shim.ttrpc._inbox import Inbox
from shim.ttrpc._streams import Kind
from shim.ttrpc.address import end_connection
from shim.ttrpc.followers import Followers
from shim.ttrpc.inlet import Inlet
from shim.ttrpc.outbox import LOOK_S, Outbox
from shim.ttrpc.pending import AnsweredError, Pending, named
from shim.ttrpc.status import Code, ConnectionClosedError, LocalProtocolError, RpcError, TtrpcError

_STALL_S: Final = 1.0  # for so long may a stream whose owner takes nothing keep the others waiting
_SMALL_SIZE: Final = 16 << 10
_HANG_UP: Final = getattr(select, "POLLRDHUP", select.POLLHUP)


class Link:
    """One connection, shared by threads."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pid = os.getpid()
        self._connection = ClientConnection()
        self._lock = threading.Lock()
        self._outbox = Outbox(sock, self, self._lock)
        self._pending: dict[int, Pending] = {}
        self._followers = Followers()
        self._leader: Pending | None = None
        self._has_reader = False
        self._has_put_off = False  # requests that wait in the outbox until all are woken whose answers have come
        self._inlet = Inlet(sock)
        self._room = threading.Condition(self._lock)
        self._stalled: dict[Pending, float] = {}  # streams that are full, and when something was taken last
        self._abandoned: deque[Pending] = deque()
        self._closed = threading.Event()
        self.is_closed: bool = False

    # Starting and ending.

    def close(self) -> None:
        """End the connection; every call in flight fails."""
        with self._lock:
            self._end()
        self._closed.set()

    def hang_up(self) -> None:
        """End the connection for want of an owner; takes no lock, so that any collection of garbage may call it."""
        end_connection(self._sock, self._pid)
        self._inlet.close()

    def watch(self, on_close: Callable[[], None]) -> None:
        """Call `on_close()` in a thread of its own once the connection has ended and every call has failed."""
        fd = os.dup(self._sock.fileno())
        threading.Thread(target=self._watch, args=(fd, on_close), name="ttrpc on-close", daemon=True).start()

    def _watch(self, fd: int, on_close: Callable[[], None]) -> None:
        try:
            poller = select.poll()
            poller.register(fd, _HANG_UP)
            poller.poll()
        finally:
            os.close(fd)
        while not self._closed.is_set():
            with self._lock:
                is_reader = not self._has_reader
                while is_reader and not self.is_closed:  # no wait is in this: the other side's end is behind the data
                    self._take(self._inlet.receive_now() or b"")
            self._closed.wait(LOOK_S)
        on_close()

    def _end(self) -> None:
        """Close the socket and fail what is in flight; the lock is held."""
        if self.is_closed:
            return
        self.is_closed = True
        end_connection(self._sock, self._pid)
        for pending in list(self._pending.values()):
            pending.fail(ConnectionClosedError(f"{pending.name}: ttrpc: closed"))
            self._followers.let_go(pending)
        self._pending.clear()
        self._room.notify_all()
        self._closed.set()
        self._inlet.close()

    # Calls.

    def start(
        self, pending: Pending, head: bytes, payload: bytes, kind: Kind, timeout_ns: int, metadata: Metadata
    ) -> None:
        """Send a request; of a unary call, whose caller waits for its answer next, maybe a little later.

        Raises:
            RpcError: RESOURCE_EXHAUSTED, it is over 4 MiB; DEADLINE_EXCEEDED while others sent.
            ConnectionClosedError: The connection has ended.
            LocalProtocolError: The connection's ids are used up.
        """
        with self._lock:
            if self.is_closed:
                raise ConnectionClosedError(f"{pending.name}: ttrpc: closed")
            if pending.error is not None:  # cancelled before it began
                raise pending.error
            if self._abandoned:
                self._forget_abandoned()
            try:
                stream_id, frame = self._connection.send_request(head, payload, kind, timeout_ns, metadata)
            except RpcError as error:
                raise RpcError(error.code, error.message, pending.name) from None
            pending.stream_id = stream_id
            self._pending[stream_id] = pending
            if self._followers.is_relaying and pending.inbox is None and len(frame) < _SMALL_SIZE:
                self._has_put_off = True
                self._outbox.queue(frame, pending)
                return
            has_turn = self._outbox.put(frame, pending)
        try:
            if has_turn:
                self._outbox.write(frame, pending)
            elif len(frame) < _SMALL_SIZE:
                self._outbox.flush_soon(pending)
            else:  # or callers with large ones could queue without end
                self._outbox.flush(pending)
        except AnsweredError:
            return
        except BaseException as error:
            with self._lock:
                self._drop(pending)
                if pending.ended() is None:  # so that a frame that has not begun never does
                    pending.fail(error if isinstance(error, Exception) else ConnectionClosedError(pending.name))
            raise

    def result(self, pending: Pending) -> bytes:
        """Wait for the answer of a unary call."""
        self._wait(pending)
        if pending.error is not None:
            raise pending.error
        return pending.answer or b""

    def receive(self, pending: Pending) -> bytes | None:
        """Wait for a stream's next message; None at its end."""
        inbox = pending.inbox
        assert inbox is not None  # noqa: S101  # a stream's
        while True:
            self._wait(pending)
            with self._lock:
                if not inbox.is_ready:  # another thread that receives was faster
                    continue
                payload = inbox.take()
                self._taken(pending, inbox)
            return payload

    def _taken(self, pending: Pending, inbox: Inbox) -> None:
        """Note that the owner of a stream goes on; the lock is held."""
        if pending in self._stalled:
            if inbox.is_full:
                self._stalled[pending] = time.monotonic()
            else:
                del self._stalled[pending]
                self._room.notify_all()

    def send(self, pending: Pending, payload: bytes) -> None:
        """Send one message of a stream."""
        self._send(pending, lambda: self._connection.send_message(pending.stream_id, payload))

    def send_end(self, pending: Pending) -> None:
        """End this side's stream."""
        try:
            self._send(pending, lambda: self._connection.send_end(pending.stream_id))
        except LocalProtocolError:
            if pending.inbox is None or not pending.inbox.is_ended:  # else the server was faster, and all is well
                raise
        pending.has_sent_end = True

    def _send(self, pending: Pending, encode: Callable[[], bytes]) -> None:
        with self._lock:
            if (ended := pending.ended()) is not None and pending.inbox is not None and pending.inbox.error is not None:
                raise ended.with_traceback(None)
            try:
                frame = encode()
            except (LocalProtocolError, RpcError) as error:
                raise named(error, pending.name) from None
            if not frame:
                return
            has_turn = self._outbox.put(frame, pending)
        if has_turn:
            self._outbox.write(frame, pending)
        else:
            self._outbox.flush(pending)

    def cancel(self, pending: Pending) -> None:
        """Give a call up; whoever waits for it raises CANCELED.  From any thread."""
        with self._lock:
            if not pending.stream_id:  # not sent yet
                pending.fail(RpcError(Code.CANCELED, "context canceled", pending.name))
            if self._pending.get(pending.stream_id) is not pending:
                return
            del self._pending[pending.stream_id]
            self._connection.forget(pending.stream_id)
            if pending.inbox is not None:
                pending.inbox.drop()
            pending.fail(RpcError(Code.CANCELED, "context canceled", pending.name))
            self._free(pending)
            self._followers.let_go(pending)
            self._room.notify_all()
            if self._leader is pending:
                self._inlet.interrupt()

    def abandon(self, pending: Pending) -> None:
        """Give a call up for want of an owner; takes no lock, so that any collection of garbage may call it."""
        self._abandoned.append(pending)

    def _forget_abandoned(self) -> None:
        while self._abandoned:
            self._drop(self._abandoned.popleft())

    def _drop(self, pending: Pending) -> None:
        """Take a call off the tables; the lock is held."""
        if self._pending.get(pending.stream_id) is pending:
            del self._pending[pending.stream_id]
            self._connection.forget(pending.stream_id)
        self._free(pending)

    def _free(self, pending: Pending) -> None:
        if pending in self._stalled:
            del self._stalled[pending]
            self._room.notify_all()

    # Waiting.

    def _wait(self, pending: Pending) -> None:
        """Return once `pending` is ready.

        Raises:
            RpcError: DEADLINE_EXCEEDED.
        """
        lock = self._lock
        lock.acquire()
        try:
            while not pending.is_ready:
                remaining = None if pending.deadline is None else pending.remaining()
                if remaining is not None and remaining <= 0:
                    self._drop(pending)
                    error = pending.expired()
                    pending.fail(error)
                    raise error
                if self._has_put_off and not self._followers.is_relaying:
                    self._send_put_off(pending)
                elif self._has_reader:
                    self._follow(pending, remaining)
                else:
                    self._lead(pending)
        except BaseException:  # a signal's handler may raise in any wait
            if pending.inbox is None:
                self._drop(pending)
            raise
        finally:
            try:
                if (self._followers or self._has_put_off) and not self._followers.is_relaying:
                    self._promote()
                    if self._has_put_off:
                        self._send_put_off(pending)
            finally:
                lock.release()

    def _promote(self) -> None:
        """Let the one that has waited longest read, if nobody does; the lock is held."""
        if self._followers and not self._has_reader:
            self._followers.promote()

    def _send_put_off(self, pending: Pending) -> None:
        """Send the requests that were to leave together; the lock is held, but not meanwhile."""
        self._has_put_off = False
        self._lock.release()
        try:
            self._outbox.flush_soon(pending)
        except TtrpcError:
            pass  # this call has ended; if the connection has not, another thread goes on
        finally:
            self._lock.acquire()

    def _follow(self, pending: Pending, remaining: float | None) -> None:
        """Wait until another thread has an answer for this one, or leaves the reading to it; the lock is held."""
        gate = self._followers.enter(pending)
        is_open = False
        self._lock.release()
        try:
            is_open = gate.acquire(timeout=-1 if remaining is None else remaining)
        finally:
            self._lock.acquire()
            self._followers.leave(gate, pending, is_open=is_open)

    def _lead(self, pending: Pending) -> None:
        """Read once, for everybody; the lock is held."""
        if self._stalled and not self._make_room(pending):
            return
        self._has_reader = True
        self._leader = pending
        if pending.is_cancellable:
            self._inlet.allow_interruption()
        is_alone = len(self._pending) == 1
        self._lock.release()
        data: bytes | None = None
        try:
            data = self._inlet.receive(pending, is_alone=is_alone)
        finally:
            self._lock.acquire()
            self._has_reader = False
            self._leader = None
            if data is not None:
                self._take(data)

    def _make_room(self, pending: Pending) -> bool:
        """Wait until no stream is full, or give those up that stay so; the lock is held.

        Returns False when `pending` has to be looked at again first.
        """
        began = time.monotonic()
        self._forget_abandoned()
        while self._stalled and not self.is_closed:
            left = self._give_up_stalled(began)
            if left is None:
                break
            remaining = pending.remaining()
            if pending.is_ready or remaining == 0 or self._has_reader:
                return False
            self._room.wait(left if remaining is None else min(left, remaining))
        return not pending.is_ready and not self._has_reader

    def _give_up_stalled(self, began: float) -> float | None:
        """Fail the streams of which nothing has been taken for so long since `began`; the lock is held.

        Returns after how many seconds the next one has had its time, or None when no stream is full any more.
        """
        now = time.monotonic()
        for stalled, since in list(self._stalled.items()):
            if now - max(since, began) >= _STALL_S:
                self._drop(stalled)
                stalled.fail(RpcError(Code.RESOURCE_EXHAUSTED, "ttrpc: stream buffer full", stalled.name))
                self._followers.let_go(stalled)
        return min((max(since, began) + _STALL_S - now for since in self._stalled.values()), default=None)

    # Reading.

    def _take(self, data: bytes) -> None:
        """Hand what was read to its callers; the lock is held."""
        if not data:
            self._end()
            return
        if self._abandoned:
            self._forget_abandoned()
        table = self._pending
        for event in self._connection.receive_data(data):
            pending = table.get(event.stream_id)
            if pending is None:
                continue
            if type(event) is ResponseReceived and pending.inbox is None and not event.code:
                del table[event.stream_id]
                pending.answer = event.payload
                if pending.gates:
                    self._followers.answer(pending)
            else:
                self._deliver(pending, event)

    def _deliver(self, pending: Pending, event: ClientEvent) -> None:
        inbox = pending.inbox
        if isinstance(event, MessageReceived):
            if inbox is not None:
                inbox.put(event.payload)
                if inbox.is_full:
                    self._stalled.setdefault(pending, time.monotonic())
        else:
            del self._pending[event.stream_id]
            pending.finish(event)
            if self._stalled:  # all of it has come, so it need not keep the others waiting
                self._free(pending)
        if pending.gates:
            self._followers.answer(pending)

    # For the outbox, whose send lock is held.

    def expire(self, pending: Pending) -> Exception:
        """End a call whose deadline has passed, and return what it ended with."""
        with self._lock:
            if pending.ended() is None:
                self._drop(pending)
                pending.fail(pending.expired())
        return pending.ended() or pending.expired()

    def lose(self) -> None:
        """The server is gone: hand out what it had sent, and close."""
        with self._lock:
            while not self._has_reader and not self.is_closed:
                self._take(self._inlet.receive_now() or b"")
            if not self.is_closed:
                try:
                    self._sock.shutdown(socket.SHUT_RDWR)  # who reads will come to the end
                except OSError:
                    pass  # has come to it

    def wait_to_write(self, pending: Pending) -> Exception | None:
        """Wait until the socket takes more, and read meanwhile if nobody else does; or return what the call ended with.

        A frame of a call that has ended by then must not begin: it would end the process of many a Go server.
        """
        began = time.monotonic()
        while True:
            if (ended := pending.ended()) is not None:
                return ended
            with self._lock:
                if self._stalled:
                    self._give_up_stalled(began)
                is_reader = not (self._has_reader or self._stalled or self.is_closed)
                if is_reader:
                    self._has_reader = True
            remaining = pending.remaining()
            wait_s = LOOK_S if remaining is None else min(LOOK_S, remaining)  # cancelling wakes nobody here
            data: bytes | None = None
            is_writable = True  # so says a closed socket too: the write will tell
            try:
                poller = select.poll()
                poller.register(self._sock, select.POLLOUT | (select.POLLIN if is_reader else 0))
                ready = dict(poller.poll(wait_s * 1000))
                events = ready.popitem()[1] if ready else 0
                is_writable = bool(events & ~select.POLLIN)
                if is_reader and events & ~select.POLLOUT:
                    data = self._inlet.receive_now()
            except (OSError, ValueError):
                pass
            finally:
                if is_reader:
                    with self._lock:
                        self._has_reader = False
                        if data is not None:
                            self._take(data)
                        self._promote()
            if is_writable and pending.ended() is None:
                return None
            if remaining is not None and remaining <= 0:
                return self.expire(pending)
