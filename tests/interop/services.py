"""The service of the Python peers, once with blocking handlers and once with coroutines."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from google.protobuf.empty_pb2 import Empty

from shim import ttrpc
from shim.ttrpc import CallContext, RpcError, ServerStream, Service, aio
from tests.interop import conformance as c
from tests.protos.conformance_pb2 import Failure, Nap, Pair, Pairs, Part, Payload, Size, Total


class Blocking:
    """With blocking handlers."""

    def echo(self, context: CallContext, request: Payload) -> Payload:
        return c.plus_one(request)

    def echo_stream(self, context: CallContext, stream: ServerStream[Payload, Payload]) -> Iterator[Payload]:
        for request in stream:
            yield c.plus_one(request)

    def sum(self, context: CallContext, stream: ServerStream[Part, Total]) -> Total:
        return c.sum_up(list(stream))

    def divide(self, context: CallContext, request: Total) -> Iterable[Part]:
        return c.divide(request)

    def echo_null(self, context: CallContext, stream: ServerStream[Payload, Empty]) -> Empty:
        while stream.recv() is not None:
            pass
        return Empty()

    def echo_null_stream(self, context: CallContext, stream: ServerStream[Payload, Empty]) -> None:
        with ThreadPoolExecutor(4) as threads:
            answers = [threads.submit(stream.send, Empty()) for _ in stream]
        for answer in answers:
            answer.result()

    def empty_request(self, context: CallContext, request: Empty) -> Iterator[Payload]:
        yield Payload()
        yield Payload(seq=1)

    def fail_stream(self, context: CallContext, request: Failure) -> Iterator[Part]:
        for value in range(1, request.after + 1):
            yield Part(value=value)
        raise RpcError(request.code, request.message)

    def fail(self, context: CallContext, request: Failure) -> Empty:
        raise RpcError(request.code, request.message)

    def sleep(self, context: CallContext, request: Nap) -> Empty:
        time.sleep(request.milliseconds / 1000)
        return Empty()

    def blob(self, context: CallContext, request: Size) -> Payload:
        return c.payload(0, request.bytes)

    def metadata(self, context: CallContext, request: Empty) -> Pairs:
        pairs = sorted(context.metadata, key=lambda pair: pair[0])
        return Pairs(pairs=[Pair(key=key, value=value) for key, value in pairs])


class Asynchronous:
    """With coroutines for handlers."""

    async def echo(self, context: CallContext, request: Payload) -> Payload:
        return c.plus_one(request)

    async def echo_stream(
        self, context: CallContext, stream: aio.ServerStream[Payload, Payload]
    ) -> AsyncIterator[Payload]:
        async for request in stream:
            yield c.plus_one(request)

    async def sum(self, context: CallContext, stream: aio.ServerStream[Part, Total]) -> Total:
        return c.sum_up([part async for part in stream])

    async def divide(self, context: CallContext, request: Total) -> AsyncIterator[Part]:
        for part in c.divide(request):
            yield part

    async def echo_null(self, context: CallContext, stream: aio.ServerStream[Payload, Empty]) -> Empty:
        while await stream.recv() is not None:
            pass
        return Empty()

    async def echo_null_stream(self, context: CallContext, stream: aio.ServerStream[Payload, Empty]) -> None:
        async with asyncio.TaskGroup() as answers:
            async for _ in stream:
                answers.create_task(stream.send(Empty()))

    async def empty_request(self, context: CallContext, request: Empty) -> AsyncIterator[Payload]:
        yield Payload()
        yield Payload(seq=1)

    async def fail_stream(self, context: CallContext, request: Failure) -> AsyncIterator[Part]:
        for value in range(1, request.after + 1):
            yield Part(value=value)
        raise RpcError(request.code, request.message)

    async def fail(self, context: CallContext, request: Failure) -> Empty:
        raise RpcError(request.code, request.message)

    async def sleep(self, context: CallContext, request: Nap) -> Empty:
        await asyncio.sleep(request.milliseconds / 1000)
        return Empty()

    async def blob(self, context: CallContext, request: Size) -> Payload:
        return c.payload(0, request.bytes)

    async def metadata(self, context: CallContext, request: Empty) -> Pairs:
        pairs = sorted(context.metadata, key=lambda pair: pair[0])
        return Pairs(pairs=[Pair(key=key, value=value) for key, value in pairs])


def serve_blocking(address: str, wait: Callable[[], object], ready: Callable[[], None]) -> None:
    """Serve until `wait()` returns."""
    server = ttrpc.Server([Service.bind(c.RPCS, Blocking())])
    server.listen(address)

    def stop() -> None:
        wait()
        server.stop(grace_s=5)

    threading.Thread(target=stop, daemon=True).start()
    ready()
    server.serve()


async def serve_asynchronous(address: str, wait: Callable[[], object], ready: Callable[[], None]) -> None:
    """Serve until `wait()`, in a thread of its own, returns."""
    server = aio.Server([Service.bind(c.RPCS, Asynchronous())])
    server.listen(address)
    serving = asyncio.create_task(server.serve())
    ready()
    await asyncio.to_thread(wait)
    await server.stop(grace_s=5)
    await serving
