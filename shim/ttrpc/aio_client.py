"""The asyncio client: many tasks may call on one connection.

Rule: what a caller sees of it; waiting, reading and writing are the link's.  A deadline goes with the request and is
kept here as well; the server is never told of a call given up (there is no way).
"""

from __future__ import annotations

import asyncio
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Generic, Self

from shim.ttrpc._inbox import Inbox
from shim.ttrpc.address import BACKLOG_PAUSE_S, dial, named, parse_address
from shim.ttrpc.aio_link import AioLink, Pending
from shim.ttrpc.rpc import Metadata, OutgoingCall, RequestT, ResponseT, Rpc
from shim.ttrpc.status import LocalProtocolError

Invoke = Callable[[OutgoingCall], Awaitable[Any]]
Interceptor = Callable[[OutgoingCall, Invoke], Awaitable[Any]]
"""Stands around every call and stream: `async def log(call, invoke): return await invoke(call)`."""


async def connect(
    address: str | int | socket.socket,
    *,
    timeout_s: float | None = None,
    interceptors: Sequence[Interceptor] = (),
    on_close: Callable[[], None] | None = None,
) -> Client:
    """Connect to a ttrpc server; the address is as in `shim.ttrpc.connect`.

    Raises:
        ValueError: The address is no ttrpc address.
        OSError: Nobody answers there; the message names the address.
    """
    if not isinstance(address, str):
        return Client(dial(address), interceptors=interceptors, on_close=on_close)
    family, target = parse_address(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.wait_for(_connect(sock, target), timeout_s)
    except TimeoutError:
        sock.close()
        raise TimeoutError(f"cannot connect to {address}: timed out") from None
    except OSError as error:
        sock.close()
        raise named(error, f"cannot connect to {address}") from None
    except BaseException:
        sock.close()
        raise
    return Client(sock, interceptors=interceptors, on_close=on_close)


async def _connect(sock: socket.socket, target: str | bytes | tuple[int, int]) -> None:
    """Connect; asyncio takes the full backlog of a unix socket for a connection that is being made."""
    if sock.family != socket.AF_UNIX:
        await asyncio.get_running_loop().sock_connect(sock, target)
        return
    while True:
        try:
            sock.connect(target)
            return
        except BlockingIOError:
            await asyncio.sleep(BACKLOG_PAUSE_S)


class Client:
    """A connection to a ttrpc server; also an asynchronous context manager that closes it.

    It belongs to the running loop.  `on_close()` is called once, on the loop, when the connection has ended, whichever
    side ended it, after every call in flight has failed.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        interceptors: Sequence[Interceptor] = (),
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._link = AioLink(sock, on_close)
        self._invoke: Invoke = self._invoke_plain
        for interceptor in reversed(interceptors):
            self._invoke = _intercepted(interceptor, self._invoke)
        self._is_intercepted = bool(interceptors)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_closed(self) -> bool:
        """True once the connection has ended."""
        return self._link.is_closed

    def close(self) -> None:
        """Close the connection; calls in flight raise ConnectionClosedError."""
        self._link.close()

    async def call(
        self,
        rpc: Rpc[RequestT, ResponseT],
        request: RequestT,
        *,
        timeout_s: float | None = None,
        metadata: Metadata = (),
    ) -> ResponseT:
        """Call a unary method and return its response; cancelling the task gives the call up.

        Raises:
            RpcError: The call ended with a status; DEADLINE_EXCEEDED also when `timeout_s` passed here first.
            RemoteProtocolError: The server answered with something that is no answer to this call.
            ConnectionClosedError: The connection ended before the answer came.
            LocalProtocolError: The method streams; or the connection's ids are used up.
        """
        if rpc.kind:
            raise LocalProtocolError(f"{rpc.full_name} streams: open it")
        if self._is_intercepted:
            response: ResponseT = await self._invoke(OutgoingCall(rpc, request, timeout_s, metadata))
            return response
        payload = await self._exchange(rpc, request.SerializeToString(), timeout_s, metadata)
        return rpc.decode_response(payload)

    async def open(
        self,
        rpc: Rpc[RequestT, ResponseT],
        request: RequestT | None = None,
        *,
        timeout_s: float | None = None,
        metadata: Metadata = (),
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
        stream: ClientStream[RequestT, ResponseT] = await self._invoke(OutgoingCall(rpc, request, timeout_s, metadata))
        return stream

    async def call_raw(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout_s: float | None = None,
        metadata: Metadata = (),
    ) -> bytes:
        """Call a unary method by its names, with serialised messages; no interceptor sees it."""
        return await self._exchange(Rpc(service, method, object, object), payload, timeout_s, metadata)

    async def _invoke_plain(self, call: OutgoingCall) -> Any:
        rpc, request, timeout_s, metadata, _ = call
        payload = b"" if request is None else request.SerializeToString()
        if not rpc.kind:
            return rpc.decode_response(await self._exchange(rpc, payload, timeout_s, metadata))
        pending = Pending(rpc.full_name)
        pending.inbox = Inbox()
        if self._link.is_congested:
            timeout_s = await self._link.wait_for_room(pending, timeout_s)
        self._link.start(pending, rpc, payload, timeout_s, metadata)
        return ClientStream(self, self._link, pending, rpc)

    async def _exchange(self, rpc: Rpc[Any, Any], payload: bytes, timeout_s: float | None, metadata: Metadata) -> bytes:
        link = self._link
        pending = Pending(rpc.full_name)
        future: asyncio.Future[bytes] = link.loop.create_future()
        pending.future = future
        if link.is_congested:
            timeout_s = await link.wait_for_room(pending, timeout_s)
        link.start(pending, rpc, payload, timeout_s, metadata)
        try:
            return await future
        except asyncio.CancelledError:
            link.forget(pending)
            raise


class ClientStream(Generic[RequestT, ResponseT]):
    """An open stream: `send` requests, iterate the responses; a context manager that cancels what has not ended."""

    def __init__(self, client: Client, link: AioLink, pending: Pending, rpc: Rpc[RequestT, ResponseT]) -> None:
        self._client = client  # a stream keeps its connection open
        self._link = link
        self._pending = pending
        self._rpc = rpc
        self._has_sent_end = False
        weakref.finalize(self, link.abandon, pending).atexit = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    async def __aiter__(self) -> AsyncIterator[ResponseT]:
        while (message := await self.recv()) is not None:
            yield message

    async def send(self, request: RequestT) -> None:
        """Send one message; waits while the server does not read.

        Raises:
            RpcError: The call has ended with a status, or its deadline has passed; RESOURCE_EXHAUSTED, the message is
                over 4 MiB, and the stream goes on.
            LocalProtocolError: This side's stream has ended, or the server has ended the call.
            ConnectionClosedError: The connection has ended.
        """
        await self._link.send(self._pending, request.SerializeToString())

    async def close_send(self) -> None:
        """Say that no more messages follow; does nothing when the call has ended well.

        Raises:
            LocalProtocolError: It has been said before, or the method has no client's stream.
        """
        await self._link.send(self._pending, None)
        self._has_sent_end = True

    async def recv(self) -> ResponseT | None:
        """Return the next response, or None at the end.

        Raises:
            RpcError: The call ended with a status, or its deadline has passed; every later call raises it again.
            ConnectionClosedError: The connection ended; what had come before has been returned first.
        """
        payload = await self._link.receive(self._pending)
        return None if payload is None else self._rpc.decode_response(payload)

    async def close_and_recv(self) -> ResponseT:
        """End this side's stream and return the one response of a method of which only the client streams.

        Raises:
            RpcError, ConnectionClosedError: As `recv` does.
            LocalProtocolError: The method has a server's stream: iterate that.
        """
        if self._rpc.kind.has_server_stream:
            raise LocalProtocolError(f"{self._rpc.full_name} answers with a stream, not with one response")
        if not self._has_sent_end:
            await self.close_send()
        return self._rpc.decode_response(await self._link.receive(self._pending) or b"")

    def cancel(self) -> None:
        """Give the call up: whoever waits on it gets CANCELED.  The server is not told."""
        self._link.cancel(self._pending)


def _intercepted(interceptor: Interceptor, invoke: Invoke) -> Invoke:
    return lambda call: interceptor(call, invoke)
