"""Whatever handlers do is contained to their call: what they raise, return and hold up."""

import asyncio
import concurrent.futures
import time
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from shim.ttrpc import CallContext, Deferred, Kind, Method, Rpc, RpcError, Service
from shim.ttrpc._frame import MAX_BODY
from tests.fakes import wait_until
from tests.protos.conformance_pb2 import Failure, Part, Payload, Size, Total
from tests.protos.conformance_ttrpc import ConformanceRpcs as Rpcs
from tests.ttrpc.conformance.conftest import Connect
from tests.ttrpc.conformance.ends import BlockingEnd, End
from tests.ttrpc.conformance.scene import FAIL, HOLD, WAIT
from tests.ttrpc.conformance.servers import ServerEnd

INLINE = ("Fail", "Blob", "Echo")
Serve = Callable[..., ServerEnd]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("bug"), 2, "bug"),
        (RpcError(0, "said OK"), 2, "said OK"),
        (AssertionError(), 2, "AssertionError"),
        (BaseException("base"), 2, "base"),
        (SystemExit(5), 2, "5"),
        (KeyboardInterrupt(), 2, "KeyboardInterrupt"),
        (GeneratorExit(), 2, "GeneratorExit"),
        (StopIteration(3), 2, None),
        (StopAsyncIteration(3), 2, None),
        (RecursionError("deep"), 2, "deep"),
        (MemoryError(), 2, "MemoryError"),
        (asyncio.CancelledError(), None, None),
        (concurrent.futures.CancelledError(), 2, None),
        (ValueError("\udcff"), 2, "?"),
        (ValueError("x" * (MAX_BODY + 1)), 2, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
@pytest.mark.parametrize("inline", [(), INLINE], ids=["", "inline"])
def test_whatever_a_handler_raises_is_a_status(
    serve: Serve, inline: tuple[str, ...], error: BaseException, code: int | None, text: str | None
) -> None:
    """Table 3.1, handler panics: a status without a traceback, twice; the connection, the loop and the pool go on.

    A coroutine's CancelledError is CANCELED: that is how coroutines say so.
    """
    server = serve(inline=inline)
    client = BlockingEnd(server.address)
    server.scene.error = error
    codes = {code} if code is not None else {1, 2}
    for _ in range(2):
        with pytest.raises(RpcError) as caught:
            client.call(Rpcs.FAIL, Failure())
        assert caught.value.code in codes
        assert text in (caught.value.message, None)
        assert "Traceback" not in caught.value.message
        stream = client.open(Rpcs.FAIL_STREAM, Failure(after=1))
        assert Part(value=1) == stream.recv()
        with pytest.raises(RpcError) as caught:
            stream.recv()
        assert caught.value.code in codes
    bidi = client.open(Rpcs.ECHO_STREAM)
    bidi.send(FAIL)
    with pytest.raises(RpcError):
        bidi.recv()

    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    assert 0 == server.calls
    is_bug = not isinstance(error, RpcError | asyncio.CancelledError)
    assert is_bug <= bool(server.faults)
    client.close()
    assert {"Fail", "FailStream", "EchoStream"} >= {method.rpartition("/")[2] for method, _ in server.faults}


@pytest.mark.parametrize("answer", [Empty(), b"bytes", "text", 5, Payload, [Payload()], {}])
@pytest.mark.parametrize("inline", [(), INLINE], ids=["", "inline"])
def test_wrong_return_type(serve: Serve, inline: tuple[str, ...], answer: object) -> None:
    """Table 3.1, handler returns nothing, or something else: INTERNAL that names the method and both types."""
    server = serve(inline=inline)
    client = BlockingEnd(server.address)
    server.scene.answer = answer
    with pytest.raises(RpcError) as caught:
        client.call(Rpcs.BLOB, Size())

    wanted = f"method Blob returned {type(answer).__name__}, not shim.conformance.v1.Payload"
    assert (13, wanted) == (caught.value.code, caught.value.message)
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    client.close()


@pytest.mark.parametrize("inline", [(), INLINE], ids=["", "inline"])
def test_four_mebibytes_to_the_byte(serve: Serve, connect: Connect, inline: tuple[str, ...]) -> None:
    """Go TestOversizeCall, and 8.4: exactly 4 MiB of frame go in either direction, one byte more costs its call alone.

    An answer that is too large is RESOURCE_EXHAUSTED in its place (T2: the frame would end a Go 1.1 client).
    """
    client = connect(serve(inline=inline).address)
    fits = MAX_BODY - 5 - 5  # the envelope's tag and length, and the message's
    assert fits == len(client.call(Rpcs.BLOB, Size(bytes=fits)).data)
    for size in (fits + 1, 5 << 20):
        with pytest.raises(RpcError, match=r"Blob: RESOURCE_EXHAUSTED: message length \d+ exceed maximum"):
            client.call(Rpcs.BLOB, Size(bytes=size))

    stream = client.open(Rpcs.ECHO_STREAM)
    stream.send(Payload(data=bytes(MAX_BODY - 5 - 2)))
    received = stream.recv()
    assert received is not None
    assert MAX_BODY - 7 == len(received.data)
    with pytest.raises(RpcError, match="EchoStream: RESOURCE_EXHAUSTED"):
        stream.send(Payload(data=bytes(MAX_BODY - 4)))
    stream.send(Payload(seq=1))
    assert Payload(seq=2) == stream.recv()
    stream.cancel()

    largest = MAX_BODY - len(Rpcs.ECHO.head) - 5 - 5
    assert largest == len(client.start(Rpcs.ECHO, Payload(data=bytes(largest))).result().data)  # a timeout takes room
    with pytest.raises(RpcError, match=f"Echo: RESOURCE_EXHAUSTED: message length {MAX_BODY + 1} exceed maximum"):
        client.start(Rpcs.ECHO, Payload(data=bytes(largest + 1))).result()
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())


def test_a_streams_message_that_is_too_large_ends_it(client: End, server: ServerEnd) -> None:
    """8.4: the handler's send raises RESOURCE_EXHAUSTED, which ends the call; what was sent before is there."""
    stream = client.open(Rpcs.ECHO_STREAM)
    stream.send(Payload(seq=5))
    stream.send(Payload(data=bytes(MAX_BODY - 5)))
    assert Payload(seq=6) == stream.recv()
    with pytest.raises(RpcError, match="RESOURCE_EXHAUSTED: message length"):
        stream.recv()

    assert wait_until(lambda: server.scene.ended == ["EchoStream"])


def test_a_handler_that_blocks_holds_up_no_other_connection(serve: Serve, connect: Connect, style: str) -> None:
    """8.4, handler blocks the loop: in a thread it does not; in a coroutine it does, and the server lives on after."""
    server = serve()
    client, other = connect(server.address), connect(server.address)
    blocked = client.start(Rpcs.SLEEP, HOLD)
    assert wait_until(lambda: len(server.scene.contexts) == 1)
    assert Payload(seq=1) == other.call(Rpcs.ECHO, Payload())
    if style == "coroutines":
        server.server.loop.call_soon(lambda: time.sleep(0.1))
    assert Payload(seq=1) == other.call(Rpcs.ECHO, Payload())
    server.scene.gate.open()

    assert Empty() == blocked.result()


def test_deferred_answers(serve: Serve, connect: Connect, style: str) -> None:
    """Resolved, failed, of the wrong type, twice, before it is returned: each is answered once."""
    server = serve()
    made: list[Deferred] = []

    def defer(context: CallContext, request: Size) -> Deferred:
        deferred = Deferred()
        if request.bytes == 1:
            deferred.resolve(Payload(seq=1))
        made.append(deferred)
        return deferred

    rpc = Rpc("test.Deferring", "Get", Size, Payload)
    server.on_loop(
        lambda: server.server.register(Service("test.Deferring", {"Get": Method("Get", Size, Payload, defer)}))
    )
    client = connect(server.address)
    assert Payload(seq=1) == client.call(rpc, Size(bytes=1))
    calls = [client.start(rpc, Size()) for _ in range(3)]
    assert wait_until(lambda: len(made) == 4)
    made[1].resolve(Payload(seq=2))
    made[1].fail(ValueError("late"))
    made[2].fail(FileNotFoundError("none"))
    made[2].resolve(Payload())
    made[3].resolve(Empty())
    answers: list[object] = []
    for call in calls:
        try:
            answers.append(call.result().seq)
        except RpcError as error:
            answers.append(int(error.code))

    assert [2, 5, 13] == sorted(answers, key=str) or {2, 5, 13} == set(answers)


def test_five_hundred_waits_delay_nobody(client: End, server: ServerEnd) -> None:
    """8.4, long polls, deadlock H: 500 calls wait, on one connection; a quick one is answered at once."""
    calls = client.begin(lambda: client.call_all(Rpcs.SLEEP, [WAIT] * 500, workers=500))
    assert wait_until(lambda: len(server.scene.contexts) == 500)
    began = time.monotonic()
    assert [Payload(seq=1)] * 20 == [client.call(Rpcs.ECHO, Payload()) for _ in range(20)]
    assert time.monotonic() - began < 5
    assert server.server.pool.threads < 30
    server.scene.finish()

    assert [Empty()] * 500 == calls.result()
    assert wait_until(lambda: (client.active, server.calls) == (0, 0))


def test_services_may_be_registered_while_serving(server: ServerEnd, connect: Connect) -> None:
    """8.4, register after serve: found by the next call; the same name again is an error."""
    client = connect(server.address)
    rpc = Rpc("test.Late", "Get", Size, Payload)
    with pytest.raises(RpcError, match=r"UNIMPLEMENTED: service test\.Late"):
        client.call(rpc, Size())

    def get(context: CallContext, request: Size) -> Payload:
        return Payload(seq=request.bytes)

    service = Service("test.Late", {"Get": Method("Get", Size, Payload, get)})
    server.on_loop(lambda: server.server.register(service))
    assert Payload(seq=7) == client.call(rpc, Size(bytes=7))
    with pytest.raises(ValueError, match=r"duplicate service test\.Late registered"):
        server.server.register(service)
    with pytest.raises(RpcError, match="UNIMPLEMENTED: method Other"):
        client.call(Rpc("test.Late", "Other", Size, Payload), Size())


@pytest.mark.parametrize("result", [5, None, [Empty()], "text"])
def test_streams_of_something_else(server: ServerEnd, connect: Connect, result: Any) -> None:
    """A stream's handler that returns no stream, or other messages, fails its call alone; None is an empty one."""
    client = connect(server.address)
    rpc = Rpc("test.Odd", "Get", Size, Part, Kind.SERVER_STREAM)
    method = Method("Get", Size, Part, lambda _context, _request: result, kind=Kind.SERVER_STREAM)
    server.on_loop(lambda: server.server.register(Service("test.Odd", {"Get": method})))
    stream = client.open(rpc, Size())
    if result is None:
        assert [] == stream.rest()
    else:
        with pytest.raises(RpcError):
            stream.recv()
    server.faults.clear()

    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())


def test_coroutines_that_return_instead_of_yielding(connect: Connect, address: str) -> None:
    """What such a handler of a stream returns is not lost in silence: it is an error that names the method."""
    server = ServerEnd("coroutines", address)

    async def get(context: CallContext, request: Size) -> list[Part]:
        return [Part()]

    method = Method("Get", Size, Part, get, kind=Kind.SERVER_STREAM)
    server.on_loop(lambda: server.server.register(Service("test.Odd", {"Get": method})))
    stream = connect(address).open(Rpc("test.Odd", "Get", Size, Part, Kind.SERVER_STREAM), Size())
    with pytest.raises(RpcError, match=r"INTERNAL: test\.Odd/Get returned list"):
        stream.recv()
    server.dispose()


def test_generators_are_closed_when_nobody_listens(client: End, server: ServerEnd) -> None:
    """A generator that is left half way runs its `finally`: on a deadline, as on the end of the connection."""
    stream = client.open(Rpcs.DIVIDE, Total(sum=1, count=1 << 40), timeout_s=0.05)
    with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
        stream.rest()

    assert wait_until(lambda: server.scene.ended == ["Divide"])


def test_blocking_server_refuses_coroutine_functions(address: str) -> None:
    """It could not run them, and says so when they are registered."""
    server = ServerEnd("threads", address)

    async def get(context: CallContext, request: Size) -> Payload:
        return Payload()

    with pytest.raises(TypeError, match="coroutine function"):
        server.server.register(Service("test.Late", {"Get": Method("Get", Size, Payload, get)}))
    server.dispose()
