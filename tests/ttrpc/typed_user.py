"""What authors write with generated modules, to be type-checked and run: each kind of method in both styles."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

from google.protobuf.empty_pb2 import Empty

from shim import ttrpc
from shim.api import streaming_ttrpc, task_v3_pb2, task_v3_ttrpc
from shim.ttrpc import aio
from tests.protos import conformance_pb2 as pb
from tests.protos import conformance_ttrpc as conformance


class Blocking(conformance.ConformanceService):
    """One method of each kind; the rest is left to the class above."""

    def echo(self, context: ttrpc.CallContext, request: pb.Payload) -> pb.Payload:
        return pb.Payload(seq=request.seq + 1, data=context.method.encode())

    def sleep(self, _context: ttrpc.CallContext, _nap: pb.Nap) -> ttrpc.Deferred:
        return ttrpc.Deferred()

    def divide(self, context: ttrpc.CallContext, request: pb.Total) -> Iterator[pb.Part]:
        for number in range(request.count):
            yield pb.Part(value=request.sum * number + len(context.metadata))

    def sum(self, context: ttrpc.CallContext, stream: ttrpc.ServerStream[pb.Part, pb.Total]) -> pb.Total:
        return pb.Total(sum=sum(part.value for part in stream))

    def echo_stream(
        self, context: ttrpc.CallContext, stream: ttrpc.ServerStream[pb.Payload, pb.Payload]
    ) -> Iterable[pb.Payload]:
        return (pb.Payload(seq=payload.seq) for payload in stream)

    def echo_null_stream(self, context: ttrpc.CallContext, stream: ttrpc.ServerStream[pb.Payload, Empty]) -> None:
        while stream.recv() is not None:
            stream.send(Empty())


class Asynchronous(conformance.AsyncConformanceService):
    """The same for asyncio."""

    async def echo(self, context: ttrpc.CallContext, request: pb.Payload) -> pb.Payload:
        return pb.Payload(seq=request.seq + 1)

    async def divide(self, context: ttrpc.CallContext, request: pb.Total) -> AsyncIterator[pb.Part]:
        for number in range(request.count):
            yield pb.Part(value=request.sum * number + len(context.metadata))

    async def sum(self, context: ttrpc.CallContext, stream: aio.ServerStream[pb.Part, pb.Total]) -> pb.Total:
        return pb.Total(sum=sum([part.value async for part in stream]))

    async def echo_stream(
        self, context: ttrpc.CallContext, stream: aio.ServerStream[pb.Payload, pb.Payload]
    ) -> AsyncIterator[pb.Payload]:
        async for payload in stream:
            yield payload

    async def echo_null_stream(self, context: ttrpc.CallContext, stream: aio.ServerStream[pb.Payload, Empty]) -> None:
        while await stream.recv() is not None:
            await stream.send(Empty())


def make_services(implementation: Blocking | Asynchronous) -> list[ttrpc.Service]:
    """Return what a server registers: the implementation, and services of which every rpc is left out."""
    return [
        conformance.conformance_service(
            implementation, inline={"Echo"} if isinstance(implementation, Blocking) else ()
        ),
        task_v3_ttrpc.task_service(task_v3_ttrpc.TaskService()),
        streaming_ttrpc.streaming_service(streaming_ttrpc.StreamingService()),
    ]


def call(client: ttrpc.Client) -> list[int]:
    """Return what each kind of method answers."""
    stub = conformance.ConformanceClient(client)
    answers = [stub.echo(pb.Payload(seq=1), timeout_s=9.5, metadata={"key": "value"}).seq]
    answers += [part.value for part in stub.divide(pb.Total(sum=5, count=2), metadata=[("key", "value")])]
    with stub.sum() as adding:
        adding.send(pb.Part(value=6))
        adding.send(pb.Part(value=7))
        answers.append(adding.close_and_recv().sum)
    with stub.echo_stream(timeout_s=9) as echoing:
        echoing.send(pb.Payload(seq=8))
        answer = echoing.recv()
        answers.append(answer.seq if answer is not None else -1)
        echoing.close_send()
    with stub.echo_null_stream() as nulls:
        nulls.send(pb.Payload())
        nulls.close_send()
        answers.append(len([null.ByteSize() for null in nulls]))
    return answers


async def call_from_asyncio(client: aio.Client) -> list[int]:
    """Return the same."""
    stub = conformance.AsyncConformanceClient(client)
    answers = [(await stub.echo(pb.Payload(seq=1), timeout_s=9.5, metadata={"key": "value"})).seq]
    stream = await stub.divide(pb.Total(sum=5, count=2), metadata=[("key", "value")])
    answers += [part.value async for part in stream]
    async with await stub.sum() as adding:
        await adding.send(pb.Part(value=6))
        await adding.send(pb.Part(value=7))
        answers.append((await adding.close_and_recv()).sum)
    async with await stub.echo_stream(timeout_s=9) as echoing:
        await echoing.send(pb.Payload(seq=8))
        answer = await echoing.recv()
        answers.append(answer.seq if answer is not None else -1)
        await echoing.close_send()
    async with await stub.echo_null_stream() as nulls:
        await nulls.send(pb.Payload())
        await nulls.close_send()
        answers.append(len([null.ByteSize() async for null in nulls]))
    return answers


def call_what_is_left_out(client: ttrpc.Client) -> Iterator[Callable[[], object]]:
    """Yield calls of rpcs of each kind that nobody implements."""
    task, streaming = task_v3_ttrpc.TaskClient(client), streaming_ttrpc.StreamingClient(client)
    stub = conformance.ConformanceClient(client)
    yield lambda: task.state(task_v3_pb2.StateRequest(id="c1"))
    yield lambda: client.call(task_v3_ttrpc.TaskRpcs.WAIT, task_v3_pb2.WaitRequest()).exit_status
    yield lambda: streaming.stream().recv()
    yield lambda: stub.echo_null().close_and_recv()
    yield lambda: stub.fail_stream(pb.Failure()).recv()


async def call_what_is_left_out_from_asyncio(client: aio.Client) -> AsyncIterator[Awaitable[object]]:
    """Yield calls of rpcs of each kind that nobody implements."""
    stub = conformance.AsyncConformanceClient(client)
    yield stub.fail(pb.Failure())
    async with await stub.echo_null() as null:
        yield null.close_and_recv()
    async with await stub.fail_stream(pb.Failure()) as failing:
        yield failing.recv()
    async with await stub.echo_stream() as echoing:
        yield echoing.recv()


def mistake(client: ttrpc.Client) -> None:
    """Send an rpc another one's message."""
    conformance.ConformanceClient(client).divide(pb.Part())  # type: ignore[arg-type]
