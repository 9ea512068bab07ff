"""The conformance service, once with blocking handlers and once with coroutines, and what a test shares with them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, cast

from google.protobuf.empty_pb2 import Empty

from shim.ttrpc import CallContext, Deferred, RpcError, ServerStream, aio
from tests.fakes import PATIENCE_S
from tests.protos.conformance_pb2 import Failure, Nap, Pair, Pairs, Part, Payload, Size, Total
from tests.protos.conformance_ttrpc import AsyncConformanceService, ConformanceService

# Naps of no length: WAIT is answered later and holds no thread, HOLD occupies its handler until the gate opens.
WAIT: Final = Nap(milliseconds=-1)
HOLD: Final = Nap(milliseconds=-2)
# What tells EchoStream to do something else than to echo: stop reading until the gate opens, return, raise.
STALL: Final = Payload(data=b"stall")
RETURN: Final = Payload(data=b"return")
FAIL: Final = Payload(data=b"fail")


class Gate:
    """Opens once; threads and coroutines of any loop may wait for it."""

    def __init__(self) -> None:
        self._opened: Future[None] = Future()

    def open(self) -> None:
        """Let everybody go; repeating it is fine."""
        if not self._opened.done():
            self._opened.set_result(None)

    def wait(self) -> None:
        """Wait in a thread."""
        self._opened.result(PATIENCE_S)

    async def passed(self) -> None:
        """Wait in a coroutine."""
        await asyncio.shield(asyncio.wrap_future(self._opened))


class Scene:
    """What handlers tell a test, and what the test tells them."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.contexts: list[CallContext] = []  # of calls that have begun
        self.ended: list[str] = []  # names of handlers that have ended, whichever way
        self.waits: list[Deferred] = []  # of WAIT naps, where handlers block
        self.error: BaseException | None = None  # what Fail, FailStream and EchoStream raise
        self.answer: Any = None  # what Blob returns
        self.stalls = 0  # of EchoStream, so far
        self.taken = 0  # messages that EchoNull has taken

    def failure(self, request: Failure) -> BaseException:
        """Return what to raise."""
        return self.error or RpcError(request.code, request.message, details=(("type.example/Detail", b"\x08\x01"),))

    def blob(self, request: Size) -> Payload:
        """Return what Blob answers."""
        return Payload(data=bytes(request.bytes)) if self.answer is None else cast(Payload, self.answer)

    def finish(self) -> None:
        """Let every handler end."""
        self.gate.open()
        for wait in self.waits:
            wait.resolve(Empty())


def parts(request: Total) -> Iterator[Part]:
    """Yield `count` parts that add up to `sum`, the first of them empty."""
    if request.count > 1:
        yield Part()
    for number in range(1, request.count - 1):
        yield Part(value=number)
    if request.count:
        yield Part(value=request.sum - sum(range(1, request.count - 1)))


def pairs(context: CallContext) -> Pairs:
    """Return a call's metadata as a message."""
    return Pairs(pairs=[Pair(key=key, value=value) for key, value in context.metadata])


class BlockingHandlers(ConformanceService):
    """With plain functions and generators."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def echo(self, context: CallContext, request: Payload, /) -> Payload:
        self.scene.contexts.append(context)
        return Payload(seq=request.seq + 1, data=request.data)

    def echo_stream(self, context: CallContext, stream: ServerStream[Payload, Payload], /) -> Iterator[Payload]:
        self.scene.contexts.append(context)
        try:
            for message in stream:
                if message == STALL:
                    self.scene.stalls += 1
                    self.scene.gate.wait()
                elif message == RETURN:
                    return
                elif message == FAIL:
                    raise self.scene.failure(Failure(code=9, message="told to"))
                else:
                    yield Payload(seq=message.seq + 1, data=message.data)
        finally:
            self.scene.ended.append("EchoStream")

    def sum(self, context: CallContext, stream: ServerStream[Part, Total], /) -> Total:
        self.scene.contexts.append(context)
        total = Total()
        for part in stream:
            total.sum += part.value
            total.count += 1
        return total

    def divide(self, context: CallContext, request: Total, /) -> Iterator[Part]:
        self.scene.contexts.append(context)
        try:
            yield from parts(request)
        finally:
            self.scene.ended.append("Divide")

    def echo_null(self, context: CallContext, stream: ServerStream[Payload, Empty], /) -> Empty:
        self.scene.contexts.append(context)
        for _ in stream:
            self.scene.taken += 1
        return Empty()

    def echo_null_stream(self, context: CallContext, stream: ServerStream[Payload, Empty], /) -> None:
        self.scene.contexts.append(context)
        with ThreadPoolExecutor(4) as pool:
            for sent in [pool.submit(stream.send, Empty()) for _ in stream]:
                sent.result()

    def empty_request(self, context: CallContext, request: Empty, /) -> Iterator[Payload]:
        self.scene.contexts.append(context)
        return iter([Payload(), Payload(seq=1)])

    def fail_stream(self, context: CallContext, request: Failure, /) -> Iterator[Part]:
        self.scene.contexts.append(context)
        for number in range(1, request.after + 1):
            yield Part(value=number)
        raise self.scene.failure(request)

    def fail(self, context: CallContext, request: Failure, /) -> Empty:
        self.scene.contexts.append(context)
        raise self.scene.failure(request)

    def sleep(self, context: CallContext, request: Nap, /) -> Empty | Deferred:
        self.scene.contexts.append(context)
        if request == WAIT:
            wait = Deferred()
            self.scene.waits.append(wait)
            return wait
        if request == HOLD:
            self.scene.gate.wait()
        else:
            cancelled = threading.Event()
            context.on_cancel(cancelled.set)
            cancelled.wait(request.milliseconds / 1000)
        self.scene.ended.append("Sleep")
        return Empty()

    def blob(self, context: CallContext, request: Size, /) -> Payload:
        self.scene.contexts.append(context)
        return self.scene.blob(request)

    def metadata(self, context: CallContext, request: Empty, /) -> Pairs:
        self.scene.contexts.append(context)
        return pairs(context)


class CoroutineHandlers(AsyncConformanceService):
    """With coroutine functions and asynchronous generators."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    async def echo(self, context: CallContext, request: Payload, /) -> Payload:
        self.scene.contexts.append(context)
        return Payload(seq=request.seq + 1, data=request.data)

    async def echo_stream(
        self, context: CallContext, stream: aio.ServerStream[Payload, Payload], /
    ) -> AsyncIterator[Payload]:
        self.scene.contexts.append(context)
        try:
            async for message in stream:
                if message == STALL:
                    self.scene.stalls += 1
                    await self.scene.gate.passed()
                elif message == RETURN:
                    return
                elif message == FAIL:
                    raise self.scene.failure(Failure(code=9, message="told to"))
                else:
                    yield Payload(seq=message.seq + 1, data=message.data)
        finally:
            self.scene.ended.append("EchoStream")

    async def sum(self, context: CallContext, stream: aio.ServerStream[Part, Total], /) -> Total:
        self.scene.contexts.append(context)
        total = Total()
        async for part in stream:
            total.sum += part.value
            total.count += 1
        return total

    async def divide(self, context: CallContext, request: Total, /) -> AsyncIterator[Part]:
        self.scene.contexts.append(context)
        try:
            for part in parts(request):
                yield part
        finally:
            self.scene.ended.append("Divide")

    async def echo_null(self, context: CallContext, stream: aio.ServerStream[Payload, Empty], /) -> Empty:
        self.scene.contexts.append(context)
        async for _ in stream:
            self.scene.taken += 1
        return Empty()

    async def echo_null_stream(self, context: CallContext, stream: aio.ServerStream[Payload, Empty], /) -> None:
        self.scene.contexts.append(context)
        sending = [asyncio.ensure_future(stream.send(Empty())) async for _ in stream]
        await asyncio.gather(*sending)

    async def empty_request(self, context: CallContext, request: Empty, /) -> AsyncIterator[Payload]:
        self.scene.contexts.append(context)
        yield Payload()
        yield Payload(seq=1)

    async def fail_stream(self, context: CallContext, request: Failure, /) -> AsyncIterator[Part]:
        self.scene.contexts.append(context)
        for number in range(1, request.after + 1):
            yield Part(value=number)
        raise self.scene.failure(request)

    async def fail(self, context: CallContext, request: Failure, /) -> Empty:
        self.scene.contexts.append(context)
        raise self.scene.failure(request)

    async def sleep(self, context: CallContext, request: Nap, /) -> Empty:
        self.scene.contexts.append(context)
        try:
            if request in (WAIT, HOLD):
                await self.scene.gate.passed()
            else:
                await asyncio.sleep(request.milliseconds / 1000)
        finally:
            self.scene.ended.append("Sleep")
        return Empty()

    async def blob(self, context: CallContext, request: Size, /) -> Payload:
        self.scene.contexts.append(context)
        return self.scene.blob(request)

    async def metadata(self, context: CallContext, request: Empty, /) -> Pairs:
        self.scene.contexts.append(context)
        return pairs(context)
