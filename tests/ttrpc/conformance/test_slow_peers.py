"""Peers that do not read: what they may make the other side hold, and whom they may keep waiting."""

import asyncio
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from shim.ttrpc import ConnectionClosedError, Limits, LocalProtocolError, RpcError, aio, aio_link, link
from shim.ttrpc._frame import Frame
from tests.fakes import wait_until
from tests.protos.conformance_pb2 import Payload, Size, Total
from tests.protos.conformance_ttrpc import ConformanceRpcs as Rpcs
from tests.ttrpc.conformance.conftest import Connect
from tests.ttrpc.conformance.ends import AsyncioEnd, End
from tests.ttrpc.conformance.script import Script, data, dial, end, pair, request, response, status
from tests.ttrpc.conformance.servers import ServerEnd

LIMIT = 256 << 10
BIG = Payload(data=bytes(200_000))


@pytest.fixture
def small(connect: Connect) -> Iterator[tuple[Script, End]]:
    """A server that speaks bytes and may leave off reading, on a socket that holds little."""
    script, sock = pair(4096)
    yield script, connect(sock)
    script.close()


def test_client_never_reads_its_answers(serve: Callable[..., ServerEnd], connect: Connect) -> None:
    """8.4, slow reader: what waits for it is bounded, others are served, and once it reads it gets every answer."""
    server = serve(limits=Limits(unsent_bytes=LIMIT))
    raw, client = dial(server.address), connect(server.address)
    size, count = 20_000, 1500
    padding = [("padding", "x" * 2000)]
    frames = [request(1 + 2 * n, "Blob", Size(bytes=size), metadata=padding) for n in range(count)]
    sender = threading.Thread(target=raw.send, args=frames)
    sender.start()
    assert wait_until(lambda: server.unsent > LIMIT and server.calls == 0)
    for _ in range(3):
        assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    # One read brings a hundred calls, and several may be at work when the mark is passed.
    assert server.unsent < 15_000_000
    assert len(server.scene.contexts) < count

    assert {(1 + 2 * n, size + 8) for n in range(count)} == {(f.stream_id, f.length) for f in raw.frames(count)}
    sender.join()
    raw.close()


def test_client_never_reads_a_stream(serve: Callable[..., ServerEnd], connect: Connect) -> None:
    """Its handler is held back, others are served; when the client goes the handler ends."""
    server = serve(limits=Limits(unsent_bytes=LIMIT))
    raw, client = dial(server.address), connect(server.address)
    raw.send(request(1, "Divide", Total(sum=1, count=1 << 40), 1))
    assert wait_until(lambda: server.unsent > LIMIT)
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    assert LIMIT < server.unsent < LIMIT + 1000
    assert [] == server.scene.ended
    raw.close()

    assert wait_until(lambda: server.scene.ended == ["Divide"])


def test_client_reads_a_long_stream_slowly(serve: Callable[..., ServerEnd], connect: Connect) -> None:
    """The handler goes on whenever there is room; nothing is lost, nothing comes twice."""
    server = serve(limits=Limits(unsent_bytes=32 << 10))
    stream = connect(server.address).open(Rpcs.DIVIDE, Total(sum=1, count=20_000))
    assert wait_until(lambda: server.unsent > 32 << 10)
    received = stream.rest()

    assert 20_000 == len(received)
    assert [*range(1, 19_999)] == [part.value for part in received[1:-1]]


def test_server_never_reads_and_deadlines_are_kept(small: tuple[Script, End]) -> None:
    """8.4, slow reader (ttrpc#174): calls end on time in every place, also while blocked in send or waiting to.

    Whole frames reach the server once it reads, and the connection goes on.
    """
    script, client = small
    began = time.monotonic()
    calls = [client.start(Rpcs.ECHO, BIG, timeout_s=0.1) for _ in range(8)]
    for call in calls:
        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED: context deadline exceeded"):
            call.result()
    with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
        client.call(Rpcs.ECHO, Payload(), timeout_s=0.05)
    assert time.monotonic() - began < 8
    assert wait_until(lambda: client.active == 0)

    last = client.start(Rpcs.ECHO, Payload(seq=77))
    while (frame := script.frames(1)[0]).length > 1000 or b"\x08\x4d" not in (frame.body or b""):
        pass
    script.send(response(frame.stream_id, Payload(seq=78)))
    assert Payload(seq=78) == last.result()


def test_server_never_reads_a_stream_and_its_deadline_is_kept(small: tuple[Script, End]) -> None:
    """A message that was not sent in time leaves no gap: the stream has ended, whatever is asked of it."""
    script, client = small
    stream = client.open(Rpcs.ECHO_STREAM, timeout_s=0.2)
    with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
        stream.send_all(BIG for _ in range(100))
    for ask in (lambda: stream.send(Payload(seq=7)), stream.close_send, stream.recv, lambda: stream.send(Payload())):
        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
            ask()
    assert 0 == client.active
    call = client.start(Rpcs.ECHO, Payload())
    frames = script.frames(1)
    while len(frames) == 1 or frames[-1].kind != 1:
        frames += script.frames(1)
    script.send(response(frames[-1].stream_id))

    assert Payload() == call.result()
    assert {BIG.ByteSize()} == {frame.length for frame in frames if frame.kind == 3}


def test_close_ends_a_blocked_send(small: tuple[Script, End]) -> None:
    """8.4, races: close() while others send and wait to send."""
    _, client = small
    stream = client.open(Rpcs.ECHO_STREAM)
    senders = [client.begin(lambda: stream.send_all(BIG for _ in range(100))) for _ in range(2)]
    calls = [client.start(Rpcs.ECHO, BIG) for _ in range(2)]
    assert wait_until(lambda: _has_filled(client))
    client.close()
    for wait in [*[sender.result for sender in senders], *[call.result for call in calls]]:
        with pytest.raises(ConnectionClosedError, match="ttrpc: closed"):
            wait()


def test_cancel_ends_a_blocked_send(small: tuple[Script, End]) -> None:
    """Whoever waits on the stream gets CANCELED, one that waits to send too; so does a call that is being sent."""
    _, client = small
    stream = client.open(Rpcs.ECHO_STREAM)
    sender = client.begin(lambda: stream.send_all(BIG for _ in range(100)))
    assert wait_until(lambda: _has_filled(client))
    stream.cancel()
    with pytest.raises(RpcError, match="CANCELED: context canceled"):
        sender.result()
    call = client.start(Rpcs.ECHO, BIG)
    assert not call.is_done
    call.cancel()
    with pytest.raises(RpcError, match="CANCELED: context canceled"):
        call.result()
    assert wait_until(lambda: client.active == 0)


@pytest.mark.parametrize("answer", [status(1, 5, "gone"), end(1)], ids=["error", "end"])
def test_nothing_is_sent_after_the_server_has_ended_the_call(small: tuple[Script, End], answer: bytes) -> None:
    """T1: data that still waits to be sent when the last frame is seen would end many a Go server's process."""
    script, client = small
    stream = client.open(Rpcs.ECHO_STREAM)
    small_message = Payload(data=bytes(1000))
    sent: list[Payload] = []

    def flood() -> None:
        while True:
            stream.send(small_message)
            sent.append(small_message)

    sender = client.begin(flood)
    assert wait_until(lambda: _has_filled(client))
    script.send(answer)
    with pytest.raises((RpcError, LocalProtocolError)):
        sender.result()
    call = client.start(Rpcs.ECHO, Payload())
    frames: list[Frame] = []
    while not frames or frames[-1].kind != 1 or len(frames) == 1:
        frames += script.frames(1)
    script.send(response(frames[-1].stream_id))

    assert Payload() == call.result()
    messages = [frame for frame in frames if frame.kind == 3]
    assert len(messages) <= len(sent)
    assert sum(frame.length for frame in messages) < 64 << 10  # what the socket held by then


def test_undrained_stream_beside_a_full_socket(small: tuple[Script, End], monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that sends while an undrained stream keeps the reading back is not kept for ever."""
    for module in (link, aio_link):
        monkeypatch.setattr(module, "_STALL_S", 0.02)
    script, client = small
    lazy = client.open(Rpcs.ECHO_STREAM)
    writer = threading.Thread(target=script.send, args=[data(1, BIG)] * 40 + [response(3, Payload(seq=1))])
    writer.start()
    call = client.start(Rpcs.ECHO, BIG)
    assert 2 == len(script.frames(2))

    assert Payload(seq=1) == call.result()
    writer.join()
    assert BIG == lazy.recv()


def test_endless_stream_shares_the_server(server: ServerEnd, connect: Connect) -> None:
    """A handler that never waits, because its client reads as fast as it sends, must not have the loop alone."""
    raw, client = dial(server.address), connect(server.address)
    raw.send(request(1, "Divide", Total(sum=1, count=1 << 40), 1))
    reader = client.begin(raw.rest_unparsed)
    assert [Payload(seq=1)] * 20 == client.call_all(Rpcs.ECHO, [Payload()] * 20)
    assert not reader.is_done
    raw.sock.shutdown(socket.SHUT_RDWR)
    reader.result()
    raw.close()

    assert wait_until(lambda: server.scene.ended == ["Divide"])


async def _ask_in_vain(stream: aio.ClientStream[Payload, Payload]) -> None:
    for _ in range(50):
        with suppress(TimeoutError):
            await asyncio.wait_for(stream.recv(), 0.0001)


def test_waits_that_are_given_up_leave_nothing() -> None:
    """Asking an asyncio stream again and again, each time for a moment, gathers no waiters and loses no message."""
    script, sock = pair()
    end = AsyncioEnd(sock)
    stream = end.thread.run(end.client.open(Rpcs.ECHO_STREAM))
    end.thread.run(_ask_in_vain(stream))
    assert [] == stream._pending.waiters
    script.send(data(1, Payload(seq=1)))

    assert Payload(seq=1) == end.thread.run(stream.recv())
    end.dispose()
    script.close()


def _has_filled(client: End) -> bool:
    """True when the socket takes no more; a blocking sender waits there, an asyncio one has the rest in a queue."""
    inner = client.client._link  # type: ignore[attr-defined]  # of either kind
    if client.kind == "asyncio":
        return bool(inner._out.size > aio_link._HIGH_WATER)
    poller = select.poll()
    poller.register(inner._sock, select.POLLOUT)
    return bool(inner._outbox._send_lock.locked() and not poller.poll(10))
