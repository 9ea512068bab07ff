"""Much of everything: calls, streams, messages, cancellations; and nothing that grows.

The full volume runs on one pairing per end, a tenth of it on the others.
"""

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from shim.ttrpc import Limits, RpcError
from tests.fakes import open_descriptors, wait_until
from tests.protos.conformance_pb2 import Part, Payload, Total
from tests.protos.conformance_ttrpc import ConformanceRpcs as Rpcs
from tests.ttrpc.conformance.conftest import Connect
from tests.ttrpc.conformance.ends import AsyncioEnd, BlockingEnd, End
from tests.ttrpc.conformance.scene import HOLD, WAIT
from tests.ttrpc.conformance.script import pair, response
from tests.ttrpc.conformance.servers import ServerEnd

PAGE = os.sysconf("SC_PAGE_SIZE")


def rss() -> int:
    """Return this process's resident bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def is_full(client: End, server: ServerEnd) -> bool:
    """True for one pairing of each kind of client."""
    return (client.kind, server.style) in {("blocking", "threads"), ("asyncio", "coroutines")}


@pytest.mark.parametrize("full_on", [("blocking", "threads"), ("asyncio", "coroutines")], ids="-".join)
def test_a_hundred_thousand_calls(full_on: tuple[str, str], tmp_path: Path) -> None:
    """8.4, volume: on one connection, without growth of memory, descriptors, tasks, threads, tables."""
    kind, style = full_on
    server = ServerEnd(style, f"unix://{tmp_path}/s", inline=("Blob",))
    client: End = BlockingEnd(server.address) if kind == "blocking" else AsyncioEnd(server.address)
    requests = [Rpcs.BLOB.request()] * 12_500

    def tasks() -> int:
        return client.thread.tasks if isinstance(client, AsyncioEnd) else 0

    def call_all() -> None:
        assert 12_500 == len(client.call_all(Rpcs.BLOB, requests, workers=8 if kind == "blocking" else 128))
        server.scene.contexts.clear()

    call_all()
    before = rss(), len(open_descriptors()), tasks(), threading.active_count()
    for _ in range(7):
        call_all()

    assert rss() - before[0] < 4 << 20
    assert before[1:] == (len(open_descriptors()), tasks(), threading.active_count())
    assert (0, 0) == (client.active, server.calls)
    assert 200_001 == client.core._next_id
    client.dispose()
    server.dispose()


def test_calls_by_every_pairing(client: End, server: ServerEnd) -> None:
    """Two thousand one after the other, two thousand by 32 callers; each has its own answer."""
    requests = [Payload(seq=seq) for seq in range(2000)]
    assert [*range(1, 2001)] == [payload.seq for payload in client.call_all(Rpcs.ECHO, requests)]
    answers = client.call_all(Rpcs.ECHO, requests, workers=32)

    assert [*range(1, 2001)] == sorted(payload.seq for payload in answers)
    assert (0, 0) == (client.active, server.calls)


def test_a_thousand_calls_in_flight(client: End, server: ServerEnd) -> None:
    """All wait, then all are answered."""
    calls = client.begin(lambda: client.call_all(Rpcs.SLEEP, [WAIT] * 1000, workers=1000))
    assert wait_until(lambda: len(server.scene.contexts) == 1000)
    assert 2000 == client.active
    server.scene.finish()

    assert 1000 == len(calls.result())
    assert wait_until(lambda: (client.active, server.calls) == (0, 0))


def test_ids_increase_on_the_wire_with_64_callers(connect: Connect) -> None:
    """T5: whoever calls, ids reach the wire in their order."""
    script, sock = pair()
    client = connect(sock)
    calls = client.begin(lambda: client.call_all(Rpcs.ECHO, [Payload()] * 640, workers=64))
    ids: list[int] = []
    while len(ids) < 640:
        frames = script.frames(1)
        frames += script.frames(len(script._frames))
        ids += [frame.stream_id for frame in frames]
        random.Random(7).shuffle(frames)  # noqa: S311  # no secret
        script.send(*[response(frame.stream_id) for frame in frames])

    assert [*range(1, 1281, 2)] == ids
    assert 640 == len(calls.result())
    script.close()


def test_tiny_messages(client: End, server: ServerEnd) -> None:
    """8.4: a hundred thousand there, and as many back in another stream; a tenth on most pairings."""
    count = 100_000 if is_full(client, server) and client.kind == "asyncio" else 10_000
    stream = client.open(Rpcs.SUM)
    stream.send_all([Part(value=1)] * count)
    assert Total(sum=count, count=count) == stream.close_and_recv()
    received = client.open(Rpcs.DIVIDE, Total(sum=0, count=10_000)).rest()

    assert [0, *range(1, 9_999)] == [part.value for part in received[:-1]]
    assert 0 == client.active


def test_a_hundred_streams_interleaved(client: End, server: ServerEnd) -> None:
    """8.4: round and round, each in its own order."""
    streams = [client.open(Rpcs.ECHO_STREAM) for _ in range(100)]
    for seq in range(5):
        for number, stream in enumerate(streams):
            stream.send(Payload(seq=seq, data=b"%d" % number))
    for seq in range(5):
        for number, stream in enumerate(reversed(streams)):
            assert Payload(seq=seq + 1, data=b"%d" % (99 - number)) == stream.recv()
    for stream in streams:
        stream.close_send()

    assert [None] * 100 == [stream.recv() for stream in streams]
    assert wait_until(lambda: (client.active, server.calls) == (0, 0))


def test_large_messages_in_a_stream(client: End) -> None:
    """8.4: nearly 4 MiB each, both ways."""
    stream = client.open(Rpcs.ECHO_STREAM)
    data = os.urandom((4 << 20) - 20)
    for seq in range(3):
        stream.send(Payload(seq=seq, data=data))
        assert Payload(seq=seq + 1, data=data) == stream.recv()
    stream.cancel()


@pytest.mark.parametrize("count", [8, 1])
def test_deadlock_a(connect: Connect, server: ServerEnd, count: int) -> None:
    """4.2, A (ttrpc#72): 200 KB requests and answers by several workers over buffers of the kernel's least size."""
    script, sock = pair(1)
    theirs = script.sock
    theirs.settimeout(None)
    server.on_loop(lambda: server.server.add_connection(theirs))
    client = connect(sock)
    data = os.urandom(200_000)
    requests = [Payload(seq=seq, data=data) for seq in range(16)]
    answers = client.call_all(Rpcs.ECHO, requests, workers=count)

    assert {(seq, data) for seq in range(1, 17)} == {(answer.seq, answer.data) for answer in answers}


def test_deadlock_of_two_floods(connect: Connect, serve: Callable[..., ServerEnd]) -> None:
    """4.2, A and C: two streams flood in both directions over tiny buffers, and each side has to wait for the other."""
    server = serve(limits=Limits(unsent_bytes=64 << 10, stall_s=15.0))
    script, sock = pair(1)
    theirs = script.sock
    theirs.settimeout(None)
    server.on_loop(lambda: server.server.add_connection(theirs))
    client = connect(sock)
    data = os.urandom(20_000)

    def flood() -> int:
        stream = client.open(Rpcs.ECHO_STREAM)

        def send() -> None:
            stream.send_all(Payload(seq=seq, data=data) for seq in range(60))
            stream.close_send()

        sender = client.begin(send)
        received = [payload.seq for payload in stream.rest()]
        sender.result()
        assert [*range(1, 61)] == received
        return len(received)

    assert [60, 60] == [flood_.result() for flood_ in [client.begin(flood) for _ in range(2)]]


def test_cancellation_storm_of_tasks(tmp_path: Path) -> None:
    """8.4: ten thousand calls and streams given up at random points; tables are empty, ids are not used again."""
    server = ServerEnd("coroutines", f"unix://{tmp_path}/s", inline=("Echo",))
    end = AsyncioEnd(server.address)
    chance = random.Random(5)  # noqa: S311  # no secret

    async def stream() -> None:
        async with await end.client.open(Rpcs.ECHO_STREAM) as bidi:
            for seq in range(3):
                await bidi.send(Payload(seq=seq))
                assert Payload(seq=seq + 1) == await bidi.recv()

    async def storm() -> None:
        for _ in range(100):
            tasks = [
                asyncio.ensure_future(
                    stream()
                    if chance.random() < 0.2
                    else end.client.call(Rpcs.SLEEP, HOLD)
                    if chance.random() < 0.2
                    else end.client.call(Rpcs.ECHO, Payload(seq=number))
                )
                for number in range(100)
            ]
            chance.shuffle(tasks)
            for task in tasks:
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    end.thread.run(storm())
    assert [Payload(seq=1)] * 10 == end.call_all(Rpcs.ECHO, [Payload()] * 10)
    assert 0 == end.active
    next_id = end.core._next_id
    assert next_id > 2 * 5000
    server.scene.gate.open()
    end.dispose()
    assert wait_until(lambda: server.calls == 0)
    server.dispose()


def test_cancellation_storm_of_threads(tmp_path: Path) -> None:
    """The same by deadlines and by other threads' cancel: ten thousand calls, each an answer or a status."""
    server = ServerEnd("threads", f"unix://{tmp_path}/s", inline=("Echo", "Sleep"))
    end = BlockingEnd(server.address)
    errors: list[BaseException] = []
    codes: set[int] = set()

    def storm(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311  # no secret
        try:
            for seq in range(1250):
                kind = chance.random()
                try:
                    if kind < 0.5:
                        timeout_s = chance.choice([0.0, 0.0001, 0.001, None])
                        answer = end.client.call(Rpcs.ECHO, Payload(seq=seq), timeout_s=timeout_s)
                        assert Payload(seq=seq + 1) == answer
                    elif kind < 0.9:
                        end.client.call(Rpcs.SLEEP, WAIT, timeout_s=chance.random() / 4000)
                    else:
                        with end.client.open(Rpcs.ECHO_STREAM) as stream:
                            stream.send(Payload(seq=seq))
                            if chance.random() < 0.5:
                                assert Payload(seq=seq + 1) == stream.recv()
                except RpcError as error:
                    codes.add(int(error.code))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=storm, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert ([], {4}) == (errors, codes)
    assert Payload(seq=1) == end.call(Rpcs.ECHO, Payload())
    assert 0 == end.active
    end.dispose()
    assert wait_until(lambda: server.calls == 0)
    server.dispose()


def test_cancelled_from_other_threads(client: End, server: ServerEnd) -> None:
    """Five hundred calls that wait are cancelled in no order, while others are answered."""
    chance = random.Random(3)  # noqa: S311  # no secret
    calls = [client.start(Rpcs.SLEEP, WAIT) for _ in range(150)]
    chance.shuffle(calls)
    for number, call in enumerate(calls):
        call.cancel()
        if number % 10 == 0:
            assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    for call in calls:
        with pytest.raises(RpcError, match="CANCELED"):
            call.result()

    assert wait_until(lambda: client.active == 0)
    server.scene.finish()
    assert wait_until(lambda: server.calls == 0)


def test_deadlines_that_come_with_the_answer(client: End, server: ServerEnd) -> None:
    """8.4, races: whichever is first, the caller has one of both, and the next call its own."""
    rng = random.Random(11)  # noqa: S311  # no secret
    outcomes = set()
    for seq in range(150):
        try:
            answer = client.call(Rpcs.ECHO, Payload(seq=seq), timeout_s=rng.uniform(0.0, 0.002))
        except RpcError as error:
            outcomes.add(int(error.code))
        else:
            outcomes.add(0)
            assert Payload(seq=seq + 1) == answer

    assert outcomes <= {0, 4}
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    assert wait_until(lambda: (client.active, server.calls) == (0, 0))


def test_connections_come_and_go(connect: Connect, server: ServerEnd) -> None:
    """With calls of every end in flight; descriptors and threads are as before."""
    before = len(open_descriptors())
    began = time.monotonic()
    for _ in range(15):
        client = connect(server.address)
        stream = client.open(Rpcs.ECHO_STREAM)
        stream.send(Payload())
        call = client.start(Rpcs.SLEEP, WAIT)
        assert Empty() == client.open(Rpcs.ECHO_NULL).close_and_recv()
        client.dispose()
        assert isinstance(call._future.exception(10), Exception)
    assert wait_until(lambda: server.server.connections == 0)

    assert wait_until(lambda: before == len(open_descriptors()))
    assert time.monotonic() - began < 15
