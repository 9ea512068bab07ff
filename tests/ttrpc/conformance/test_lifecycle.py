"""How servers end, with whatever is in flight."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from shim import ttrpc
from shim.ttrpc import CallContext, ConnectionClosedError, Method, Rpc, RpcError, Service, aio
from tests.fakes import open_descriptors, wait_until
from tests.protos.conformance_pb2 import Payload, Size
from tests.protos.conformance_ttrpc import ConformanceRpcs as Rpcs
from tests.ttrpc.conformance.conftest import Connect
from tests.ttrpc.conformance.ends import End
from tests.ttrpc.conformance.scene import HOLD, STALL
from tests.ttrpc.conformance.script import Script, dial, request
from tests.ttrpc.conformance.servers import ServerEnd
from tests.ttrpc.conformance.threads import AsyncioThread

Serve = Callable[..., ServerEnd]


def test_stop_with_one_call_in_flight(client: End, server: ServerEnd, address: str) -> None:
    """8.4 (Go fails this), table 3.3: it is answered; new calls are refused, new connections too; the file is gone."""
    call = client.start(Rpcs.SLEEP, HOLD)
    assert wait_until(lambda: len(server.scene.contexts) == 1)
    server.stop()
    assert wait_until(lambda: server.server.is_draining)
    with pytest.raises(RpcError, match="UNAVAILABLE: server is shutting down"):
        client.call(Rpcs.ECHO, Payload())
    with pytest.raises(OSError, match=r"No such file|refused"):
        dial(address)
    assert not server.serving.done()
    server.scene.gate.open()

    assert Empty() == call.result()
    server.wait()
    assert not Path(address.removeprefix("unix://")).exists()


def test_stop_with_five_calls_and_an_idle_connection(server: ServerEnd, connect: Connect) -> None:
    """Go TestServerShutdown: each call is answered, nothing is left; Serve's callers get it back."""
    before = server.server.connections
    client, idle = connect(server.address), connect(server.address)
    assert Payload(seq=1) == idle.call(Rpcs.ECHO, Payload())
    calls = [client.start(Rpcs.SLEEP, HOLD) for _ in range(5)]
    assert wait_until(lambda: len(server.scene.contexts) == 6)
    server.stop()
    server.settle()
    server.scene.gate.open()

    assert [Empty()] * 5 == [call.result() for call in calls]
    server.wait()
    assert before == server.server.connections
    for end in (client, idle):
        with pytest.raises(ConnectionClosedError):
            end.call(Rpcs.ECHO, Payload())


@pytest.mark.parametrize("grace_s", [0.0, 0.05])
def test_stop_gives_up_after_its_grace(client: End, server: ServerEnd, grace_s: float) -> None:
    """Table 3.3: handlers learn that nobody waits, callers get `closed`; a stream too (Rust server_shutdown...)."""
    call, stream = client.start(Rpcs.SLEEP, HOLD), client.open(Rpcs.ECHO_STREAM)
    stream.send(Payload(seq=1))
    assert Payload(seq=2) == stream.recv()
    assert wait_until(lambda: len(server.scene.contexts) == 2)
    server.stop(grace_s)
    with pytest.raises(ConnectionClosedError):
        call.result()
    with pytest.raises(ConnectionClosedError):
        stream.recv()
    server.scene.gate.open()
    server.wait()

    assert wait_until(lambda: all(context.is_cancelled for context in server.scene.contexts))
    assert wait_until(lambda: "EchoStream" in server.scene.ended)


def test_stop_waits_for_a_stream(client: End, server: ServerEnd) -> None:
    """8.4, shutdown with a stream open: it may go on to its end."""
    stream = client.open(Rpcs.ECHO_STREAM)
    stream.send(STALL)
    assert wait_until(lambda: server.scene.stalls == 1)
    server.stop()
    server.settle()
    stream.send(Payload(seq=1))
    server.scene.gate.open()
    assert Payload(seq=2) == stream.recv()
    stream.close_send()

    assert stream.recv() is None
    server.wait()


def test_stop_writes_a_large_answer_to_its_end(server: ServerEnd) -> None:
    """Table 3.3: a call is active until its last byte is written."""
    raw = dial(server.address)
    raw.send(request(1, "Blob", Size(bytes=4_000_000)))
    assert wait_until(lambda: server.unsent)
    server.stop()
    server.settle()

    assert [4_000_010] == [frame.length for frame in raw.rest()]
    server.wait()
    raw.close()


def test_stop_twice(client: End, server: ServerEnd) -> None:
    """8.4: from two threads as well; both come back."""
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    for _ in range(2):
        server.stop()
    threads = [threading.Thread(target=server.stop) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.wait()
    server.stop()

    with pytest.raises(ConnectionClosedError):
        client.call(Rpcs.ECHO, Payload())


def test_stop_before_serve(tmp_path: Path) -> None:
    """Go TestImmediateServerShutdown: serve returns at once, and removes what was bound."""
    path = tmp_path / "s"
    blocking = ttrpc.Server()
    blocking.listen(f"unix://{path}")
    blocking.stop()
    blocking.serve()
    assert not path.exists()
    with pytest.raises(RuntimeError, match="has served already"):
        blocking.serve()

    async def run() -> None:
        server = aio.Server()
        server.listen(f"unix://{path}")
        await server.stop()
        await server.serve()

    thread = AsyncioThread()
    thread.run(run())
    thread.close()
    assert not path.exists()


def test_stop_from_inside_a_handler(client: End, server: ServerEnd) -> None:
    """8.4, as a shim's Shutdown does it: the call that stops the server is answered, then the connection ends."""

    def stop(context: CallContext, request: Size) -> Payload:
        server.stop()
        return Payload(seq=7)

    service = Service("test.Stop", {"Stop": Method("Stop", Size, Payload, stop)})
    server.on_loop(lambda: server.server.register(service))

    assert Payload(seq=7) == client.call(Rpc("test.Stop", "Stop", Size, Payload), Size())
    server.wait()
    with pytest.raises(ConnectionClosedError):
        client.call(Rpcs.ECHO, Payload())


def test_a_handler_that_ends_after_its_server_touches_nothing(tmp_path: Path) -> None:
    """The descriptors of the server's loop may be somebody else's by then: no byte may be written to them."""
    before = open_descriptors()
    server = ServerEnd("threads", f"unix://{tmp_path}/s")
    raw = dial(server.address)
    raw.send(request(1, "Sleep", HOLD))
    assert wait_until(lambda: len(server.scene.contexts) == 1)
    server.stop(0.0)
    server.wait()
    raw.close()
    pipes = [os.pipe() for _ in range(10)]
    server.scene.gate.open()
    assert wait_until(lambda: server.scene.ended == ["Sleep"])
    server.dispose()
    for read_end, write_end in pipes:
        os.close(write_end)
        assert b"" == os.read(read_end, 10)
        os.close(read_end)

    assert [] == server.faults
    assert before == open_descriptors()


def test_servers_leave_nothing_behind(style: str, tmp_path: Path) -> None:
    """Descriptors and threads are as before, whatever was in flight."""
    before, threads = open_descriptors(), set(threading.enumerate())
    for _ in range(3):
        server = ServerEnd(style, f"unix://{tmp_path}/s")
        scripts: list[Script] = [dial(server.address) for _ in range(3)]
        for script in scripts:
            script.send(request(1, "Sleep", HOLD), request(3, "EchoStream", b"", 6), b"\0\0")
        assert wait_until(lambda: len(server.scene.contexts) == 6)  # noqa: B023  # called in this round
        server.dispose()
        for script in scripts:
            script.close()

    assert before == open_descriptors()
    assert wait_until(lambda: not set(threading.enumerate()) - threads)
