"""This project's asyncio server and client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

from google.protobuf.empty_pb2 import Empty

from shim.ttrpc import CallContext, Service, aio
from tests.bench_ttrpc.loads import drive_async, serve_until_told
from tests.bench_ttrpc.ours_blocking import Conformance as BlockingConformance
from tests.bench_ttrpc.rpcs import DIVIDE, ECHO, ECHO_NULL, ECHO_STREAM, RPCS, answer, parts
from tests.protos.conformance_pb2 import Part, Payload, Total


class Conformance:
    """The handlers, as coroutines."""

    async def echo(self, _context: CallContext, request: Payload) -> Payload:
        """Answer with the same."""
        return answer(request)

    async def echo_stream(
        self, _context: CallContext, stream: aio.ServerStream[Payload, Payload]
    ) -> AsyncIterator[Payload]:
        """Answer each message."""
        async for request in stream:
            yield answer(request)

    async def echo_null(self, _context: CallContext, stream: aio.ServerStream[Payload, Empty]) -> Empty:
        """Answer once at the end."""
        async for _ in stream:
            pass
        return Empty()

    async def divide(self, _context: CallContext, request: Total) -> AsyncIterator[Part]:
        """Send many."""
        for part in parts(request):
            yield part


class Client:
    """The calls."""

    def __init__(self, client: aio.Client) -> None:
        self._client = client

    async def echo(self, request: Payload) -> Payload:
        """Call Echo."""
        return await self._client.call(ECHO, request)

    @asynccontextmanager
    async def ping_pong(self) -> AsyncIterator[Callable[[Payload], Awaitable[Payload]]]:
        """Open EchoStream."""
        async with await self._client.open(ECHO_STREAM) as stream:

            async def exchange(request: Payload) -> Payload:
                await stream.send(request)
                received = await stream.recv()
                if received is None:
                    raise RuntimeError("the stream has ended")
                return received

            yield exchange
            await stream.close_send()
            if await stream.recv() is not None:
                raise RuntimeError("an answer too many")

    async def upload(self, messages: Iterator[Payload]) -> None:
        """Call EchoNull."""
        async with await self._client.open(ECHO_NULL) as stream:
            for message in messages:
                await stream.send(message)
            await stream.close_and_recv()

    async def download(self, count: int) -> int:
        """Call Divide."""
        received = 0
        async with await self._client.open(DIVIDE, Total(sum=count, count=count)) as stream:
            async for _ in stream:
                received += 1
        return received


def serve(address: str, variant: str) -> None:
    """Serve with coroutines (`inline`, `task`), or with Echo as a plain function run by the loop (`plain`)."""
    asyncio.run(_serve(address, variant))


async def _serve(address: str, variant: str) -> None:
    implementation = BlockingConformance() if variant == "plain" else Conformance()
    inline = [] if variant == "task" else ["Echo"]
    server = aio.Server([Service.bind(RPCS, implementation, inline=inline)])
    server.listen(f"unix://{address}")
    serve_until_told()
    await server.serve()


def drive(address: str, _variant: str) -> None:
    """Call as told."""
    drive_async(lambda: _connected(address))


@asynccontextmanager
async def _connected(address: str) -> AsyncIterator[Client]:
    async with await aio.connect(f"unix://{address}") as client:
        yield Client(client)
