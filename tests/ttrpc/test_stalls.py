"""A stream that is taken from slowly, which is not one that is not taken from."""

import asyncio
import threading
import time
from pathlib import Path

from google.protobuf.wrappers_pb2 import Int64Value

from shim.ttrpc import CallContext, Kind, Rpc, Server, ServerStream, Service, aio, connect
from tests.fakes import PATIENCE_S

SUM = Rpc("test.v1.Slow", "Sum", Int64Value, Int64Value, Kind.CLIENT_STREAM)
COUNT = Rpc("test.v1.Slow", "Count", Int64Value, Int64Value, Kind.SERVER_STREAM)
ECHO = Rpc("test.v1.Slow", "Echo", Int64Value, Int64Value)
STALL_S = 1.0  # for so long nothing may be taken from a full inbox; on a loaded machine less would be a matter of luck


class Slow:
    """Takes a message every few milliseconds."""

    def sum(self, context: CallContext, stream: ServerStream[Int64Value, Int64Value]) -> Int64Value:
        """Add up, slowly."""
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
    return Server([service]), f"unix://{folder}/slow.sock"


def test_a_handler_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    """Its inbox is full for longer than a handler's may be that takes nothing."""
    server, address = serving(tmp_path)
    began = time.monotonic()
    with server:
        server.listen(address)
        with connect(address) as client, client.open(SUM, timeout_s=PATIENCE_S) as stream:
            for _ in range(1000):
                stream.send(Int64Value(value=1))
            answer = stream.close_and_recv()

    assert 1000 == answer.value
    assert time.monotonic() - began > STALL_S + 0.5


def test_a_reader_that_goes_on_keeps_its_stream(tmp_path: Path) -> None:
    """Though others call on the connection all the time."""
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
            began = time.monotonic()
            received = []
            for message in client.open(COUNT, Int64Value(value=20_000)):
                received.append(message.value)
                if not len(received) % 50:
                    time.sleep(0.005)
            took = time.monotonic() - began
            done.set()
            other.join()

    assert list(range(20_000)) == received
    assert took > STALL_S + 0.5


def test_a_task_that_goes_on_keeps_its_stream(tmp_path: Path) -> None:
    """The same with asyncio."""
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
                    await asyncio.sleep(0.005)
            other.cancel()
            return received

    with server:
        server.listen(address)
        received = asyncio.run(main())

    assert list(range(20_000)) == received
