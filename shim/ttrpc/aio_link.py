"""The asyncio client's end of a connection: who waits, what is read, what is written.

Rule: one reader for everybody, which never waits for a task; a task that sends waits while the server does not read.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from shim.ttrpc._client_connection import ClientConnection
from shim.ttrpc._events import ClientEvent, EndReceived, FaultReceived, MessageReceived, ResponseReceived
from shim.ttrpc._frame import DATA, HEADER, LARGE_READ_SIZE, READ_SIZE
from shim.ttrpc._inbox import Inbox
from shim.ttrpc.address import end_connection, has_hung_up
from shim.ttrpc.aio_waiting import Queue, Turn, wait_in, wake
from shim.ttrpc.pending import named
from shim.ttrpc.rpc import Metadata, Rpc, metadata_pairs, timeout_ns
from shim.ttrpc.status import Code, ConnectionClosedError, LocalProtocolError, RemoteProtocolError, RpcError
from shim.ttrpc.unsent import Unsent

_HIGH_WATER: Final = 1 << 20
_STALL_S: Final = 1.0  # for so long may a stream whose owner takes nothing keep the others waiting


class Pending:
    """A call that has not ended."""

    __slots__ = ("future", "inbox", "name", "stream_id", "timer", "waiters")

    def __init__(self, name: str) -> None:
        self.name: str = name
        self.stream_id: int = 0
        self.future: asyncio.Future[bytes] | None = None  # of a unary call
        self.inbox: Inbox | None = None  # of a stream
        self.waiters: Queue = []
        self.timer: asyncio.TimerHandle | None = None

    def fail(self, error: Exception) -> None:
        """End with an error, unless it has ended."""
        if self.timer is not None:
            self.timer.cancel()
        if self.inbox is not None:
            self.inbox.end(error)
        elif self.future is not None and not self.future.done():
            self.future.set_exception(error)
        wake(self.waiters)


class AioLink:
    """One connection, shared by the tasks of one loop."""

    def __init__(self, sock: socket.socket, on_close: Callable[[], None] | None) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._pid = os.getpid()
        self._turn = Turn()
        self._connection = ClientConnection()
        self._pending: dict[int, Pending] = {}
        self._out = Unsent()
        self._is_corked = False
        self._is_writing = False
        self._read_size = READ_SIZE
        self._room: Queue = []
        self._stalled: dict[Pending, float] = {}  # streams that are full, and when something was taken last
        self._stall_timer: asyncio.TimerHandle | None = None
        self._abandoned: deque[Pending] = deque()
        self._on_close = on_close
        self.is_closed: bool = False
        self.loop.add_reader(self._fd, self._ready)

    def close(self) -> None:
        """Close the connection; calls in flight raise ConnectionClosedError."""
        if self.is_closed:
            return
        self.is_closed = True
        is_running = not self.loop.is_closed()
        if is_running:
            self.loop.remove_reader(self._fd)
            self.loop.remove_writer(self._fd)
        end_connection(self._sock, self._pid)
        self._out.clear()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        pending, self._pending = list(self._pending.values()), {}
        if not is_running:  # nobody can wait for anything
            return
        for call in pending:
            call.fail(ConnectionClosedError(f"{call.name}: ttrpc: closed"))
        wake(self._room)
        if self._on_close is not None:
            self.loop.call_soon(self._on_close)

    @property
    def is_congested(self) -> bool:
        """True while one that wants to send should `wait_for_room`."""
        return self._out.size > _HIGH_WATER

    def start(
        self, pending: Pending, rpc: Rpc[Any, Any], payload: bytes, timeout_s: float | None, metadata: Metadata
    ) -> None:
        """Send a request; its deadline counts from here."""
        self._check_open(pending)
        if self._abandoned:
            self._forget_abandoned()
        pairs = metadata_pairs(metadata) if metadata else ()
        try:
            stream_id, frame = self._connection.send_request(rpc.head, payload, rpc.kind, timeout_ns(timeout_s), pairs)
        except RpcError as error:
            raise named(error, pending.name) from None
        pending.stream_id = stream_id
        self._pending[stream_id] = pending
        if timeout_s is not None:
            pending.timer = self.loop.call_later(timeout_s, self._expire, pending)
        self._write(frame)

    def _check_open(self, pending: Pending) -> None:
        if self.is_closed:
            raise ConnectionClosedError(f"{pending.name}: ttrpc: closed")

    def _expire(self, pending: Pending) -> None:
        self.forget(pending)
        pending.fail(RpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded", pending.name))

    async def wait_for_room(self, pending: Pending, timeout_s: float | None) -> float | None:
        """Wait while too much is unsent; return what is left of the time.

        Raises:
            RpcError: DEADLINE_EXCEEDED.
        """
        until = None if timeout_s is None else self.loop.time() + timeout_s
        while self._out.size > _HIGH_WATER and not self.is_closed:
            try:
                await asyncio.wait_for(wait_in(self._room), None if until is None else until - self.loop.time())
            except TimeoutError:
                raise RpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded", pending.name) from None
        return None if until is None else until - self.loop.time()

    async def send(self, pending: Pending, payload: bytes | None) -> None:
        """Send one message of a stream, or its end."""
        inbox = pending.inbox
        while self._out.size > _HIGH_WATER and not self.is_closed and not (inbox is not None and inbox.is_ended):
            await wait_in(self._room, pending.waiters)
        if inbox is not None and inbox.is_ended and inbox.error is not None:
            raise inbox.error.with_traceback(None)
        self._check_open(pending)
        connection, stream_id = self._connection, pending.stream_id
        try:
            frame = connection.send_end(stream_id) if payload is None else connection.send_message(stream_id, payload)
        except (LocalProtocolError, RpcError) as error:
            raise named(error, pending.name) from None
        if frame:
            self._write(frame)
            await self._turn.sent(len(frame))

    async def receive(self, pending: Pending) -> bytes | None:
        """Wait for a stream's next message; None at its end."""
        inbox = pending.inbox
        assert inbox is not None  # noqa: S101  # a stream's
        while not inbox.is_ready:
            await wait_in(pending.waiters)
        payload = inbox.take()
        if self._stalled and pending in self._stalled:
            if inbox.is_full:
                self._stalled[pending] = self.loop.time()
            else:
                self._free(pending)
        return payload

    def cancel(self, pending: Pending) -> None:
        """Give a stream up; whoever waits for it raises CANCELED."""
        if self._pending.get(pending.stream_id) is pending:
            self.forget(pending)
            if pending.inbox is not None:
                pending.inbox.drop()
            pending.fail(RpcError(Code.CANCELED, "context canceled", pending.name))

    def abandon(self, pending: Pending) -> None:
        """Give a call up for want of an owner; any collection of garbage may call it."""
        self._abandoned.append(pending)

    def _forget_abandoned(self) -> None:
        while self._abandoned:
            self.cancel(self._abandoned.popleft())

    def forget(self, pending: Pending) -> None:
        """Take a call off the tables."""
        if self._pending.get(pending.stream_id) is pending:
            del self._pending[pending.stream_id]
            self._connection.forget(pending.stream_id)
        if pending.timer is not None:
            pending.timer.cancel()
        if self._out and pending.inbox is not None:
            self._unqueue(pending.stream_id)
        self._free(pending)

    def _free(self, pending: Pending) -> None:
        """Read on if this stream was the last that was full."""
        if pending in self._stalled:
            del self._stalled[pending]
            if not self._stalled and not self.is_closed:
                self.loop.add_reader(self._fd, self._ready)

    def _stall(self, pending: Pending) -> None:
        """Read no more until the stream's owner takes something, and not for long."""
        self._stalled[pending] = self.loop.time()
        self.loop.remove_reader(self._fd)
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(_STALL_S, self._give_up_stalled)

    def _give_up_stalled(self) -> None:
        """Fail the streams that nobody takes from, if others wait for them: for an answer, or to send."""
        self._stall_timer = None
        if self._abandoned:
            self._forget_abandoned()
        if self._stalled and len(self._pending) == len(self._stalled) and not self._room:
            if has_hung_up(self._sock, or_half=True):  # which nobody sees who does not read
                self._lose()
            else:
                self._stall_timer = self.loop.call_later(_STALL_S, self._give_up_stalled)
            return
        now = self.loop.time()
        for pending, since in list(self._stalled.items()):
            if now - since >= _STALL_S:
                self.forget(pending)
                pending.fail(RpcError(Code.RESOURCE_EXHAUSTED, "ttrpc: stream buffer full", pending.name))
        if self._stalled:
            soonest = min(self._stalled.values()) + _STALL_S
            self._stall_timer = self.loop.call_at(soonest, self._give_up_stalled)

    # Reading.

    def _lose(self) -> None:
        """The server is gone: take what it had sent, and close."""
        while not self.is_closed and self._ready():
            pass
        self.close()

    def _ready(self) -> bool:
        """Read once, for everybody; False when there was nothing."""
        try:
            data = self._sock.recv(self._read_size)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        self._read_size = READ_SIZE if len(data) < READ_SIZE else LARGE_READ_SIZE
        if self._abandoned:
            self._forget_abandoned()
        pending_calls = self._pending
        for event in self._connection.receive_data(data):
            pending = pending_calls.get(event.stream_id)
            if pending is not None:
                if type(event) is ResponseReceived and event.code == 0 and pending.future is not None:
                    del pending_calls[event.stream_id]
                    if pending.timer is not None:
                        pending.timer.cancel()
                    if not pending.future.done():
                        pending.future.set_result(event.payload)
                else:
                    self._deliver(pending, event)
        return True

    def _deliver(self, pending: Pending, event: ClientEvent) -> None:
        inbox = pending.inbox
        if isinstance(event, MessageReceived):
            if inbox is not None:
                inbox.put(event.payload)
                if inbox.is_full and pending not in self._stalled:
                    self._stall(pending)
            wake(pending.waiters)
            return
        del self._pending[event.stream_id]
        if self._out and inbox is not None:
            self._unqueue(event.stream_id)
        if self._stalled:  # all of it has come, so it need not keep the others waiting
            self._free(pending)
        if isinstance(event, ResponseReceived) and event.code != Code.OK:
            pending.fail(RpcError(event.code, event.message, pending.name, event.details))
            return
        if isinstance(event, FaultReceived):
            pending.fail(RemoteProtocolError(event.message, pending.name))
            return
        if pending.timer is not None:
            pending.timer.cancel()
        if inbox is not None:
            if not isinstance(event, EndReceived):
                inbox.put(event.payload)
            inbox.end()
        wake(pending.waiters)

    # Writing.

    def _write(self, frame: bytes) -> None:
        """Send or queue a frame; with several calls in flight what comes of one turn of the loop leaves together."""
        if self._is_corked or self._is_writing:
            self._out.add(frame)
            return
        if len(self._pending) > 1:
            self._is_corked = True
            self._out.add(frame)
            self.loop.call_soon(self._uncork)
            return
        try:
            sent = self._sock.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.loop.call_soon(self._lose)
            return
        if sent < len(frame):
            self._out.add(frame, sent)
            self._is_writing = True
            self.loop.add_writer(self._fd, self._flush)

    def _unqueue(self, stream_id: int) -> None:
        """Drop the messages of a stream that the server has ended: data for such a one ends many a Go server."""
        if self._out.drop(lambda frame: HEADER.unpack_from(frame)[1:3] == (stream_id, DATA)):
            wake(self._room)

    def _uncork(self) -> None:
        self._is_corked = False
        if not self.is_closed and not self._is_writing:
            self._flush()

    def _flush(self) -> None:
        try:
            self._out.send(self._sock)
        except OSError:
            self._lose()
            return
        if bool(self._out) != self._is_writing:
            self._is_writing = bool(self._out)
            if self._is_writing:
                self.loop.add_writer(self._fd, self._flush)
            else:
                self.loop.remove_writer(self._fd)
        if self._room and self._out.size <= _HIGH_WATER:
            wake(self._room)
