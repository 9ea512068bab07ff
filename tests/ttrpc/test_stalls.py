"""A stream that is taken from slowly, which is not one that is not taken from."""

import asyncio
import threading
import time
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import Int64Value

from shim.ttrpc import CallContext, Kind, Limits, Rpc, Server, ServerStream, Service, aio, aio_link, connect, link
from tests.fakes import PATIENCE_S

SUM = Rpc("test.v1.Slow", "Sum", Int64Value, Int64Value, Kind.CLIENT_STREAM)
COUNT = Rpc("test.v1.Slow", "Count", Int64Value, Int64Value, Kind.SERVER_STREAM)
ECHO = Rpc("test.v1.Slow", "Echo", Int64Value, Int64Value)
STALL_S = 0.2


class Slow:
    """Takes a message every few milliseconds."""

    def sum(self, context: CallContext, stream: ServerStream[Int64Value, Int64Value]) -> Int64Value:
        """Add up; four times as slow as a handler that takes nothing may be."""
        total = 0
        for message in stream:
            total += message.value
            time.sleep(0.002)
        return Int64Value(value=total)

    def count(self, context: CallContext, request: Int64Value) -> list[Int64Value]:
        """Send so many messages."""
        return [Int64Value(value=number) for number in range(request.value)]

    def echo(self, context: CallContext, request: Int64Value) -> Int64Value:
        """Return the request."""
        return request


def serving(folder: Path) -> tuple[Server, str]:
    """Return a server and where it will listen."""
    service = Service.bind([SUM, COUNT, ECHO], Slow(), inline=["Echo"])
    return Server([service], limits=Limits(stall_s=STALL_S)), f"unix://{folder}/slow.sock"


def test_a_handler_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    """Its inbox is full for longer than a handler's may be that takes nothing."""
    server, address = serving(tmp_path)
    began = time.monotonic()
    with server:
        server.listen(address)
        with connect(address) as client, client.open(SUM, timeout_s=PATIENCE_S) as stream:
            for _ in range(400):
                stream.send(Int64Value(value=1))
            answer = stream.close_and_recv()

    assert 400 == answer.value
    assert time.monotonic() - began > 2 * STALL_S


def test_a_reader_that_goes_on_keeps_its_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though others call on the connection all the time."""
    monkeypatch.setattr(link, "_STALL_S", STALL_S)
    server, address = serving(tmp_path)
    done = threading.Event()
    with server:
        server.listen(address)
        with connect(address) as client:

            def call() -> None:
                while not done.is_set():
                    client.call(ECHO, Int64Value(value=1), timeout_s=PATIENCE_S)

            other = threading.Thread(target=call)
            other.start()
            received = []
            for message in client.open(COUNT, Int64Value(value=20_000)):
                received.append(message.value)
                if not len(received) % 50:
                    time.sleep(0.002)
            done.set()
            other.join()

    assert list(range(20_000)) == received


def test_a_task_that_goes_on_keeps_its_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with asyncio."""
    monkeypatch.setattr(aio_link, "_STALL_S", STALL_S)
    server, address = serving(tmp_path)

    async def main() -> list[int]:
        async with await aio.connect(address) as client:

            async def call() -> None:
                while True:
                    await client.call(ECHO, Int64Value(value=1), timeout_s=PATIENCE_S)

            other = asyncio.create_task(call())
            received = []
            async for message in await client.open(COUNT, Int64Value(value=20_000)):
                received.append(message.value)
                if not len(received) % 50:
                    await asyncio.sleep(0.002)
            other.cancel()
            return received

    with server:
        server.listen(address)
        received = asyncio.run(main())

    assert list(range(20_000)) == received
