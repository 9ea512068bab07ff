"""Streams of all kinds, every client with every server."""

import gc
import threading
import time
from collections.abc import Callable

import pytest
from google.protobuf.empty_pb2 import Empty

from shim.ttrpc import Code, ConnectionClosedError, Limits, LocalProtocolError, RpcError, aio_link, link
from tests.fakes import wait_until
from tests.protos.conformance_pb2 import Failure, Part, Payload, Total
from tests.protos.conformance_ttrpc import ConformanceRpcs as Rpcs
from tests.ttrpc.conformance.conftest import Connect
from tests.ttrpc.conformance.ends import End
from tests.ttrpc.conformance.scene import FAIL, RETURN, STALL, Scene
from tests.ttrpc.conformance.script import Script, data, dial, end, request, response
from tests.ttrpc.conformance.servers import ServerEnd


def test_ping_pong(client: End) -> None:
    """Go TestStreamClient and integration EchoStream: 100 ping-pongs beside a unary call, then the end, twice."""
    stream = client.open(Rpcs.ECHO_STREAM)
    for seq in range(100):
        stream.send(Payload(seq=seq, data=b"x" * seq))
        assert Payload(seq=seq + 1, data=b"x" * seq) == stream.recv()
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    stream.close_send()

    assert [None, None] == [stream.recv(), stream.recv()]
    assert 0 == client.active


def test_sum(client: End) -> None:
    """Integration SumStream: 202 parts, empty ones among them, one answer with exact sum and count."""
    stream = client.open(Rpcs.SUM)
    stream.send_all([Part(), *[Part(value=value) for value in range(1, 201)], Part()])

    assert Total(sum=20100, count=202) == stream.close_and_recv()
    assert 0 == client.active


def test_divide(client: End) -> None:
    """Integration DivideStream: 30 parts, empty ones among them, add up to the request."""
    received = client.open(Rpcs.DIVIDE, Total(sum=392, count=30)).rest()

    assert (30, 392) == (len(received), sum(part.value for part in received))
    assert Part() == received[0]


def test_divide_into_nothing(client: End) -> None:
    """Transcript 11.6, DivideStream with an empty payload: the request is a message, the answer ends at once."""
    assert [] == client.open(Rpcs.DIVIDE, Total()).rest()


def test_echo_null(client: End, scene: Scene) -> None:
    """Integration EchoNull: 100 messages, one empty answer."""
    stream = client.open(Rpcs.ECHO_NULL)
    stream.send_all(Payload(seq=seq) for seq in range(100))

    assert Empty() == stream.close_and_recv()
    assert 100 == scene.taken


def test_echo_null_stream(client: End) -> None:
    """Integration EchoNullStream: 100 messages, while threads or tasks of the handler send 100 empty ones."""
    stream = client.open(Rpcs.ECHO_NULL_STREAM)
    stream.send_all(Payload(seq=seq) for seq in range(100))
    stream.close_send()

    assert [Empty()] * 100 == stream.rest()


def test_empty_request(client: End) -> None:
    """Integration EmptyPayloadStream: an empty request; an empty message, another, the end."""
    assert [Payload(), Payload(seq=1)] == client.open(Rpcs.EMPTY_REQUEST, Empty()).rest()


def test_handler_context_is_cancelled_on_return(client: End, scene: Scene) -> None:
    """Go TestStreamHandlerContextCancelOnReturn: whether the handler returned or raised."""
    for last in (RETURN, FAIL):
        stream = client.open(Rpcs.ECHO_STREAM)
        stream.send(last)
        if last == FAIL:
            with pytest.raises(RpcError):
                stream.recv()
        else:
            assert stream.recv() is None

    assert wait_until(lambda: [context.is_cancelled for context in scene.contexts] == [True, True])


def test_undrained_stream_does_not_block_the_connection(client: End) -> None:
    """Go TestStreamNotConsumedDoesNotBlockConnection: 10 echoes that nobody takes; calls and other streams work."""
    lazy = client.open(Rpcs.ECHO_STREAM)
    lazy.send_all(Payload(seq=seq) for seq in range(10))
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    other = client.open(Rpcs.ECHO_STREAM)
    other.send(Payload(seq=5))

    assert Payload(seq=6) == other.recv()
    assert [Payload(seq=seq + 1) for seq in range(10)] == lazy.read(10)
    lazy.cancel()
    other.cancel()


def test_flood_that_nobody_takes_costs_its_own_stream_alone(
    scripted: tuple[Script, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deadlock C: a full stream is given up after a while with RESOURCE_EXHAUSTED; what had come is not lost."""
    for module in (link, aio_link):
        monkeypatch.setattr(module, "_STALL_S", 0.02)
    script, client = scripted
    lazy = client.open(Rpcs.ECHO_STREAM)
    call = client.start(Rpcs.ECHO, Payload())
    script.frames(2)
    flood = [data(1, Payload(seq=seq, data=bytes(100_000))) for seq in range(1, 101)]
    script.send(*flood, response(3, Payload(seq=7)), end(1))

    assert Payload(seq=7) == call.result()
    assert [1, 2, 3] == [payload.seq for payload in lazy.read(3)]
    for _ in range(2):
        with pytest.raises(RpcError, match="EchoStream: RESOURCE_EXHAUSTED: ttrpc: stream buffer full"):
            lazy.rest()
    assert 0 == client.active


def test_slow_reader_alone_loses_nothing(scripted: tuple[Script, End], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who keeps nobody waiting may take its time: the server waits, and every message comes."""
    for module in (link, aio_link):
        monkeypatch.setattr(module, "_STALL_S", 0.002)
    script, client = scripted
    lazy = client.open(Rpcs.ECHO_STREAM)
    flood = [data(1, Payload(seq=seq, data=bytes(100_000))) for seq in range(1, 101)]
    sender = threading.Thread(target=script.send, args=(*flood, end(1)))
    sender.start()
    time.sleep(0.05)  # many times as long as others would have been made to wait

    assert [*range(1, 101)] == [payload.seq for payload in lazy.rest()]
    sender.join()


def test_finished_stream_that_nobody_takes_delays_nobody(
    scripted: tuple[Script, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it has come already, so there is no reason to read no more."""
    for module in (link, aio_link):
        monkeypatch.setattr(module, "_STALL_S", 3600.0)
    script, client = scripted
    lazy = client.open(Rpcs.DIVIDE, Total())
    other = client.open(Rpcs.ECHO_STREAM)
    script.send(*[data(1)] * 100, end(1), data(3))
    assert Payload() == other.recv()
    call = client.start(Rpcs.ECHO, Payload())
    script.frames(3)
    script.send(response(5, Payload(seq=7)))

    assert Payload(seq=7) == call.result()
    assert [Part()] * 100 == lazy.rest()


def test_stalled_handler_does_not_block_the_connection(connect: Connect, serve: Callable[..., ServerEnd]) -> None:
    """Go TestStreamFullOnServer: the handler never reads 200 messages; a unary call works, that stream has failed."""
    server = serve(limits=Limits(stall_s=0.02))
    client = connect(server.address)
    stream = client.open(Rpcs.ECHO_STREAM)
    stream.send(STALL)
    stream.send_all(Payload(seq=seq) for seq in range(200))
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    with pytest.raises(RpcError) as caught:
        stream.recv()

    assert (Code.RESOURCE_EXHAUSTED, "ttrpc: stream buffer full") == (caught.value.code, caught.value.message)
    server.scene.gate.open()
    assert wait_until(lambda: server.scene.ended == ["EchoStream"])


def test_finished_input_that_no_handler_takes_delays_nobody(serve: Callable[..., ServerEnd]) -> None:
    """The same on the server: the client has sent its end, the call need not fail, and the others go on."""
    server = serve(limits=Limits(stall_s=3600.0))
    raw = dial(server.address)
    messages = [data(1, Payload(seq=seq)) for seq in range(100)]
    raw.send(request(1, "EchoStream", b"", 6), data(1, STALL), *messages, end(1))
    assert wait_until(lambda: server.scene.stalls == 1)
    server.settle()
    raw.send(request(3, "Echo"))
    assert ["3 OK 0801"] == raw.said(1)
    server.scene.gate.open()

    assert [1] * 101 == [frame.stream_id for frame in raw.frames(101)]
    raw.close()


def test_send_after_close_send_is_refused_here(client: End) -> None:
    """Rust stream_close_send_then_send_fails."""
    stream = client.open(Rpcs.SUM)
    stream.close_send()
    with pytest.raises(LocalProtocolError):
        stream.send(Part())

    assert Total() == stream.close_and_recv()


def test_only_client_streams_have_messages_to_send(client: End) -> None:
    """Nothing reaches the wire: data on such a call ends a Go server (2.3)."""
    stream = client.open(Rpcs.DIVIDE, Total(sum=4, count=2))
    with pytest.raises(LocalProtocolError):
        stream.send(Total())
    with pytest.raises(LocalProtocolError, match="answers with a stream"):
        stream.close_and_recv()

    assert [Part(), Part(value=4)] == stream.rest()


def test_server_ends_the_stream_first(client: End) -> None:
    """Rust server_initiated_stream_close: the last message arrives, then the end; sending is over."""
    stream = client.open(Rpcs.ECHO_STREAM)
    stream.send(Payload(seq=1))
    stream.send(RETURN)
    assert [Payload(seq=2), None] == [stream.recv(), stream.recv()]
    with pytest.raises(LocalProtocolError, match="the stream is finished"):
        stream.send(Payload())
    stream.close_send()  # nothing to do: the server has forgotten the call

    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())


def test_send_after_the_server_has_failed_raises_its_status(client: End) -> None:
    """8.4, send after peer error; the failure stays, whatever is asked after it (T9)."""
    stream = client.open(Rpcs.ECHO_STREAM)
    stream.send(FAIL)
    for _ in range(3):
        with pytest.raises(RpcError, match="FAILED_PRECONDITION: told to"):
            stream.recv()
        with pytest.raises(RpcError, match="FAILED_PRECONDITION: told to"):
            stream.send(Payload())
        with pytest.raises(RpcError, match="FAILED_PRECONDITION: told to"):
            stream.close_send()


@pytest.mark.parametrize("after", [0, 1, 5])
def test_error_after_some_messages_is_sticky(client: End, after: int) -> None:
    """8.4, error after k messages: they arrive, then the status, as often as it is asked for."""
    stream = client.open(Rpcs.FAIL_STREAM, Failure(code=10, message="half way", after=after))
    assert [Part(value=number + 1) for number in range(after)] == stream.read(after)
    for _ in range(3):
        with pytest.raises(RpcError) as caught:
            stream.recv()
        assert (Code.ABORTED, "half way") == (caught.value.code, caught.value.message)


def test_deadline_of_a_stream(client: End, server: ServerEnd) -> None:
    """Transcript 11.6, EchoStream with a timeout and a handler that stalls: DEADLINE_EXCEEDED, sticky, sending too."""
    stream = client.open(Rpcs.ECHO_STREAM, timeout_s=0.1)
    stream.send(STALL)
    for ask in (stream.recv, stream.recv, lambda: stream.send(Payload()), stream.close_send, stream.recv):
        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED: context deadline exceeded"):
            ask()
    server.scene.gate.open()

    assert wait_until(lambda: server.scene.ended == ["EchoStream"])
    assert wait_until(lambda: (client.active, server.calls) == (0, 0))


def test_cancelled_stream_is_over_here(client: End, server: ServerEnd) -> None:
    """Table 3.1, client cancels one call: CANCELED here, the server is not told; what it sends is dropped."""
    stream = client.open(Rpcs.ECHO_STREAM)
    stream.send(Payload(seq=1))
    stream.cancel()
    stream.cancel()
    with pytest.raises(RpcError, match="CANCELED: context canceled"):
        stream.recv()
    with pytest.raises(RpcError, match="CANCELED: context canceled"):
        stream.send(Payload())

    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    assert (0, 1) == (client.active, server.calls)


def test_a_reader_is_woken_by_cancel(client: End, scene: Scene) -> None:
    """From another thread, whether this one reads for all or waits for one that does."""
    streams = [client.open(Rpcs.ECHO_STREAM) for _ in range(3)]
    readers = [client.begin(stream.recv) for stream in streams]
    assert wait_until(lambda: len(scene.contexts) == 3)
    for stream, reader in zip(streams, readers, strict=True):
        stream.cancel()
        with pytest.raises(RpcError, match="CANCELED"):
            reader.result()


@pytest.mark.parametrize("messages", [0, 3])
def test_abandoned_stream_is_cleaned_up(client: End, scene: Scene, messages: int) -> None:
    """8.4: its object is garbage, the table forgets it, the connection lives."""
    stream = client.open(Rpcs.ECHO_STREAM)
    stream.send_all(Payload(seq=seq) for seq in range(messages))
    assert wait_until(lambda: len(scene.contexts) == 1)
    del stream
    gc.collect()

    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    assert 0 == client.active


def test_streams_end_in_reverse_order(client: End) -> None:
    """Rust multiple_concurrent_streams: no cross-talk, answers collected from the last opened to the first."""
    streams = [client.open(Rpcs.SUM) for _ in range(20)]
    for number, stream in enumerate(streams):
        stream.send(Part(value=number))

    assert [Total(sum=number, count=1) for number in reversed(range(20))] == [
        stream.close_and_recv() for stream in reversed(streams)
    ]


def test_one_thread_sends_while_another_receives(client: End) -> None:
    """On one stream, 500 messages, at their own pace."""
    stream = client.open(Rpcs.ECHO_STREAM)

    def send() -> None:
        stream.send_all(Payload(seq=seq) for seq in range(500))
        stream.close_send()

    sender = client.begin(send)
    received = stream.rest()
    sender.result()

    assert [*range(1, 501)] == [payload.seq for payload in received]


def test_calls_beside_a_stream(client: End) -> None:
    """Streams and unary calls share the connection in any order."""
    stream = client.open(Rpcs.ECHO_STREAM)
    calls = [client.start(Rpcs.ECHO, Payload(seq=seq)) for seq in range(20)]
    for seq in range(20):
        stream.send(Payload(seq=seq))

    assert [*range(1, 21)] == [payload.seq for payload in stream.read(20)]
    assert [*range(1, 21)] == [call.result().seq for call in calls]
    stream.cancel()


def test_messages_are_delivered_before_the_connections_end(client: End, server: ServerEnd, scene: Scene) -> None:
    """Table 2.2, connection lost (ttrpc#140, #144): what had come, then `closed`, sticky."""
    stream = client.open(Rpcs.ECHO_STREAM)
    stream.send_all([Payload(seq=1), Payload(seq=2)])
    assert Payload(seq=2) == stream.recv()
    assert wait_until(lambda: server.unsent == 0)
    stream.send(STALL)
    assert wait_until(
        lambda: not any(call.inbox.is_ready for peer in server.server._peers for call in peer._calls.values())
    )
    server.stop(0.0)
    server.scene.gate.open()
    server.wait()

    assert Payload(seq=3) == stream.recv()
    for _ in range(3):
        with pytest.raises(ConnectionClosedError, match="ttrpc: closed"):
            stream.recv()
