"""Both clients behind one synchronous face, so that a test is written once.

Rule: nothing of the protocol is here; what needs a loop runs on a loop of its own in a thread.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

from google.protobuf.message import Message

from shim import ttrpc
from shim.ttrpc import Cancellation, Code, Metadata, OutgoingCall, Rpc, RpcError, aio
from shim.ttrpc._client_connection import ClientConnection
from tests.fakes import PATIENCE_S
from tests.ttrpc.conformance.threads import AsyncioThread, in_thread

T = TypeVar("T")
RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)
SentT = TypeVar("SentT", bound=Message, contravariant=True)
ReceivedT = TypeVar("ReceivedT", bound=Message)

KINDS: Final = ("blocking", "asyncio")

Around = Callable[[OutgoingCall], Iterator[OutgoingCall]]
"""A client's interceptor for both styles: a generator that yields the call and gets the result sent."""


class Started(Generic[T]):
    """A call that is under way."""

    def __init__(self, future: Future[T], cancel: Callable[[], object]) -> None:
        self._future = future
        self.cancel = cancel

    @property
    def is_done(self) -> bool:
        """True once it has ended."""
        return self._future.done()

    def result(self, timeout_s: float = PATIENCE_S) -> T:
        """Return its response, or raise what it ended with; a cancelled one raises CANCELED in either style."""
        try:
            return self._future.result(timeout_s)
        except CancelledError:
            raise RpcError(Code.CANCELED, "context canceled") from None


class Stream(Protocol[SentT, ReceivedT]):
    """A client's stream; its names are those of the library."""

    def send(self, message: SentT) -> None: ...
    def send_all(self, messages: Iterable[SentT]) -> None: ...
    def close_send(self) -> None: ...
    def recv(self) -> ReceivedT | None: ...
    def read(self, count: int) -> list[ReceivedT]: ...
    def rest(self) -> list[ReceivedT]: ...
    def close_and_recv(self) -> ReceivedT: ...
    def cancel(self) -> None: ...


class End(Protocol):
    """A client; its names are those of the library, `start` calls without waiting."""

    kind: str

    def call(
        self, rpc: Rpc[RequestT, ResponseT], request: RequestT, *, timeout_s: float = ..., metadata: Metadata = ...
    ) -> ResponseT: ...
    def call_raw(self, service: str, method: str, payload: bytes, *, timeout_s: float = ...) -> bytes: ...
    def start(
        self, rpc: Rpc[RequestT, ResponseT], request: RequestT, *, timeout_s: float | None = ...
    ) -> Started[ResponseT]: ...
    def begin(self, function: Callable[[], T]) -> Started[T]: ...
    def call_all(
        self, rpc: Rpc[RequestT, ResponseT], requests: Sequence[RequestT], workers: int = ...
    ) -> list[ResponseT]: ...
    def open(
        self,
        rpc: Rpc[RequestT, ResponseT],
        request: RequestT | None = None,
        *,
        timeout_s: float | None = ...,
        metadata: Metadata = ...,
    ) -> Stream[RequestT, ResponseT]: ...
    def close(self) -> None: ...
    @property
    def is_closed(self) -> bool: ...
    @property
    def core(self) -> ClientConnection: ...
    @property
    def active(self) -> int: ...
    def dispose(self) -> None: ...


class BlockingStream(Generic[RequestT, ResponseT]):
    """The blocking client's stream."""

    def __init__(self, stream: ttrpc.ClientStream[RequestT, ResponseT]) -> None:
        self.stream = stream
        self.send = stream.send
        self.close_send = stream.close_send
        self.recv = stream.recv
        self.close_and_recv = stream.close_and_recv
        self.cancel = stream.cancel

    def send_all(self, messages: Iterable[RequestT]) -> None:
        for message in messages:
            self.send(message)

    def read(self, count: int) -> list[ResponseT]:
        return [message for _ in range(count) if (message := self.recv()) is not None]

    def rest(self) -> list[ResponseT]:
        return list(self.stream)


class BlockingEnd:
    """The blocking client; calls that are only started have a thread each."""

    kind = "blocking"

    def __init__(
        self,
        address: str | int | socket.socket,
        around: Sequence[Around] = (),
        on_close: Callable[[], None] | None = None,
    ) -> None:
        interceptors = [_blocking(one) for one in around]
        self.client = ttrpc.connect(address, timeout_s=PATIENCE_S, interceptors=interceptors, on_close=on_close)
        self.close = self.client.close

    def call(
        self,
        rpc: Rpc[RequestT, ResponseT],
        request: RequestT,
        *,
        timeout_s: float = PATIENCE_S,
        metadata: Metadata = (),
    ) -> ResponseT:
        return self.client.call(rpc, request, timeout_s=timeout_s, metadata=metadata)

    def call_raw(self, service: str, method: str, payload: bytes, *, timeout_s: float = PATIENCE_S) -> bytes:
        return self.client.call_raw(service, method, payload, timeout_s=timeout_s)

    def start(
        self, rpc: Rpc[RequestT, ResponseT], request: RequestT, *, timeout_s: float | None = None
    ) -> Started[ResponseT]:
        cancellation = Cancellation()
        future = in_thread(lambda: self.client.call(rpc, request, timeout_s=timeout_s, cancellation=cancellation))
        return Started(future, cancellation.cancel)

    def begin(self, function: Callable[[], T]) -> Started[T]:
        return Started(in_thread(function), lambda: None)

    def call_all(
        self, rpc: Rpc[RequestT, ResponseT], requests: Sequence[RequestT], workers: int = 1
    ) -> list[ResponseT]:
        call = self.client.call

        def work(first: int) -> list[ResponseT]:
            return [call(rpc, request) for request in requests[first::workers]]

        if workers == 1:
            return work(0)
        futures = [in_thread(partial(work, first)) for first in range(workers)]
        return [response for future in futures for response in future.result(PATIENCE_S)]

    def open(
        self,
        rpc: Rpc[RequestT, ResponseT],
        request: RequestT | None = None,
        *,
        timeout_s: float | None = None,
        metadata: Metadata = (),
    ) -> Stream[RequestT, ResponseT]:
        return BlockingStream(self.client.open(rpc, request, timeout_s=timeout_s, metadata=metadata))

    @property
    def is_closed(self) -> bool:
        return self.client.is_closed

    @property
    def core(self) -> ClientConnection:
        return self.client._link._connection

    @property
    def active(self) -> int:
        return len(self.client._link._pending) + self.core.active

    def dispose(self) -> None:
        self.close()


class AsyncioStream(Generic[RequestT, ResponseT]):
    """The asyncio client's stream."""

    def __init__(self, thread: AsyncioThread, stream: aio.ClientStream[RequestT, ResponseT]) -> None:
        self.thread = thread
        self.stream = stream

    def send(self, message: RequestT) -> None:
        self.thread.run(self.stream.send(message))

    def send_all(self, messages: Iterable[RequestT]) -> None:
        async def send() -> None:
            for message in messages:
                await self.stream.send(message)

        self.thread.run(send())

    def close_send(self) -> None:
        self.thread.run(self.stream.close_send())

    def recv(self) -> ResponseT | None:
        return self.thread.run(self.stream.recv())

    def read(self, count: int) -> list[ResponseT]:
        async def read() -> list[ResponseT]:
            return [message for _ in range(count) if (message := await self.stream.recv()) is not None]

        return self.thread.run(read())

    def rest(self) -> list[ResponseT]:
        async def rest() -> list[ResponseT]:
            return [message async for message in self.stream]

        return self.thread.run(rest())

    def close_and_recv(self) -> ResponseT:
        return self.thread.run(self.stream.close_and_recv())

    def cancel(self) -> None:
        self.thread.call(self.stream.cancel)


class AsyncioEnd:
    """The asyncio client, on a loop in a thread of its own."""

    kind = "asyncio"

    def __init__(
        self,
        address: str | int | socket.socket,
        around: Sequence[Around] = (),
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.thread = AsyncioThread()
        interceptors = [_coroutine(one) for one in around]
        try:
            self.client = self.thread.run(
                aio.connect(address, timeout_s=PATIENCE_S, interceptors=interceptors, on_close=on_close)
            )
        except BaseException:
            self.thread.close()
            raise

    def call(
        self,
        rpc: Rpc[RequestT, ResponseT],
        request: RequestT,
        *,
        timeout_s: float = PATIENCE_S,
        metadata: Metadata = (),
    ) -> ResponseT:
        return self.thread.run(self.client.call(rpc, request, timeout_s=timeout_s, metadata=metadata))

    def call_raw(self, service: str, method: str, payload: bytes, *, timeout_s: float = PATIENCE_S) -> bytes:
        return self.thread.run(self.client.call_raw(service, method, payload, timeout_s=timeout_s))

    def start(
        self, rpc: Rpc[RequestT, ResponseT], request: RequestT, *, timeout_s: float | None = None
    ) -> Started[ResponseT]:
        future = self.thread.start(self.client.call(rpc, request, timeout_s=timeout_s))
        return Started(future, future.cancel)

    def begin(self, function: Callable[[], T]) -> Started[T]:
        return Started(in_thread(function), lambda: None)

    def call_all(
        self, rpc: Rpc[RequestT, ResponseT], requests: Sequence[RequestT], workers: int = 1
    ) -> list[ResponseT]:
        call = self.client.call

        async def work(first: int) -> list[ResponseT]:
            return [await call(rpc, request) for request in requests[first::workers]]

        async def run() -> list[ResponseT]:
            lists = await asyncio.gather(*[work(first) for first in range(workers)])
            return [response for responses in lists for response in responses]

        return self.thread.run(run())

    def open(
        self,
        rpc: Rpc[RequestT, ResponseT],
        request: RequestT | None = None,
        *,
        timeout_s: float | None = None,
        metadata: Metadata = (),
    ) -> Stream[RequestT, ResponseT]:
        opening = self.client.open(rpc, request, timeout_s=timeout_s, metadata=metadata)
        return AsyncioStream(self.thread, self.thread.run(opening))

    @property
    def is_closed(self) -> bool:
        return self.client.is_closed

    @property
    def core(self) -> ClientConnection:
        return self.client._link._connection

    @property
    def active(self) -> int:
        return len(self.client._link._pending) + self.core.active

    def close(self) -> None:
        self.thread.call(self.client.close)

    def dispose(self) -> None:
        if not self.thread.loop.is_closed():
            self.close()
            self.thread.close()


def make_end(
    kind: str,
    address: str | int | socket.socket,
    around: Sequence[Around] = (),
    on_close: Callable[[], None] | None = None,
) -> End:
    """Return a client of that kind."""
    return (BlockingEnd if kind == "blocking" else AsyncioEnd)(address, around, on_close)


def _blocking(around: Around) -> Callable[[OutgoingCall, Callable[[OutgoingCall], Any]], Any]:
    def interceptor(call: OutgoingCall, invoke: Callable[[OutgoingCall], Any]) -> Any:
        steps = around(call)
        result = invoke(next(steps))
        with suppress(StopIteration):
            next(steps)
        return result

    return interceptor


def _coroutine(around: Around) -> aio.Interceptor:
    async def interceptor(call: OutgoingCall, invoke: Callable[[OutgoingCall], Any]) -> Any:
        steps = around(call)
        result = await invoke(next(steps))
        with suppress(StopIteration):
            next(steps)
        return result

    return interceptor
