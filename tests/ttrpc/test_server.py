"""The server among peers that flood it, vanish, half-close, or may not connect; and how it ends."""

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import BytesValue, Int64Value
from hypothesis import given
from hypothesis import strategies as st

from shim.ttrpc import ConnectionClosedError, Rpc, RpcError, Server
from shim.ttrpc._envelope import Response
from shim.ttrpc._frame import DATA, HEADER, MAX_BODY, REQUEST, encode_frame
from shim.ttrpc.loop_server import peer_credentials, same_user
from shim.ttrpc.service import Credentials
from tests import strategies
from tests.fakes import PATIENCE_S, open_descriptors, wait_until
from tests.ttrpc.echo import SERVICE, EchoServer, call, request_frame


def big_frame(stream_id: int, size: int, padding: int = 0) -> bytes:
    """Return the frame of a call that is answered with `size` bytes."""
    payload = Int64Value(value=size).SerializeToString()
    return request_frame(stream_id, "Big", payload, metadata=[("padding", "x" * padding)] * bool(padding))


def test_a_peer_that_does_not_read_is_not_read_either(echo: EchoServer) -> None:
    """Its answers stop piling up, others are served as ever, and once it reads it gets every answer."""
    size = 50_000
    with echo.raw() as peer, echo.connect() as client:
        peer.sock.setblocking(False)
        sent, pending, number, blocked = 0, b"", 1, 0
        while blocked < 20:
            while len(pending) < 1 << 16:
                pending += big_frame(number, size, padding=2000)
                number += 2
                sent += 1
            try:
                pending = pending[peer.sock.send(pending) :]
                blocked = 0
            except BlockingIOError:
                blocked += 1
                echo.thread.settle()  # a round of the loop, in which it would have read
        answered = echo.count

        # The high-water mark is 8 MiB; what one read brings, a hundred calls, may go over it.
        assert 8 << 20 < answered * size < 32 << 20
        assert b"x" == call(client, "Echo", b"x")
        assert answered == echo.count

        peer.sock.setblocking(True)
        sender = threading.Thread(target=peer.send, args=(pending,))
        sender.start()
        answers = peer.read(sent)
        sender.join()

        assert [*range(1, number, 2)] == [stream_id for stream_id, _ in answers]
        assert {(0, size + 4)} == {(answer.code, len(answer.payload)) for _, answer in answers}


def test_four_megabytes_are_the_limit_both_ways(echo: EchoServer) -> None:
    """To the byte, and what is over it costs its own call alone."""
    fits = MAX_BODY - 5 - 5  # the envelope's tag and length, and the message's
    with echo.connect() as client:

        def big(size: int) -> int:
            return len(
                client.call(
                    Rpc(SERVICE, "Big", Int64Value, BytesValue), Int64Value(value=size), timeout_s=PATIENCE_S
                ).value
            )

        assert fits == big(fits)
        with pytest.raises(RpcError, match=f"Big: RESOURCE_EXHAUSTED: message length {MAX_BODY + 1} exceed maximum"):
            big(fits + 1)
        assert 7 == big(7)


@pytest.mark.parametrize("kind", [REQUEST, DATA])
def test_an_oversized_frame_is_drained_and_answered(echo: EchoServer, kind: int) -> None:
    """And the connection takes the next call."""
    with echo.raw() as peer:
        peer.send(encode_frame(1, kind, 0, bytes(MAX_BODY + 1)) + request_frame(3, "Quick"))
        text = f"message length {MAX_BODY + 1} exceed maximum message size of 4194304"

        assert [(1, Response(8, text, b"")), (3, Response(0, "", b""))] == peer.read(2)


def test_byte_by_byte_is_served_like_any_other(echo: EchoServer) -> None:
    """Frames are no packets."""
    with echo.raw() as peer:
        for byte in request_frame(1, "Quick", b"\x0a\x01x"):
            peer.send(bytes([byte]))

        assert [(1, Response(0, "", b"\x0a\x01x"))] == peer.read(1)


def test_many_calls_in_one_write_are_all_answered(echo: EchoServer) -> None:
    """Pipelining, as Go's client does it."""
    with echo.raw() as peer:
        peer.send(b"".join(request_frame(number, "Echo", b"\x0a\x01x") for number in range(1, 401, 2)))

        assert {*range(1, 401, 2)} == {stream_id for stream_id, _ in peer.read(200)}


def test_a_peer_that_vanishes_cancels_its_calls(echo: EchoServer) -> None:
    """Whether their handlers run or their answers were put off; what they answer then goes nowhere."""
    with echo.raw() as peer:
        peer.send(request_frame(1, "Block") + request_frame(3, "Wait") + request_frame(5, "Block", timeout_ns=10**12))
        assert wait_until(lambda: len(echo.contexts) == 3)
        assert [False] * 3 == [context.is_cancelled for context in echo.contexts]

    assert wait_until(lambda: all(context.is_cancelled for context in echo.contexts))
    assert wait_until(lambda: echo.server.connections == 0)
    echo.waits[0].resolve(BytesValue())
    echo.gate.set()
    assert wait_until(lambda: echo.pool.threads == 0)
    assert [] == echo.faults


def test_a_reset_inside_a_frame_closes_the_connection_alone(echo: EchoServer) -> None:
    """No descriptor stays, and the next peer is served."""
    before = len(open_descriptors())
    for piece in (b"", b"\0\0\0", HEADER.pack(100, 1, 1, 0) + b"x", HEADER.pack(1 << 31, 1, 1, 0) + bytes(100)):
        with echo.raw() as peer:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if piece:
                peer.send(piece)
    assert wait_until(lambda: echo.server.connections == 0)

    assert before == len(open_descriptors())
    with echo.connect() as client:
        assert b"x" == call(client, "Quick", b"x")


def test_a_peer_that_ends_its_half_still_gets_its_answers(echo: EchoServer) -> None:
    """Calls in flight are finished, then the connection is closed."""
    with echo.raw() as peer:
        peer.send(request_frame(1, "Block") + request_frame(3, "Wait"))
        peer.sock.shutdown(socket.SHUT_WR)
        assert wait_until(lambda: len(echo.contexts) == 2)
        time.sleep(0.02)
        assert [False, False] == [context.is_cancelled for context in echo.contexts]
        echo.gate.set()
        echo.waits[0].resolve(BytesValue(value=b"w"))

        assert {1, 3} == {stream_id for stream_id, _ in peer.read(2)}
        assert peer.is_at_end()
    assert wait_until(lambda: echo.server.connections == 0)


def test_a_peer_that_ends_its_half_without_a_call_is_closed(echo: EchoServer) -> None:
    """There is nothing to wait for."""
    with echo.raw() as peer:
        peer.send(request_frame(1, "Quick"))
        peer.read(1)
        peer.sock.shutdown(socket.SHUT_WR)

        assert peer.is_at_end()


def test_a_peer_that_ends_its_half_and_then_goes_cancels_its_calls(echo: EchoServer) -> None:
    """Nobody waits any more."""
    with echo.raw() as peer:
        peer.send(request_frame(1, "Wait"))
        peer.sock.shutdown(socket.SHUT_WR)
        assert wait_until(lambda: len(echo.contexts) == 1)

    assert wait_until(lambda: echo.contexts[0].is_cancelled)
    assert wait_until(lambda: echo.server.connections == 0)


def test_a_probe_is_no_event(echo: EchoServer) -> None:
    """`start` connects and closes at once to see whether a shim lives."""
    for _ in range(50):
        echo.raw().sock.close()

    assert wait_until(lambda: echo.server.connections == 0)
    assert [] == echo.faults + echo.refused


def test_a_peer_of_another_user_is_refused(tmp_path: Path) -> None:
    """Its connection is closed before a byte is read, and told of; nothing is answered."""
    with EchoServer(tmp_path / "s", authorize=lambda peer: peer is None or peer.uid == -5) as echo:
        with echo.connect() as client, pytest.raises(ConnectionClosedError):
            call(client, "Quick")

        assert [Credentials(os.getpid(), os.geteuid(), os.getegid())] == echo.refused
        assert (0, []) == (echo.server.connections, echo.contexts)


@pytest.mark.parametrize(
    ("uid", "gid", "expected"),
    [(0, 0, True), (1, 0, False), (0, 1, False)],
)
def test_same_user_means_effective_user_and_group(uid: int, gid: int, expected: bool) -> None:
    """Both, as containerd's servers have it; a transport without credentials has none to check."""
    assert expected is same_user(Credentials(1, os.geteuid() + uid, os.getegid() + gid))
    assert same_user(None)


def test_peer_credentials_of_another_family_are_unknown() -> None:
    """TCP has none."""
    with socket.socket(socket.AF_INET) as sock:
        assert peer_credentials(sock) is None


def test_out_of_descriptors_keeps_the_listener(echo: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who connects then is served later."""
    failures = [OSError(24, "Too many open files")]
    accept = socket.socket.accept

    def fail_first(sock: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise failures.pop()
        return accept(sock)

    monkeypatch.setattr(socket.socket, "accept", fail_first)
    with echo.connect() as client:
        assert b"x" == call(client, "Quick", b"x")

    assert ["accept"] == [method for method, _ in echo.faults]


def test_shutdown_answers_calls_in_flight_and_refuses_new_ones(echo: EchoServer) -> None:
    """Then it closes the connections and says so; nobody can connect from its beginning on."""
    drained = threading.Event()
    with echo.raw() as peer, echo.raw() as idle:
        peer.send(request_frame(1, "Block"))
        assert wait_until(lambda: echo.contexts and echo.server.connections == 2)
        echo.thread.call(lambda: echo.server.shutdown(PATIENCE_S, drained.set))
        peer.send(request_frame(3, "Quick"))

        assert [(3, Response(14, "server is shutting down", b""))] == peer.read(1)
        with pytest.raises(ConnectionRefusedError):
            echo.connect()
        assert not drained.is_set()
        echo.gate.set()
        assert [(1, Response(0, "", b"\x0a\x04late"))] == peer.read(1)
        assert peer.is_at_end()
        assert idle.is_at_end()
        assert drained.wait(PATIENCE_S)


def test_shutdown_gives_up_after_its_grace(echo: EchoServer) -> None:
    """A handler that hangs must not keep the process; its context tells it."""
    drained = threading.Event()
    with echo.raw() as peer:
        peer.send(request_frame(1, "Block"))
        assert wait_until(lambda: echo.contexts)
        echo.thread.call(lambda: echo.server.shutdown(0.05, drained.set))

        assert peer.is_at_end()
    assert drained.wait(PATIENCE_S)
    assert wait_until(lambda: echo.contexts[0].is_cancelled)


def test_shutdown_without_calls_is_over_at_once(echo: EchoServer) -> None:
    """It calls back once, however much time passes."""
    drained: list[float] = []
    with echo.raw() as peer:
        assert wait_until(lambda: echo.server.connections == 1)
        echo.thread.call(lambda: echo.server.shutdown(0.05, lambda: drained.append(time.monotonic())))

        assert peer.is_at_end()
        time.sleep(0.08)
        echo.thread.settle()
    assert 1 == len(drained)


def test_shutdown_writes_large_answers_to_their_end(echo: EchoServer) -> None:
    """An answer counts as given when its last byte is."""
    drained = threading.Event()
    with echo.raw() as peer:
        peer.send(big_frame(1, 4_000_000))
        assert wait_until(lambda: echo.count == 1)
        echo.thread.call(lambda: echo.server.shutdown(PATIENCE_S, drained.set))

        assert not drained.wait(0.05)
        ((stream_id, answer),) = peer.read(1)
        assert (1, 4_000_005) == (stream_id, len(answer.payload))
        assert drained.wait(PATIENCE_S)


def test_volume_leaves_nothing_behind(echo: EchoServer) -> None:
    """Connections come and go with calls of every end; descriptors and threads are as before."""
    before = len(open_descriptors()), threading.active_count()
    for _ in range(20):
        with echo.raw() as peer:
            peer.send(
                request_frame(1, "Quick") + request_frame(3, "Wait", timeout_ns=1) + request_frame(5, "Nope") + b"\0"
            )
            assert 3 == len(peer.read(3))
    assert wait_until(lambda: echo.server.connections == 0 and echo.pool.threads == 0)

    assert before == (len(open_descriptors()), threading.active_count())
    assert [] == [context for context in echo.contexts if not context.is_cancelled and context.method.endswith("Wait")]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoServer]:
    """One server for all examples: what one leaves broken, the next finds."""
    with EchoServer(tmp_path_factory.mktemp("fuzz") / "s") as server:
        server.gate.set()
        yield server
    assert [] == server.thread.errors


PIECES = st.one_of(
    st.binary(max_size=60),
    st.builds(encode_frame, st.integers(0, 9), st.integers(0, 5), st.integers(0, 7), st.binary(max_size=30)),
    st.builds(
        request_frame,
        st.integers(0, 9),
        st.sampled_from(["Echo", "Quick", "Fail", "Block", "Wait", "Wrong", "Nope"]),
        st.binary(max_size=10),
        st.integers(-1, 1_000_000),
    ),
)


@strategies.FEWER
@given(pieces=st.lists(PIECES, max_size=8))
def test_whatever_bytes_come_the_server_lives(fuzzed: EchoServer, pieces: list[bytes]) -> None:
    """Another client is served while they are dealt with, and after."""
    with fuzzed.connect() as client:
        with fuzzed.raw() as peer:
            try:
                for piece in pieces:
                    peer.send(piece)
            except BrokenPipeError:
                raise AssertionError("the server closed the connection") from None
            assert b"x" == call(client, "Quick", b"x")
        assert b"y" == call(client, "Quick", b"y")

    assert [] == fuzzed.thread.errors


def test_listening_after_the_end_is_an_error(tmp_path: Path) -> None:
    """No socket file is left behind."""
    with Server() as server:
        pass
    with pytest.raises(RuntimeError, match=r"^cannot listen on unix:.*/late.sock: the server has ended$"):
        server.listen(f"unix://{tmp_path}/late.sock")

    assert [] == list(tmp_path.iterdir())
