"""What stands around calls: interceptors of all kinds on both sides, and the metadata that goes with a call."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from shim.ttrpc import CallContext, Code, OutgoingCall, RpcError
from tests.protos.conformance_pb2 import Failure, Part, Payload, Total
from tests.protos.conformance_ttrpc import ConformanceRpcs as Rpcs
from tests.ttrpc.conformance.conftest import Connect
from tests.ttrpc.conformance.ends import Around, End
from tests.ttrpc.conformance.scene import Scene
from tests.ttrpc.conformance.servers import ServerEnd

Serve = Callable[..., ServerEnd]
Said = list[tuple[str, str]]


def call_every_kind(client: End) -> None:
    """One call of each."""
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    assert [Part(value=5)] == client.open(Rpcs.DIVIDE, Total(sum=5, count=1)).rest()
    stream = client.open(Rpcs.SUM)
    stream.send(Part(value=3))
    assert Total(sum=3, count=1) == stream.close_and_recv()
    bidi = client.open(Rpcs.ECHO_STREAM)
    bidi.send(Payload(seq=1))
    bidi.close_send()
    assert [Payload(seq=2)] == bidi.rest()


KIND_NAMES = ["Echo", "Divide", "Sum", "EchoStream"]


def client_interceptor(name: str, log: list[str]) -> Around:
    """Return one that writes down that it was there."""

    def around(call: OutgoingCall) -> Iterator[OutgoingCall]:
        log.append(f"{name} {call.rpc.name}")
        yield call._replace(metadata=[*call.metadata, ("by", name)])
        log.append(f"{name} done")

    return around


@pytest.mark.parametrize("count", [0, 1, 5])
def test_client_interceptors(connect: Connect, server: ServerEnd, count: int) -> None:
    """Go TestUnaryClientInterceptor and TestChain...: all four kinds, the first outermost, an empty chain is none."""
    log: list[str] = []
    names = [f"i{number}" for number in range(count)]
    client = connect(server.address, [client_interceptor(name, log) for name in names])
    call_every_kind(client)

    around = [
        [*[f"{name} {rpc}" for name in names], *[f"{name} done" for name in reversed(names)]] for rpc in KIND_NAMES
    ]
    assert [line for lines in around for line in lines] == log
    assert [tuple(("by", name) for name in names)] * 4 == [context.metadata for context in server.scene.contexts]


def test_client_interceptor_changes_the_request(connect: Connect, server: ServerEnd) -> None:
    """The message and the deadline are its too."""

    def around(call: OutgoingCall) -> Iterator[OutgoingCall]:
        yield call._replace(request=Payload(seq=call.request.seq + 10), timeout_s=600.0)

    client = connect(server.address, [around])

    assert Payload(seq=12) == client.call(Rpcs.ECHO, Payload(seq=1))
    assert (server.scene.contexts[0].remaining() or 0) > 500


def test_client_interceptor_sees_errors(connect: Connect, server: ServerEnd) -> None:
    """They come out of the inner call, and out of it."""
    seen: list[int] = []

    def around(call: OutgoingCall) -> Iterator[OutgoingCall]:
        yield call
        seen.append(1)

    client = connect(server.address, [around])
    with pytest.raises(RpcError, match="NOT_FOUND: none"):
        client.call(Rpcs.FAIL, Failure(code=5, message="none"))

    assert [] == seen


@pytest.mark.parametrize("inline", [(), ("Echo",)], ids=["", "inline"])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_server_interceptors(serve: Serve, connect: Connect, count: int, inline: tuple[str, ...]) -> None:
    """Go TestUnaryServerInterceptor and TestChain...: all four kinds, the first outermost; they may change metadata."""
    log: list[str] = []

    def interceptor(name: str) -> Any:
        def around(context: CallContext, request: Any, handler: Any) -> Any:
            log.append(f"{name} {context.method.rpartition('/')[2]}")
            context.metadata = (*context.metadata, ("by", name))
            return handler(context, request)

        return around

    names = [f"i{number}" for number in range(count)]
    server = serve(interceptors=[interceptor(name) for name in names], inline=inline)
    call_every_kind(connect(server.address))

    assert [f"{name} {rpc}" for rpc in KIND_NAMES for name in names] == log
    assert [tuple(("by", name) for name in names)] * 4 == [context.metadata for context in server.scene.contexts]


def test_server_interceptor_refuses(serve: Serve, connect: Connect) -> None:
    """What it raises is the answer, for every kind, and no handler runs."""

    def refuse(context: CallContext, request: Any, handler: Any) -> Any:
        raise RpcError(Code.PERMISSION_DENIED, "not you")

    server = serve(interceptors=[refuse])
    client = connect(server.address)
    for wait in (
        lambda: client.call(Rpcs.ECHO, Payload()),
        client.open(Rpcs.DIVIDE, Total(count=1)).recv,
        client.open(Rpcs.SUM).close_and_recv,
        client.open(Rpcs.ECHO_STREAM).recv,
    ):
        with pytest.raises(RpcError, match="PERMISSION_DENIED: not you"):
            wait()

    assert ([], []) == (server.scene.contexts, server.faults)


def test_server_interceptor_changes_the_answer(serve: Serve, connect: Connect, style: str) -> None:
    """It stands after the handler as well as before: a coroutine where handlers are."""

    def plain(context: CallContext, request: Any, handler: Any) -> Any:
        answer = handler(context, request)
        answer.seq += 100
        return answer

    async def coroutine(context: CallContext, request: Any, handler: Any) -> Any:
        answer = await handler(context, request)
        answer.seq += 100
        return answer

    server = serve(interceptors=[coroutine if style == "coroutines" else plain])

    assert Payload(seq=103) == connect(server.address).call(Rpcs.ECHO, Payload(seq=2))


def said(client: End, metadata: Any) -> Said:
    """Return what arrived."""
    return [(pair.key, pair.value) for pair in client.call(Rpcs.METADATA, Empty(), metadata=metadata).pairs]


def test_metadata_order_and_case(client: End, scene: Scene) -> None:
    """Go TestMetadata*: several values in order, keys in lower case (T13), looked up whatever the case."""
    sent = [("Key", "1"), ("other", "2"), ("KEY", "3"), ("key", ""), ("", "empty key"), ("ключ", "ñ")]
    assert [(key.lower(), value) for key, value in sent] == said(client, sent)
    (context,) = scene.contexts

    assert ["1", "3", ""] == context.values("kEy") == context.values("key")
    assert [] == context.values("nope")


def test_metadata_as_a_mapping(client: End) -> None:
    """One value each, in the mapping's order; none at all is fine."""
    assert [("b", "1"), ("a", "2")] == said(client, {"b": "1", "A": "2"})
    assert [] == said(client, {})
    assert [] == said(client, ())


def test_metadata_of_any_size(client: End) -> None:
    """8.4: ten thousand entries."""
    sent = [(f"key{number}", str(number)) for number in range(10_000)]

    assert sent == said(client, sent)


def test_metadata_is_not_changed(client: End) -> None:
    """Go TestMetadataClone, CloneConcurrent (ttrpc#194): twenty callers share one mapping, which stays as it is."""
    shared = {"Foo": "bar", "n": "1"}
    results: list[Said] = []
    threads = [threading.Thread(target=lambda: results.append(said(client, shared))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [[("foo", "bar"), ("n", "1")]] * 20 == results
    assert {"Foo": "bar", "n": "1"} == shared


def test_metadata_of_streams(client: End, scene: Scene) -> None:
    """Goes with the opening request, of every kind."""
    client.open(Rpcs.DIVIDE, Total(count=1), metadata={"k": "1"}).rest()
    client.open(Rpcs.SUM, metadata={"k": "2"}).close_and_recv()
    bidi = client.open(Rpcs.ECHO_STREAM, metadata={"k": "3"})
    bidi.close_send()
    bidi.rest()

    assert [["1"], ["2"], ["3"]] == [context.values("k") for context in scene.contexts]
