"""Peers that end one half, vanish inside a frame, reset, or leave their socket to a child."""

import os
import select
import socket
import struct
from collections.abc import Iterator

import pytest
from google.protobuf.empty_pb2 import Empty

from shim.ttrpc import ConnectionClosedError
from shim.ttrpc._frame import HEADER
from tests.fakes import open_descriptors, wait_until
from tests.protos.conformance_pb2 import Payload
from tests.protos.conformance_ttrpc import ConformanceRpcs as Rpcs
from tests.ttrpc.conformance.conftest import Connect
from tests.ttrpc.conformance.ends import End
from tests.ttrpc.conformance.scene import HOLD, STALL, WAIT
from tests.ttrpc.conformance.script import Script, data, dial, end, request
from tests.ttrpc.conformance.servers import ServerEnd


@pytest.fixture
def tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection that knows resets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    yield ours, theirs
    ours.close()
    theirs.close()


def reset(sock: socket.socket) -> None:
    """Go with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_client_ends_its_half_with_calls_in_flight(raw: Script, server: ServerEnd) -> None:
    """Table 3.1, SHUT_WR after full requests: all are answered, then the connection is closed (Go loses them)."""
    scene = server.scene
    raw.send(request(1, "Sleep", HOLD), request(3, "Sleep", WAIT), request(5, "EchoStream", b"", 6), data(5, STALL))
    raw.send(data(5, Payload(seq=1)), end(5))
    raw.end_writing()
    assert wait_until(lambda: len(scene.contexts) == 3 and scene.stalls == 1)
    server.settle()
    assert [False] * 3 == [context.is_cancelled for context in scene.contexts]
    scene.finish()

    assert ["1 OK", "3 OK", "5 D/0 0802", "5 D/5"] == sorted(raw.said(4))
    assert raw.is_at_end()


def test_client_ends_its_half_of_a_stream_and_connection(raw: Script, server: ServerEnd) -> None:
    """Without the stream's own end: its handler learns that nothing more can come, and the connection is closed."""
    raw.send(request(1, "EchoStream", b"", 6), data(1, Payload(seq=1)))
    assert ["1 D/0 0802"] == raw.said(1)
    raw.end_writing()

    assert [] == [frame for frame in raw.rest() if frame.kind != 2]
    assert wait_until(lambda: (server.scene.ended, server.calls) == (["EchoStream"], 0))


def test_client_ends_its_half_and_then_goes(raw: Script, server: ServerEnd) -> None:
    """Nobody waits any more: the calls are cancelled though nothing can be read from the connection."""
    raw.send(request(1, "Sleep", WAIT), request(3, "Sleep", HOLD))
    raw.end_writing()
    assert wait_until(lambda: len(server.scene.contexts) == 2)
    server.settle()
    raw.close()

    assert wait_until(lambda: all(context.is_cancelled for context in server.scene.contexts))
    assert wait_until(lambda: server.server.connections == 0)


@pytest.mark.parametrize(
    "piece",
    [b"", b"\0\0\0", HEADER.pack(100, 1, 1, 0) + b"x", HEADER.pack(1 << 31, 1, 1, 0) + bytes(100)],
    ids=["between frames", "in a header", "in a body", "in an oversized body"],
)
@pytest.mark.parametrize("is_reset", [False, True], ids=["close", "reset"])
def test_client_vanishes(
    server: ServerEnd, tcp: tuple[socket.socket, socket.socket], piece: bytes, is_reset: bool
) -> None:
    """8.4, half-open: calls in flight are cancelled, no descriptor stays, and the next client is served.

    With a reset over TCP; there a plain close looks like the end of one half.
    """
    before = len(open_descriptors()) - 2
    ours, theirs = tcp
    if not is_reset:
        ours.close()
        theirs.close()
        ours, theirs = socket.socketpair()
    server.on_loop(lambda: server.server.add_connection(theirs))
    ours.sendall(request(1, "Sleep", WAIT) + request(3, "EchoStream", b"", 6) + data(3, STALL) + piece)
    assert wait_until(lambda: len(server.scene.contexts) == 2 and server.scene.stalls == 1)
    if is_reset:
        reset(ours)
    else:
        ours.close()

    assert wait_until(lambda: all(context.is_cancelled for context in server.scene.contexts))
    assert wait_until(lambda: server.server.connections == 0)
    assert before == len(open_descriptors())
    server.scene.gate.open()
    script = dial(server.address)
    script.send(request(1, "Echo"))
    assert ["1 OK 0801"] == script.said(1)
    script.close()


def test_client_vanishes_while_its_stream_is_full(raw: Script, server: ServerEnd) -> None:
    """The server does not read that connection just then, and notices all the same."""
    raw.send(request(1, "EchoStream", b"", 6), data(1, STALL), *[data(1)] * 100)
    assert wait_until(lambda: server.scene.stalls == 1)
    raw.close()

    assert wait_until(lambda: server.scene.contexts[0].is_cancelled)
    server.scene.gate.open()
    assert wait_until(lambda: (server.scene.ended, server.server.connections) == (["EchoStream"], 0))


def test_server_ends_its_half(scripted: tuple[Script, End]) -> None:
    """Nothing can be answered any more: every call fails with `closed`, and the client closes too."""
    script, client = scripted
    stream = client.open(Rpcs.ECHO_STREAM)
    call = client.start(Rpcs.ECHO, Payload())
    script.frames(2)
    script.send(data(1, Payload(seq=1)))
    script.end_writing()

    with pytest.raises(ConnectionClosedError, match="ttrpc: closed"):
        call.result()
    assert Payload(seq=1) == stream.recv()
    with pytest.raises(ConnectionClosedError, match="ttrpc: closed"):
        stream.recv()
    assert script.is_at_end()


def test_server_resets(connect: Connect, tcp: tuple[socket.socket, socket.socket]) -> None:
    """Table 3.2, RST: `closed` for calls, streams, and whoever comes later."""
    ours, theirs = tcp
    client = connect(ours)
    calls = [client.start(Rpcs.ECHO, Payload()) for _ in range(3)]
    stream = client.open(Rpcs.ECHO_STREAM)
    Script(theirs).frames(4)
    reset(theirs)
    for wait in [*[call.result for call in calls], stream.recv]:
        with pytest.raises(ConnectionClosedError, match="ttrpc: closed"):
            wait()
    with pytest.raises(ConnectionClosedError, match="ttrpc: closed"):
        client.call(Rpcs.SLEEP, WAIT)


def test_server_leaves_answers_behind(scripted: tuple[Script, End]) -> None:
    """Table 2.2, connection lost (ttrpc#140): what it had sent is delivered although a write fails first."""
    script, client = scripted
    stream = client.open(Rpcs.ECHO_STREAM)
    other = client.open(Rpcs.ECHO_STREAM)
    script.frames(2)
    script.send(data(1, Payload(seq=1)), data(1, Payload(seq=2)), data(3, Payload(seq=3)), end(3))
    script.close()
    with pytest.raises(ConnectionClosedError, match="ttrpc: closed"):
        client.call(Rpcs.ECHO, Payload())

    assert [Payload(seq=1), Payload(seq=2)] == stream.read(2)
    assert [Payload(seq=3)] == other.rest()
    with pytest.raises(ConnectionClosedError, match="ttrpc: closed"):
        stream.recv()


def test_a_child_that_inherited_the_socket_keeps_nobody_waiting(client: End, server: ServerEnd) -> None:
    """8.4: the client's close ends the connection though another process has the descriptor."""
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    go_read, go_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(go_write)
            select.select([go_read], [], [])
        finally:
            os._exit(0)
    os.close(go_read)
    try:
        client.close()
        assert wait_until(lambda: server.server.connections == 0)
    finally:
        os.close(go_write)
        os.waitpid(child, 0)


def test_a_probe_is_no_event(server: ServerEnd) -> None:
    """`start` connects and closes at once to see whether a shim lives."""
    for _ in range(50):
        dial(server.address).close()

    assert wait_until(lambda: server.server.connections == 0)
    assert [] == server.refused


def test_a_client_that_is_dropped_ends_its_connection(connect: Connect, server: ServerEnd) -> None:
    """Go TestServerConnectionsLeak and TestServerEOF: one connection during, none after, no descriptor left."""
    before = len(open_descriptors())
    for _ in range(10):
        client = connect(server.address)
        assert Empty() == client.call(Rpcs.SLEEP, type(WAIT)())
        assert 1 == server.server.connections
        client.dispose()
        assert wait_until(lambda: server.server.connections == 0)

    assert before == len(open_descriptors())
