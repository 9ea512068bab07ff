"""The blocking client: many threads may call on one connection, and no thread is kept for reading.

Rule: a caller that waits reads for everybody (leader and followers), so that a lone caller pays for no hand-over; one
that waits to send reads too, or both ends could wait for each other.  A deadline goes with the request and is kept here
as well; the server is never told of a call given up (there is no way).
"""

from __future__ import annotations

import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Generic, Self

from shim.ttrpc._inbox import Inbox
from shim.ttrpc._streams import Kind
from shim.ttrpc.address import dial
from shim.ttrpc.link import Link
from shim.ttrpc.pending import Pending
from shim.ttrpc.rpc import Metadata, OutgoingCall, RequestT, ResponseT, Rpc, metadata_pairs, timeout_ns
from shim.ttrpc.status import Code, LocalProtocolError, RpcError

Invoke = Callable[[OutgoingCall], Any]
Interceptor = Callable[[OutgoingCall, Invoke], Any]
"""Stands around every call and every stream that is opened: `def log(call, invoke): return invoke(call)`."""

_UNARY: Final = Kind.UNARY  # Python 3.11 runs a property for each use of an enum's member


def connect(
    address: str | int | socket.socket,
    *,
    timeout_s: float | None = None,
    interceptors: Sequence[Interceptor] = (),
    on_close: Callable[[], None] | None = None,
) -> Client:
    """Connect to a ttrpc server.

    `address` is `unix:///path`, a plain path, an abstract name (`@name`, or without a slash), `vsock://CID:PORT`, the
    number of an inherited descriptor, or a connected socket; the client owns the last two from here.

    Raises:
        ValueError: The address is no ttrpc address.
        OSError: Nobody answers there; the message names the address.
    """
    return Client(dial(address, timeout_s), interceptors=interceptors, on_close=on_close)


class Cancellation:
    """Ends calls from another thread: hand it to them, and `cancel()` makes them raise CANCELED; it stays cancelled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: dict[object, Callable[[], None]] = {}
        self.is_cancelled: bool = False

    def cancel(self) -> None:
        """End the calls that hold this now, and those that will; repeating it is fine."""
        with self._lock:
            self.is_cancelled = True
            callbacks, self._callbacks = self._callbacks, {}
        for callback in callbacks.values():
            callback()

    def add(self, key: object, callback: Callable[[], None]) -> None:
        """Call `callback()` when cancelled, at once if it is, unless `remove(key)` comes first."""
        with self._lock:
            if not self.is_cancelled:
                self._callbacks[key] = callback
                return
        callback()

    def forget(self, key: object) -> None:
        """Like `remove`, but without the lock: one step, which any collection of garbage may take."""
        self._callbacks.pop(key, None)

    def remove(self, key: object) -> None:
        """Forget the callback of `key`."""
        with self._lock:
            self._callbacks.pop(key, None)


class Client:
    """A connection to a ttrpc server; also a context manager that closes it.

    `on_close()` is called once, in a thread of its own, when the connection has ended, whichever side ended it, after
    every call in flight has failed.  Close a client of which a signal's handler has interrupted a call by an exception.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        interceptors: Sequence[Interceptor] = (),
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._link = Link(sock)
        self._invoke: Invoke = self._invoke_plain
        for interceptor in reversed(interceptors):
            self._invoke = _intercepted(interceptor, self._invoke)
        self._is_intercepted = bool(interceptors)
        # The last reference may go without a call of close: the descriptor and the thread below must not stay.
        weakref.finalize(self, self._link.hang_up).atexit = False
        if on_close is not None:
            self._link.watch(on_close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_closed(self) -> bool:
        """True once the connection has ended, as far as a call has noticed."""
        return self._link.is_closed

    def close(self) -> None:
        """Close the connection; calls in flight raise ConnectionClosedError."""
        self._link.close()

    def call(
        self,
        rpc: Rpc[RequestT, ResponseT],
        request: RequestT,
        *,
        timeout_s: float | None = None,
        metadata: Metadata = (),
        cancellation: Cancellation | None = None,
    ) -> ResponseT:
        """Call a unary method and return its response.

        Raises:
            RpcError: The call ended with a status; DEADLINE_EXCEEDED also when `timeout_s` passed here first.
            RemoteProtocolError: The server answered with something that is no answer to this call.
            ConnectionClosedError: The connection ended before the answer came.
            LocalProtocolError: The method streams; or the connection's ids are used up.
        """
        if rpc.kind:
            raise LocalProtocolError(f"{rpc.full_name} streams: open it")
        if self._is_intercepted:
            response: ResponseT = self._invoke(OutgoingCall(rpc, request, timeout_s, metadata, cancellation))
            return response
        payload = self._exchange(
            rpc.full_name, rpc.head, request.SerializeToString(), timeout_s, metadata, cancellation
        )
        return rpc.decode_response(payload)

    def open(
        self,
        rpc: Rpc[RequestT, ResponseT],
        request: RequestT | None = None,
        *,
        timeout_s: float | None = None,
        metadata: Metadata = (),
        cancellation: Cancellation | None = None,
    ) -> ClientStream[RequestT, ResponseT]:
        """Open a stream; `request` goes with methods of which only the server streams, and with no others.

        Raises:
            RpcError, ConnectionClosedError, LocalProtocolError: As `call` does; what the server says comes later.
        """
        if not rpc.kind:
            raise LocalProtocolError(f"{rpc.full_name} does not stream: call it")
        if rpc.kind.has_client_stream != (request is None):
            wanted = "sends its requests on the stream" if request is not None else "needs a request"
            raise LocalProtocolError(f"{rpc.full_name} {wanted}")
        stream: ClientStream[RequestT, ResponseT] = self._invoke(
            OutgoingCall(rpc, request, timeout_s, metadata, cancellation)
        )
        return stream

    def call_raw(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout_s: float | None = None,
        metadata: Metadata = (),
        cancellation: Cancellation | None = None,
    ) -> bytes:
        """Call a unary method by its names, with serialised messages; no interceptor sees it."""
        rpc: Rpc[Any, Any] = Rpc(service, method, object, object)
        return self._exchange(rpc.full_name, rpc.head, payload, timeout_s, metadata, cancellation)

    def _invoke_plain(self, call: OutgoingCall) -> Any:
        rpc, request, timeout_s, metadata, cancellation = call
        payload = b"" if request is None else request.SerializeToString()
        if rpc.kind:
            deadline = None if timeout_s is None else time.monotonic() + timeout_s
            pending = Pending(rpc.full_name, deadline, Inbox())
            self._link.start(pending, rpc.head, payload, rpc.kind, timeout_ns(timeout_s), metadata_pairs(metadata))
            return ClientStream(self, self._link, pending, rpc, cancellation)
        return rpc.decode_response(self._exchange(rpc.full_name, rpc.head, payload, timeout_s, metadata, cancellation))

    def _exchange(
        self,
        name: str,
        head: bytes,
        payload: bytes,
        timeout_s: float | None,
        metadata: Metadata,
        cancellation: Cancellation | None,
    ) -> bytes:
        link = self._link
        pairs = metadata_pairs(metadata) if metadata else ()
        if timeout_s is None:
            pending = Pending(name, None)
            expires_ns = 0
        else:
            pending = Pending(name, time.monotonic() + timeout_s)
            expires_ns = timeout_ns(timeout_s)
        if cancellation is None:
            link.start(pending, head, payload, _UNARY, expires_ns, pairs)
            return link.result(pending)
        if cancellation.is_cancelled:
            raise RpcError(Code.CANCELED, "context canceled", name)
        pending.is_cancellable = True
        cancellation.add(pending, lambda: link.cancel(pending))
        try:
            link.start(pending, head, payload, _UNARY, expires_ns, pairs)
            return link.result(pending)
        finally:
            cancellation.remove(pending)


class ClientStream(Generic[RequestT, ResponseT]):
    """An open stream: `send` requests, iterate the responses; a context manager that cancels what has not ended.

    One thread may send while another receives.  A stream of which more than 64 messages are there, and none is taken
    for a second, ends with RESOURCE_EXHAUSTED when other calls of this connection wait, those of the same thread too.
    """

    def __init__(
        self,
        client: Client,
        link: Link,
        pending: Pending,
        rpc: Rpc[RequestT, ResponseT],
        cancellation: Cancellation | None,
    ) -> None:
        self._client = client  # a stream keeps its connection open
        self._link = link
        self._pending = pending
        self._rpc = rpc
        weakref.finalize(self, _let_go, link, pending, cancellation).atexit = False
        self._cancellation = cancellation
        if cancellation is not None:
            cancellation.add(pending, lambda: link.cancel(pending))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[ResponseT]:
        while (message := self.recv()) is not None:
            yield message

    def send(self, request: RequestT) -> None:
        """Send one message; waits while the server does not read.

        Raises:
            RpcError: The call has ended with a status, or its deadline has passed; RESOURCE_EXHAUSTED, the message is
                over 4 MiB, and the stream goes on.
            LocalProtocolError: This side's stream has ended, or the server has ended the call.
            ConnectionClosedError: The connection has ended.
        """
        self._link.send(self._pending, request.SerializeToString())

    def close_send(self) -> None:
        """Say that no more messages follow; does nothing when the call has ended well.

        Raises:
            LocalProtocolError: It has been said before, or the method has no client's stream.
        """
        self._link.send_end(self._pending)

    def recv(self) -> ResponseT | None:
        """Return the next response, or None at the end.

        Raises:
            RpcError: The call ended with a status, or its deadline has passed; every later call raises it again.
            ConnectionClosedError: The connection ended; what had come before has been returned first.
        """
        try:
            payload = self._link.receive(self._pending)
        except BaseException:
            self._release()
            raise
        if payload is None:
            self._release()
            return None
        return self._rpc.decode_response(payload)

    def close_and_recv(self) -> ResponseT:
        """End this side's stream and return the one response of a method of which only the client streams.

        Raises:
            RpcError, ConnectionClosedError: As `recv` does.
            LocalProtocolError: The method has a server's stream: iterate that.
        """
        if self._rpc.kind.has_server_stream:
            raise LocalProtocolError(f"{self._rpc.full_name} answers with a stream, not with one response")
        if not self._pending.has_sent_end:
            self.close_send()
        try:
            payload = self._link.receive(self._pending)
        finally:
            self._release()
        return self._rpc.decode_response(payload or b"")

    def cancel(self) -> None:
        """Give the call up: whoever waits on it gets CANCELED; from any thread.  The server is not told."""
        self._link.cancel(self._pending)
        self._release()

    def _release(self) -> None:
        if self._cancellation is not None:
            self._cancellation.remove(self._pending)


def _let_go(link: Link, pending: Pending, cancellation: Cancellation | None) -> None:
    """Forget a stream that nobody holds any more; takes no lock, since any collection of garbage may call it."""
    link.abandon(pending)
    if cancellation is not None:
        cancellation.forget(pending)


def _intercepted(interceptor: Interceptor, invoke: Invoke) -> Invoke:
    return lambda call: interceptor(call, invoke)
