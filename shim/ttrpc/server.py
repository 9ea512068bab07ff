"""The blocking-style server: one event loop for all connections, a growing pool of threads for handlers that block.

Rule: the loop never waits for a handler, a handler never for a slow reader, and one bad call never ends a connection.
A peer that does not read its answers is not read from any more, so its memory stays bounded (Go 1.2 grows without end).
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Collection
from typing import Final

from shim.ttrpc._connection import ServerConnection
from shim.ttrpc._events import RequestReceived
from shim.ttrpc.loop import FAILED, READABLE, WRITABLE, Loop, Timer
from shim.ttrpc.pool import WorkerPool
from shim.ttrpc.service import CallContext, Credentials, Deferred, Method, Service, ServiceTable
from shim.ttrpc.status import Code, RpcError, status_of

_RECEIVE_SIZE: Final = 256 << 10
# Above the first mark of unsent bytes a connection is not read any more, below the second it is again.
_HIGH_WATER: Final = 8 << 20
_LOW_WATER: Final = 1 << 20


def peer_credentials(sock: socket.socket) -> Credentials | None:
    """Return who is on the other end of a unix socket, or None where the system cannot tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None or sock.family != socket.AF_UNIX:
        return None
    return Credentials(*struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, option, 12)))


def same_user(credentials: Credentials | None) -> bool:
    """Admit only this process's effective user and group, as containerd's servers do."""
    return credentials is None or (credentials.uid == os.geteuid() and credentials.gid == os.getegid())


class Server:
    """Serves `services` on sockets that `add_listener` and `add_connection` hand to it.

    `authorize` may refuse a peer; `on_fault` gets exceptions that no handler should raise (the peer gets UNKNOWN).
    """

    def __init__(
        self,
        loop: Loop,
        pool: WorkerPool,
        services: Collection[Service],
        *,
        authorize: Callable[[Credentials | None], bool] = same_user,
        on_fault: Callable[[str, BaseException], None] = lambda _method, _error: None,
        on_refused: Callable[[Credentials | None], None] = lambda _credentials: None,
    ) -> None:
        self.loop = loop
        self.pool = pool
        self.table = ServiceTable(services)
        self.on_fault = on_fault
        self._authorize = authorize
        self._on_refused = on_refused
        self._listeners: dict[int, socket.socket] = {}
        self._peers: set[_Peer] = set()
        self.is_draining = False
        self._on_drained: Callable[[], None] | None = None

    @property
    def connections(self) -> int:
        """How many peers are connected."""
        return len(self._peers)

    def add_listener(self, sock: socket.socket) -> None:
        """Accept connections on a listening socket; the server owns it from here."""
        sock.setblocking(False)
        self._listeners[sock.fileno()] = sock
        self.loop.register(sock.fileno(), READABLE, lambda _events: self._accept(sock))

    def add_connection(self, sock: socket.socket) -> None:
        """Serve one connected socket; the server owns it from here."""
        sock.setblocking(False)
        self._peers.add(_Peer(self, sock))

    def close_listeners(self) -> None:
        """Stop accepting; connections live on."""
        for fd, sock in self._listeners.items():
            self.loop.unregister(fd)
            sock.close()
        self._listeners.clear()

    def shutdown(self, grace_s: float, on_drained: Callable[[], None]) -> None:
        """Stop accepting, refuse new calls, and call `on_drained()` once those in flight have been answered.

        After `grace_s` seconds the remaining ones are given up; then every connection is closed.
        """
        self.close_listeners()
        self.is_draining = True
        self._on_drained = on_drained
        self.loop.call_later(grace_s, self._finish_shutdown)
        self.check_drained()

    def check_drained(self) -> None:
        """End a shutdown that only waited for the last answer; runs on the loop."""
        if self.is_draining and all(peer.is_idle for peer in self._peers):
            self._finish_shutdown()

    def _finish_shutdown(self) -> None:
        done, self._on_drained = self._on_drained, None
        if done is None:
            return
        for peer in list(self._peers):
            peer.close()
        done()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors: the backlog keeps the peers until some are free
                self.on_fault("accept", error)
                self.loop.modify(listener.fileno(), 0)
                self.loop.call_later(0.5, lambda: self._resume_accept(listener))
                return
            credentials = peer_credentials(sock)
            if self._authorize(credentials):
                self.add_connection(sock)
            else:
                self._on_refused(credentials)
                sock.close()

    def _resume_accept(self, listener: socket.socket) -> None:
        if listener.fileno() in self._listeners:
            self.loop.modify(listener.fileno(), READABLE)

    def forget(self, peer: _Peer) -> None:
        """Drop a closed connection from the books."""
        self._peers.discard(peer)


class _Peer:
    """One connection.  Reading happens on the loop; answers may come from any thread, under the lock."""

    __slots__ = (
        "_calls",
        "_connection",
        "_credentials",
        "_fd",
        "_is_closed",
        "_is_ended",
        "_is_paused",
        "_is_watching_write",
        "_lock",
        "_out",
        "_server",
        "_sock",
    )

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self._fd = sock.fileno()
        self._credentials = peer_credentials(sock)
        self._connection = ServerConnection()
        self._lock = threading.Lock()
        self._out = bytearray()
        self._calls: dict[int, _Call] = {}
        self._is_closed = False
        self._is_ended = False
        self._is_paused = False
        self._is_watching_write = False
        server.loop.register(self._fd, READABLE, self._ready)

    @property
    def is_idle(self) -> bool:
        """True when every answer has been written; calls whose answer was put off (Wait) may never have one."""
        return not self._out and all(call.deferred is not None for call in list(self._calls.values()))

    def close(self) -> None:
        """Close the connection and tell the calls in flight that nobody waits; runs on the loop."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._server.loop.unregister(self._fd)
            self._sock.close()
            calls, self._calls = self._calls, {}
        for call in calls.values():
            call.abandon()
        self._server.forget(self)
        self._server.check_drained()

    def _ready(self, events: int) -> None:
        if events & WRITABLE:
            with self._lock:
                self._flush()
            self._server.check_drained()
            self._close_if_finished()
        if events & READABLE or events & FAILED:
            self._receive(is_gone=bool(events & FAILED))

    def _receive(self, *, is_gone: bool) -> None:
        try:
            data = self._sock.recv(_RECEIVE_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data, is_gone = b"", True
        if not data:
            if is_gone:
                self.close()
            else:
                self._end_input()
            return
        with self._lock:
            requests = self._connection.receive_data(data)
            self._write(self._connection.data_to_send())
        for request in requests:
            self._dispatch(request)

    def _end_input(self) -> None:
        """The peer has closed its sending half only: it still reads the answers to what it asked."""
        with self._lock:
            self._is_ended = True
            self._set_watch()
        self._close_if_finished()

    def _close_if_finished(self) -> None:
        if self._is_ended and not self._calls and not self._out:
            self.close()

    def _dispatch(self, request: RequestReceived) -> None:
        server = self._server
        name = f"{request.service}/{request.method}"
        if server.is_draining:
            self.answer_error(request.stream_id, RpcError(Code.UNAVAILABLE, "server is shutting down"))
            return
        try:
            method = server.table.find(request.service, request.method)
        except RpcError as error:
            self.answer_error(request.stream_id, error)
            return
        context = CallContext(name, timeout_ns=request.timeout_ns, metadata=request.metadata, peer=self._credentials)
        call = _Call(self, request, method, context)
        with self._lock:
            self._calls[request.stream_id] = call
        if context.deadline is not None:
            call.timer = server.loop.call_later(max(0.0, request.timeout_ns / 1e9), call.expire)
        if method.is_inline:
            call.run()
        else:
            server.pool.submit(call.run)

    def answer(self, stream_id: int, payload: bytes) -> None:
        """Send a success."""
        with self._lock:
            self._calls.pop(stream_id, None)
            self._write(self._connection.send_response(stream_id, payload))
        self._answered()

    def answer_error(self, stream_id: int, error: BaseException) -> None:
        """Send an exception's status."""
        with self._lock:
            self._calls.pop(stream_id, None)
            self._write(self._connection.send_error(stream_id, *status_of(error)))
        self._answered()

    def fault(self, method: str, error: BaseException) -> None:
        """Report an exception that is no answer but a bug."""
        self._server.on_fault(method, error)

    def _answered(self) -> None:
        if self._server.is_draining:
            self._server.loop.call_soon(self._server.check_drained)
        if self._is_ended:
            self._server.loop.call_soon(self._close_if_finished)

    def _write(self, data: bytes) -> None:
        """Send or queue bytes; the lock is held."""
        if not data or self._is_closed:
            return
        if self._out:
            self._out += data
            self._update_watch()
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the loop sees the end of the connection when it reads
        if sent < len(data):
            self._out += data[sent:]
            self._update_watch()

    def _flush(self) -> None:
        """Send what is queued; the lock is held, on the loop."""
        if self._is_closed:
            return
        try:
            while self._out:
                with memoryview(self._out) as view:
                    sent = self._sock.send(view[: 1 << 20])
                del self._out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._out.clear()
        self._set_watch()

    def _update_watch(self) -> None:
        """Ask the loop to watch for writing; the lock is held, any thread."""
        needs_pause = len(self._out) > _HIGH_WATER and not self._is_paused
        if not self._is_watching_write or needs_pause:
            self._is_watching_write = True
            self._server.loop.call_soon(self._set_watch_soon)

    def _set_watch_soon(self) -> None:
        with self._lock:
            self._set_watch()

    def _set_watch(self) -> None:
        """Bring what the loop watches in line with the queue; the lock is held, on the loop."""
        if self._is_closed:
            return
        size = len(self._out)
        self._is_paused = size > (_LOW_WATER if self._is_paused else _HIGH_WATER)
        self._is_watching_write = bool(size)
        events = (0 if self._is_paused or self._is_ended else READABLE) | (WRITABLE if size else 0)
        self._server.loop.modify(self._fd, events)


class _Call:
    """One request on its way through a handler."""

    __slots__ = ("_context", "_method", "_peer", "_request", "deferred", "timer")

    def __init__(self, peer: _Peer, request: RequestReceived, method: Method, context: CallContext) -> None:
        self._peer = peer
        self._request = request
        self._method = method
        self._context = context
        self.timer: Timer | None = None
        self.deferred: Deferred | None = None

    def run(self) -> None:
        """Run the handler and answer with what it returns or raises."""
        try:
            message = self._method.decode(self._request.payload, self._request.service)
            result = self._method.handler(self._context, message)
            if isinstance(result, Deferred):
                self.deferred = result
                result.on_done(self._answer_deferred)
                return
            payload = self._method.encode(result)
        except BaseException as error:  # whatever a handler raises is contained to its call
            self._fail(error)
            return
        self._finish(payload)

    def _answer_deferred(self, deferred: Deferred) -> None:
        try:
            payload = self._method.encode(deferred.result())
        except BaseException as error:  # as in run
            self._fail(error)
            return
        self._finish(payload)

    def _finish(self, payload: bytes) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self._peer.answer(self._request.stream_id, payload)

    def _fail(self, error: BaseException) -> None:
        if self.timer is not None:
            self.timer.cancel()
        is_answer = isinstance(error, OSError) or isinstance(getattr(error, "code", None), int)
        if not is_answer or not isinstance(error, Exception):
            self._peer.fault(self._context.method, error)
        self._peer.answer_error(self._request.stream_id, error)

    def expire(self) -> None:
        """Answer that the deadline has passed; a handler that runs goes on and its late answer is dropped."""
        self._give_up()
        error = RpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
        self._peer.answer_error(self._request.stream_id, error)

    def abandon(self) -> None:
        """The peer is gone."""
        if self.timer is not None:
            self.timer.cancel()
        self._give_up()

    def _give_up(self) -> None:
        self._context.cancel()
        if self.deferred is not None:
            self.deferred.abandon()
