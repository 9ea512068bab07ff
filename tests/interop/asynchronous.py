"""The cases of the asyncio client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from google.protobuf.empty_pb2 import Empty

from shim.ttrpc import Code, aio
from shim.ttrpc.aio import Client, ClientStream
from tests.interop import conformance as c
from tests.interop.outcome import Outcome, describe
from tests.protos.conformance_pb2 import Failure, Nap, Part, Payload, Size, Total


async def attempt(address: str, name: str) -> Outcome:
    """Run one case."""
    outcome = Outcome(name)
    try:
        async with await aio.connect(address, timeout_s=10) as client:
            try:
                await getattr(Cases(client, outcome), name)()
            except Exception as error:
                outcome.fail(error)
            outcome.alive = (await client.call(c.ECHO, c.payload(7), timeout_s=10)).seq == 8
    except Exception as error:
        if not outcome.code:
            outcome.fail(error)
    return outcome


class Cases:
    """What a client does, case by case."""

    def __init__(self, client: Client, outcome: Outcome) -> None:
        self._client = client
        self._outcome = outcome

    async def echo_empty(self) -> None:
        await self._echo(c.payload(0))

    async def echo_64(self) -> None:
        await self._echo(c.payload(1, 64))

    async def echo_1m(self) -> None:
        await self._echo(c.payload(1, 1 << 20))

    async def echo_max(self) -> None:
        await self._echo(c.payload(1, c.REQUEST_MAX))

    async def request_too_large(self) -> None:
        await self._echo(c.payload(1, c.REQUEST_MAX + 1))

    async def _echo(self, request: Payload, timeout_s: float | None = None) -> None:
        self._outcome.count_sent(request)
        answer = self._outcome.count_received(await self._client.call(c.ECHO, request, timeout_s=timeout_s))
        self._outcome.expect_echo(request, answer)

    async def echo_stream(self) -> None:
        await self._ping_pong([c.payload(i, i) for i in range(50)])

    async def echo_stream_max(self) -> None:
        await self._ping_pong([c.payload(1, c.MESSAGE_MAX)])

    async def _ping_pong(self, requests: Iterable[Payload]) -> None:
        async with await self._client.open(c.ECHO_STREAM) as stream:
            for request in requests:
                await self._ping(stream, request)
            await self._end(stream)

    async def _ping(self, stream: ClientStream[Payload, Payload], request: Payload) -> None:
        await stream.send(request)
        self._outcome.count_sent(request)
        self._outcome.expect_echo(request, self._outcome.count_received(await stream.recv()))

    async def _end(self, stream: ClientStream[Payload, Payload]) -> None:
        await stream.close_send()
        self._outcome.expect_end(await stream.recv())

    async def echo_stream_unread(self) -> None:
        """Send all before the first answer is read."""
        requests = [c.payload(i, 1000) for i in range(60)]
        async with await self._client.open(c.ECHO_STREAM) as stream:
            for request in requests:
                await stream.send(self._outcome.count_sent(request))
            await stream.close_send()
            await self._read_echo(stream, requests)

    async def echo_stream_bulk(self) -> None:
        """Send and read 16 MiB at the same time."""
        requests = [c.payload(i, 256 << 10) for i in range(64)]
        async with await self._client.open(c.ECHO_STREAM) as stream:

            async def send() -> None:
                for request in requests:
                    await stream.send(self._outcome.count_sent(request))
                await stream.close_send()

            sending = asyncio.create_task(send())
            await self._read_echo(stream, requests)
            await sending

    async def _read_echo(self, stream: ClientStream[Payload, Payload], requests: Iterable[Payload]) -> None:
        for request in requests:
            self._outcome.expect_echo(request, self._outcome.count_received(await stream.recv()))
        self._outcome.expect_end(await stream.recv())

    async def echo_stream_stalled(self) -> None:
        """Call while a stream that nobody reads has filled both directions."""
        async with await self._client.open(c.ECHO_STREAM) as stream:

            async def send() -> None:
                for i in range(5000):
                    await stream.send(c.payload(i, 5000))

            sending = asyncio.create_task(send())
            await asyncio.sleep(0.3)
            await self._echo(c.payload(1, 64), timeout_s=10)
        await asyncio.gather(sending, return_exceptions=True)

    async def stream_message_too_large(self) -> None:
        async with await self._client.open(c.ECHO_STREAM) as stream:
            await self._ping(stream, c.payload(1))
            try:
                await stream.send(c.payload(2, c.MESSAGE_MAX + 1))
            except Exception as error:
                self._outcome.statuses.append((describe(error)[0], ""))
            await self._ping(stream, c.payload(3))
            await self._end(stream)

    async def sum(self) -> None:
        await self._sum(c.parts_to_sum(202))

    async def sum_none(self) -> None:
        await self._sum([])

    async def _sum(self, parts: list[Part]) -> None:
        async with await self._client.open(c.SUM) as stream:
            for part in parts:
                await stream.send(self._outcome.count_sent(part))
            self._outcome.expect(c.sum_up(parts), self._outcome.count_received(await stream.close_and_recv()))

    async def divide(self) -> None:
        await self._divide(30)

    async def divide_none(self) -> None:
        await self._divide(0)

    async def divide_backlog(self) -> None:
        await self._divide(5000, pause_s=0.3)

    async def _divide(self, count: int, pause_s: float = 0) -> None:
        request = self._outcome.count_sent(Total(sum=1000003, count=count))
        async with await self._client.open(c.DIVIDE, request) as stream:
            await asyncio.sleep(pause_s)
            for expected in c.divide(request):
                self._outcome.expect(expected, self._outcome.count_received(await stream.recv()))
            self._outcome.expect_end(await stream.recv())

    async def echo_null(self) -> None:
        async with await self._client.open(c.ECHO_NULL) as stream:
            for i in range(100):
                await stream.send(self._outcome.count_sent(c.payload(i, 16)))
            self._outcome.count_received(await stream.close_and_recv())

    async def echo_null_stream(self) -> None:
        async with await self._client.open(c.ECHO_NULL_STREAM) as stream:

            async def send() -> None:
                for i in range(100):
                    await stream.send(self._outcome.count_sent(c.payload(i, 16)))
                await stream.close_send()

            sending = asyncio.create_task(send())
            for _ in range(100):
                self._outcome.count_received(await stream.recv())
            await sending
            self._outcome.expect_end(await stream.recv())

    async def empty_request(self) -> None:
        async with await self._client.open(c.EMPTY_REQUEST, self._outcome.count_sent(Empty())) as stream:
            for seq in range(2):
                self._outcome.expect(c.payload(seq), self._outcome.count_received(await stream.recv()))
            self._outcome.expect_end(await stream.recv())

    async def fail(self) -> None:
        for code in range(1, 17):
            request = self._outcome.count_sent(Failure(code=code, message=f"reason {code} ü"))
            try:
                await self._client.call(c.FAIL, request)
            except Exception as error:
                self._outcome.statuses.append(describe(error))

    async def fail_unknown_code(self) -> None:
        await self._client.call(c.FAIL, self._outcome.count_sent(Failure(code=99, message="unheard of")))

    async def fail_stream(self) -> None:
        await self._fail_stream(Code.NOT_FOUND, 5)

    async def fail_stream_at_once(self) -> None:
        await self._fail_stream(Code.FAILED_PRECONDITION, 0)

    async def _fail_stream(self, code: int, after: int) -> None:
        request = self._outcome.count_sent(Failure(code=code, message="no more", after=after))
        async with await self._client.open(c.FAIL_STREAM, request) as stream:
            for value in range(1, after + 1):
                self._outcome.expect(Part(value=value), self._outcome.count_received(await stream.recv()))
            self._outcome.expect_end(await stream.recv())

    async def sleep(self) -> None:
        await self._sleep(50, timeout_s=10)

    async def sleep_deadline(self) -> None:
        """Stay until a late answer would have come."""
        began = time.monotonic()
        try:
            await self._sleep(1000, timeout_s=0.2)
        finally:
            took = time.monotonic() - began
            if took > 0.9:
                self._outcome.problems.append(f"the deadline came after {took:.3f} s")
            await asyncio.sleep(max(0, 1.2 - took))

    async def _sleep(self, milliseconds: int, timeout_s: float) -> None:
        request = self._outcome.count_sent(Nap(milliseconds=milliseconds))
        self._outcome.count_received(await self._client.call(c.SLEEP, request, timeout_s=timeout_s))

    async def unknown_service(self) -> None:
        await self._raw("shim.conformance.v1.Nothing", "Echo")

    async def unknown_method(self) -> None:
        await self._raw(c.SERVICE, "Nothing")

    async def _raw(self, service: str, method: str) -> None:
        request = self._outcome.count_sent(c.payload(1))
        await self._client.call_raw(service, method, request.SerializeToString())

    async def unknown_stream(self) -> None:
        async with await self._client.open(c.NOTHING_STREAM, self._outcome.count_sent(c.payload(1))) as stream:
            self._outcome.expect_end(await stream.recv())

    async def metadata(self) -> None:
        request = self._outcome.count_sent(Empty())
        answer = self._outcome.count_received(await self._client.call(c.METADATA, request, metadata=c.SENT_METADATA))
        self._outcome.pairs = [(pair.key, pair.value) for pair in answer.pairs]

    async def blob_max(self) -> None:
        await self._blob(c.RESPONSE_MAX)

    async def blob_too_large(self) -> None:
        await self._blob(c.RESPONSE_MAX + 3)

    async def _blob(self, size: int) -> None:
        request = self._outcome.count_sent(Size(bytes=size))
        self._outcome.expect(c.payload(0, size), self._outcome.count_received(await self._client.call(c.BLOB, request)))

    async def concurrent_calls(self) -> None:
        await self._concurrently(64, lambda i: self._echo(c.payload(i, i * 1000)))

    async def large_calls(self) -> None:
        """Fill both directions of the socket."""

        async def echo_20(i: int) -> None:
            for _ in range(20):
                await self._echo(c.payload(i, 200_000))

        await self._concurrently(8, echo_20)

    async def concurrent_streams(self) -> None:
        await self._concurrently(10, lambda i: self._ping_pong([c.payload(n, n * 100 * i) for n in range(20)]))

    async def _concurrently(self, count: int, run: Callable[[int], Awaitable[None]]) -> None:
        await asyncio.gather(*[run(i) for i in range(count)])

    async def abandoned(self) -> None:
        """Leave a stream while its answers arrive."""
        async with await self._client.open(c.DIVIDE, self._outcome.count_sent(Total(sum=1000003, count=50))) as stream:
            for _ in range(2):
                self._outcome.count_received(await stream.recv())

    async def abandoned_bidi(self) -> None:
        """Leave a stream that the server still waits on."""
        async with await self._client.open(c.ECHO_STREAM) as stream:
            for i in range(3):
                await self._ping(stream, c.payload(i))
