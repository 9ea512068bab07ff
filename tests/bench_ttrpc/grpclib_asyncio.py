"""grpclib's server and client: gRPC in Python alone."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.empty_pb2 import Empty

from shim.ttrpc import Rpc
from tests.bench_ttrpc.loads import drive_async, serve_until_told
from tests.bench_ttrpc.rpcs import DIVIDE, ECHO, ECHO_NULL, ECHO_STREAM, RPCS, answer, parts
from tests.protos.conformance_pb2 import Payload, Total

# No stubs: the type checker's environment has no grpclib.
_client: Any = importlib.import_module("grpclib.client")
_const: Any = importlib.import_module("grpclib.const")
_server: Any = importlib.import_module("grpclib.server")


class Conformance:
    """The handlers."""

    async def echo(self, stream: Any) -> None:
        """Answer with the same."""
        await stream.send_message(answer(await stream.recv_message()))

    async def echo_stream(self, stream: Any) -> None:
        """Answer each message."""
        async for request in stream:
            await stream.send_message(answer(request))

    async def echo_null(self, stream: Any) -> None:
        """Answer once at the end."""
        async for _ in stream:
            pass
        await stream.send_message(Empty())

    async def divide(self, stream: Any) -> None:
        """Send many."""
        for part in parts(await stream.recv_message()):
            await stream.send_message(part)

    def __mapping__(self) -> dict[str, Any]:
        """Return what grpclib's server looks up."""
        functions = [self.echo, self.echo_stream, self.echo_null, self.divide]
        return {
            f"/{rpc.full_name}": _const.Handler(function, _cardinality(rpc), rpc.request, rpc.response)
            for rpc, function in zip(RPCS, functions, strict=True)
        }


def _cardinality(rpc: Rpc[Any, Any]) -> Any:
    sides = [
        "STREAM" if is_stream else "UNARY" for is_stream in (rpc.kind.has_client_stream, rpc.kind.has_server_stream)
    ]
    return _const.Cardinality["_".join(sides)]


class Client:
    """The calls."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._unary_echo = _client.UnaryUnaryMethod(channel, f"/{ECHO.full_name}", Payload, Payload)

    async def echo(self, request: Payload) -> Payload:
        """Call Echo."""
        answered: Payload = await self._unary_echo(request)
        return answered

    def _open(self, rpc: Rpc[Any, Any]) -> Any:
        return self._channel.request(f"/{rpc.full_name}", _cardinality(rpc), rpc.request, rpc.response)

    @asynccontextmanager
    async def ping_pong(self) -> AsyncIterator[Callable[[Payload], Awaitable[Payload]]]:
        """Open EchoStream."""
        async with self._open(ECHO_STREAM) as stream:

            async def exchange(request: Payload) -> Payload:
                await stream.send_message(request)
                received: Payload = await stream.recv_message()
                return received

            yield exchange
            await stream.end()
            if await stream.recv_message() is not None:
                raise RuntimeError("an answer too many")

    async def upload(self, messages: Iterator[Payload]) -> None:
        """Call EchoNull."""
        async with self._open(ECHO_NULL) as stream:
            for message in messages:
                await stream.send_message(message)
            await stream.end()
            await stream.recv_message()

    async def download(self, count: int) -> int:
        """Call Divide."""
        received = 0
        async with self._open(DIVIDE) as stream:
            await stream.send_message(Total(sum=count, count=count), end=True)
            async for _ in stream:
                received += 1
        return received


def serve(address: str, _variant: str) -> None:
    """Serve."""
    asyncio.run(_serve(address))


async def _serve(address: str) -> None:
    server = _server.Server([Conformance()])
    await server.start(path=address)
    serve_until_told()
    await server.wait_closed()


def drive(address: str, _variant: str) -> None:
    """Call as told."""
    drive_async(lambda: _connected(address))


@asynccontextmanager
async def _connected(address: str) -> AsyncIterator[Client]:
    async with _client.Channel(path=address) as channel:
        yield Client(channel)
