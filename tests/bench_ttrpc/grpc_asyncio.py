"""grpcio's asyncio server and client (grpc.aio)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.empty_pb2 import Empty

from tests.bench_ttrpc.grpc_blocking import OPTIONS, grpc, handlers, stub
from tests.bench_ttrpc.loads import drive_async, serve_until_told
from tests.bench_ttrpc.rpcs import DIVIDE, ECHO, ECHO_NULL, ECHO_STREAM, answer, parts
from tests.protos.conformance_pb2 import Part, Payload, Total


async def _echo(request: Payload, _context: object) -> Payload:
    return answer(request)


async def _echo_stream(requests: AsyncIterator[Payload], _context: object) -> AsyncIterator[Payload]:
    async for request in requests:
        yield answer(request)


async def _echo_null(requests: AsyncIterator[Payload], _context: object) -> Empty:
    async for _ in requests:
        pass
    return Empty()


async def _divide(request: Total, _context: object) -> AsyncIterator[Part]:
    for part in parts(request):
        yield part


class Client:
    """The calls."""

    def __init__(self, channel: Any) -> None:
        self._echo = stub(channel, ECHO)
        self._echo_stream = stub(channel, ECHO_STREAM)
        self._echo_null = stub(channel, ECHO_NULL)
        self._divide = stub(channel, DIVIDE)

    async def echo(self, request: Payload) -> Payload:
        """Call Echo."""
        answered: Payload = await self._echo(request)
        return answered

    @asynccontextmanager
    async def ping_pong(self) -> AsyncIterator[Callable[[Payload], Awaitable[Payload]]]:
        """Open EchoStream."""
        call = self._echo_stream()

        async def exchange(request: Payload) -> Payload:
            await call.write(request)
            received: Payload = await call.read()
            return received

        yield exchange
        await call.done_writing()
        if await call.read() is not grpc.aio.EOF:
            raise RuntimeError("an answer too many")

    async def upload(self, messages: Iterator[Payload]) -> None:
        """Call EchoNull."""
        call = self._echo_null()
        for message in messages:
            await call.write(message)
        await call.done_writing()
        await call

    async def download(self, count: int) -> int:
        """Call Divide."""
        received = 0
        async for _ in self._divide(Total(sum=count, count=count)):
            received += 1
        return received


def serve(address: str, _variant: str) -> None:
    """Serve."""
    asyncio.run(_serve(address))


async def _serve(address: str) -> None:
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((handlers([_echo, _echo_stream, _echo_null, _divide]),))
    server.add_insecure_port(f"unix:{address}")
    await server.start()
    serve_until_told()
    await server.wait_for_termination()


def drive(address: str, _variant: str) -> None:
    """Call as told."""
    drive_async(lambda: _connected(address))


@asynccontextmanager
async def _connected(address: str) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(f"unix:{address}", options=OPTIONS) as channel:
        yield Client(channel)
