"""Faults of one call, of one callback or of one thread, and what goes on all the same."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import UninterpretedOption
from google.protobuf.wrappers_pb2 import BytesValue

from shim.ttrpc import CallContext, Client, Code, Deferred, Kind, Method, Rpc, RpcError, Server, Service, aio, connect
from shim.ttrpc._frame import RESPONSE, FrameReader, encode_frame
from shim.ttrpc.pool import WorkerPool
from tests.fakes import PATIENCE_S, wait_until

NAME = "test.v1.Faults"
FAULTS: list[tuple[str, BaseException]] = []


def rpc(name: str, kind: Kind = Kind.UNARY) -> Rpc[BytesValue, BytesValue]:
    """Return an rpc of the service."""
    return Rpc(NAME, name, BytesValue, BytesValue, kind)


def echo(context: CallContext, request: BytesValue) -> BytesValue:
    """Return the request."""
    return request


@contextmanager
def serving(
    folder: Path,
    *methods: Method,
    on_fault: Callable[[str, BaseException], None] = lambda *fault: FAULTS.append(fault),
) -> Iterator[Client]:
    """A client of a server with these methods, and an inline Echo."""
    FAULTS.clear()
    everything = [*methods, Method("Echo", BytesValue, BytesValue, echo, is_inline=True)]
    with Server([Service(NAME, {method.name: method for method in everything})], on_fault=on_fault) as server:
        server.listen(f"unix://{folder}/sock")
        with connect(f"unix://{folder}/sock") as client:
            yield client


def inline(name: str, handler: Callable[[CallContext, BytesValue], Any]) -> Method:
    """Return a method that the loop runs itself."""
    return Method(name, BytesValue, BytesValue, handler, is_inline=True)


def threaded(name: str, handler: Callable[[CallContext, BytesValue], Any]) -> Method:
    """Return a method that a thread runs."""
    return Method(name, BytesValue, BytesValue, handler)


def is_served(client: Client) -> bool:
    """Return whether the server still answers."""
    request = BytesValue(value=b"x")
    return client.call(rpc("Echo"), request, timeout_s=PATIENCE_S) == request


def test_an_answer_that_comes_later_behind_large_ones_does_not_stop_the_loop(tmp_path: Path) -> None:
    """It leaves no frame, and an empty one would never be sent."""
    waiting: list[Deferred] = []

    def wait(context: CallContext, request: BytesValue) -> Deferred:
        waiting.append(Deferred())
        return waiting[-1]

    big = inline("Big", lambda context, request: BytesValue(value=bytes(40_000)))
    with serving(tmp_path, big, inline("Wait", wait)) as client:
        # Requests of one write arrive in one read.
        frames = [client._link._connection.send_request(rpc(name).head, b"")[1] for name in ("Big", "Big", "Wait")]
        client._link._sock.sendall(b"".join(frames))

        assert wait_until(lambda: waiting)
        assert is_served(client)


def test_a_callback_that_raises_spoils_nothing(tmp_path: Path) -> None:
    """Neither the answer, nor the other callbacks, nor other calls."""
    called: list[str] = []

    def handler(context: CallContext, request: BytesValue) -> BytesValue:
        context.on_cancel(lambda: 1 / 0)
        context.on_cancel(lambda: called.append("second"))
        return request

    with serving(tmp_path, inline("Quick", handler), threaded("Slow", handler)) as client:
        for name in ("Quick", "Slow"):
            assert BytesValue() == client.call(rpc(name), BytesValue(), timeout_s=PATIENCE_S)
        assert BytesValue() == client.call(rpc("Quick"), BytesValue(), timeout_s=None)
        assert is_served(client)

    assert ["second"] * 3 == called
    assert [ZeroDivisionError] * 3 == [type(error) for _, error in FAULTS]


@pytest.mark.parametrize("make", [inline, threaded])
def test_an_answer_that_cannot_be_encoded_is_answered(make: Callable[..., Method], tmp_path: Path) -> None:
    """Protobuf 2 has required fields."""
    method = make("Lacks", lambda context, request: UninterpretedOption.NamePart())
    method.response = UninterpretedOption.NamePart
    with serving(tmp_path, method) as client:
        with pytest.raises(RpcError, match="required"):
            client.call(rpc("Lacks"), BytesValue(), timeout_s=PATIENCE_S)

        assert is_served(client)


@pytest.mark.parametrize("make", [inline, threaded])
def test_a_hook_that_raises_does_not_keep_the_answer(make: Callable[..., Method], tmp_path: Path) -> None:
    """Nor does it end the server's thread."""

    def fail(context: CallContext, request: BytesValue) -> None:
        raise KeyError("bug")

    def on_fault(where: str, error: BaseException) -> None:
        raise OSError("disk full")

    with serving(tmp_path, make("Fail", fail), on_fault=on_fault) as client:
        with pytest.raises(RpcError, match="bug") as caught:
            client.call(rpc("Fail"), BytesValue(), timeout_s=PATIENCE_S)

        assert Code.UNKNOWN == caught.value.code
        assert is_served(client)


def test_an_error_that_cannot_say_what_it_is_is_answered(tmp_path: Path) -> None:
    """By its type's name."""

    class OddError(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    def fail(context: CallContext, request: BytesValue) -> None:
        raise OddError

    with serving(tmp_path, threaded("Fail", fail)) as client, pytest.raises(RpcError, match="OddError"):
        client.call(rpc("Fail"), BytesValue(), timeout_s=PATIENCE_S)


def test_an_answer_put_off_after_the_deadline_is_abandoned(tmp_path: Path) -> None:
    """Its maker must hear that nobody waits, although it was made too late."""
    gate = threading.Event()
    abandoned = threading.Event()

    def late(context: CallContext, request: BytesValue) -> Deferred:
        assert gate.wait(PATIENCE_S)
        deferred = Deferred()
        deferred.on_abandoned = abandoned.set
        return deferred

    with serving(tmp_path, threaded("Late", late)) as client:
        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
            client.call(rpc("Late"), BytesValue(), timeout_s=0.05)
        assert is_served(client)
        gate.set()

        assert abandoned.wait(PATIENCE_S)


def test_a_job_is_done_though_no_second_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the thread that is there."""
    errors: list[Exception] = []
    pool = WorkerPool(errors.append, idle_s=0.02)
    begun, gate = threading.Event(), threading.Event()
    done: list[int] = []

    def first() -> None:
        begun.set()
        gate.wait(PATIENCE_S)

    pool.submit(first)
    assert begun.wait(PATIENCE_S)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "worker":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for number in range(3):
        pool.submit(partial(done.append, number))
    gate.set()

    assert wait_until(lambda: len(done) == 3)
    assert wait_until(lambda: pool.threads == 0)


def test_a_call_that_has_its_answer_does_not_go_on_sending_for_others(tmp_path: Path) -> None:
    """The server reads what is left of other calls much later, or never."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client = Client(ours)
    answers: dict[str, BytesValue] = {}

    def call(name: str, size: int) -> None:
        try:
            answers[name] = client.call(rpc(name), BytesValue(value=bytes(size)), timeout_s=PATIENCE_S)
        except Exception:
            answers[name] = BytesValue(value=b"failed")

    first = threading.Thread(target=call, args=("First", 500_000))
    first.start()
    assert wait_until(lambda: client._link._pending)
    second = threading.Thread(target=call, args=("Second", 500_000))
    second.start()
    assert wait_until(lambda: len(client._link._pending) == 2)
    reader = FrameReader()
    while not reader.feed(theirs.recv(4096)):
        pass
    theirs.sendall(encode_frame(1, RESPONSE, 0, b""))

    assert wait_until(lambda: answers.get("First") == BytesValue())
    client.close()
    first.join()
    second.join()
    theirs.close()


def test_a_partial_of_a_coroutine_function_is_a_coroutine_function(tmp_path: Path) -> None:
    """It gets the stream that can be awaited, and does not stop the loop."""

    async def total(factor: int, context: CallContext, stream: Any) -> BytesValue:
        return BytesValue(value=b"".join([message.value async for message in stream]) * factor)

    method = Method("Sum", BytesValue, BytesValue, partial(total, 2), kind=Kind.CLIENT_STREAM)

    async def main() -> BytesValue:
        async with aio.Server([Service(NAME, {"Sum": method})]) as server:
            server.listen(f"unix://{tmp_path}/aio")
            async with (
                await aio.connect(f"unix://{tmp_path}/aio") as client,
                await client.open(rpc("Sum", Kind.CLIENT_STREAM)) as stream,
            ):
                await stream.send(BytesValue(value=b"ab"))
                return await stream.close_and_recv()

    assert BytesValue(value=b"abab") == asyncio.run(main())


def test_an_interceptor_may_answer_for_a_coroutine(tmp_path: Path) -> None:
    """Without calling it."""

    async def handler(context: CallContext, request: BytesValue) -> BytesValue:
        raise AssertionError("called")

    methods = {
        name: Method(name, BytesValue, BytesValue, handler, is_inline=name == "Inline") for name in ("Task", "Inline")
    }

    async def main() -> list[bytes]:
        server = aio.Server([Service(NAME, methods)], interceptors=[lambda *_: BytesValue(value=b"early")])
        async with server:
            server.listen(f"unix://{tmp_path}/aio")
            async with await aio.connect(f"unix://{tmp_path}/aio") as client:
                return [(await client.call(rpc(name), BytesValue(), timeout_s=PATIENCE_S)).value for name in methods]

    assert [b"early", b"early"] == asyncio.run(main())
