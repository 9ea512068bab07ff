"""The blocking client alone: connecting, closing, and a server that is silent, slow, or gone."""

import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from shim.ttrpc import Client, Code, ConnectionClosedError, RpcError, connect
from shim.ttrpc._envelope import encode_response
from shim.ttrpc._frame import RESPONSE, Frame, FrameReader, encode_frame
from tests.fakes import PATIENCE_S, wait_until
from tests.ttrpc.echo import SERVICE, EchoServer, call


@pytest.fixture
def pair() -> Iterator[tuple[Client, socket.socket]]:
    """A client, and the other end of its socket, where nobody answers; both take little before a write waits."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client = Client(ours)
    yield client, theirs
    client.close()
    theirs.close()


def in_thread(function: object) -> tuple[threading.Thread, list[BaseException]]:
    """Start `function` in a thread; what it raises is found in the list."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            assert callable(function)
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


@pytest.mark.parametrize("exists", [True, False])
def test_connect_to_nobody_names_the_address(exists: bool, tmp_path: Path) -> None:
    """Whether a dead server left its socket or not."""
    path = tmp_path / "s"
    if exists:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    error = ConnectionRefusedError if exists else FileNotFoundError

    with pytest.raises(error, match=f"cannot connect to unix://{path}: "):
        connect(f"unix://{path}")


def test_connect_to_no_address_is_an_error() -> None:
    """Found before any system call."""
    with pytest.raises(ValueError, match="unsupported protocol: http"):
        connect("http://x")


def test_close_ends_calls_in_flight_and_refuses_new_ones(echo: EchoServer) -> None:
    """All of them, whichever thread reads; closing twice is fine."""
    client = echo.connect()
    calls = [in_thread(lambda: call(client, "Wait", timeout_s=None)) for _ in range(3)]
    calls += [in_thread(lambda: call(client, "Wait"))]
    assert wait_until(lambda: len(echo.waits) == 4)
    client.close()
    client.close()
    for thread, _ in calls:
        thread.join(PATIENCE_S)

    assert [f"{SERVICE}/Wait: ttrpc: closed"] * 4 == [str(error) for _, errors in calls for error in errors]
    assert client.is_closed
    with pytest.raises(ConnectionClosedError, match=r"^test\.v1\.Echo/Quick: ttrpc: closed$"):
        call(client, "Quick")


def test_a_server_that_goes_ends_calls_in_flight(echo: EchoServer) -> None:
    """Their callers hear that it is closed, not that they have no answer yet."""
    client = echo.connect()
    calls = [in_thread(lambda: call(client, "Wait", timeout_s=None)) for _ in range(3)]
    assert wait_until(lambda: len(echo.waits) == 3)
    echo.thread.call(lambda: echo.server.shutdown(0.0, lambda: None))
    for thread, _ in calls:
        thread.join(PATIENCE_S)

    assert [ConnectionClosedError] * 3 == [type(error) for _, errors in calls for error in errors]
    assert client.is_closed
    client.close()


def test_a_connection_that_ends_inside_a_frame_is_closed(pair: tuple[Client, socket.socket]) -> None:
    """Half an answer is none."""
    client, peer = pair
    thread, errors = in_thread(lambda: call(client, "Quick"))
    peer.recv(100)
    peer.sendall(encode_frame(1, RESPONSE, 0, encode_response(b"abc"))[:-1])
    peer.close()
    thread.join(PATIENCE_S)

    assert [ConnectionClosedError] == [type(error) for error in errors]


def test_an_answer_that_comes_before_the_connection_ends_counts(pair: tuple[Client, socket.socket]) -> None:
    """A shim answers Shutdown and is gone."""
    client, peer = pair
    thread, errors = in_thread(lambda: call(client, "Quick"))
    peer.recv(100)
    peer.sendall(encode_frame(1, RESPONSE, 0, encode_response(BytesValue(value=b"x").SerializeToString())))
    peer.close()
    thread.join(PATIENCE_S)

    assert [] == errors


def test_a_reader_that_is_interrupted_hands_the_reading_on(echo: EchoServer) -> None:
    """Ctrl-C in one thread must not leave the others without anybody who reads."""
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        with echo.connect() as client:
            main = threading.get_ident()
            threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGUSR1)).start()
            others = [in_thread(lambda: wait_until(lambda: echo.waits) and call(client, "Wait")) for _ in range(2)]
            with pytest.raises(KeyboardInterrupt):
                call(client, "Wait", timeout_s=None)
            assert wait_until(lambda: len(echo.waits) == 3)
            for wait in echo.waits:
                wait.resolve(BytesValue(value=b"x"))
            for thread, _ in others:
                thread.join(5)

            assert [[], []] == [errors for _, errors in others]
            assert [False, False] == [thread.is_alive() for thread, _ in others]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_silent_server_cannot_outlast_a_deadline(pair: tuple[Client, socket.socket]) -> None:
    """The call ends at its time, and tells the server what that is."""
    client, peer = pair
    start = time.monotonic()
    with pytest.raises(RpcError) as caught:
        call(client, "Quick", timeout_s=0.05)

    assert 0.05 <= time.monotonic() - start < 5
    assert Code.DEADLINE_EXCEEDED == caught.value.code
    assert b"\x20\x80\xe1\xeb\x17" in peer.recv(100)  # timeout_nano = 50 ms
    assert not client.is_closed


def test_a_server_that_does_not_read_cannot_outlast_a_deadline(pair: tuple[Client, socket.socket]) -> None:
    """Nor in the middle of a request: its rest goes out before the next one, and frames that never began do not."""
    client, peer = pair
    for _ in range(3):
        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED: context deadline exceeded"):
            call(client, "Quick", bytes(1 << 20), timeout_s=0.05)
    thread, errors = in_thread(lambda: call(client, "Quick", b"next", timeout_s=PATIENCE_S))
    reader = FrameReader()
    frames: list[Frame] = []
    while len(frames) < 2:
        frames += reader.feed(peer.recv(1 << 20))
    peer.sendall(encode_frame(frames[1].stream_id, RESPONSE, 0, b""))
    thread.join(PATIENCE_S)

    assert [1, 7] == [frame.stream_id for frame in frames]
    assert b"next" in (frames[1].body or b"")
    assert [] == errors


def test_a_caller_behind_a_stuck_one_keeps_its_deadline(pair: tuple[Client, socket.socket]) -> None:
    """Waiting for the turn to send counts too (ttrpc#174)."""
    client, peer = pair
    thread, errors = in_thread(lambda: call(client, "Quick", bytes(1 << 20), timeout_s=None))
    assert wait_until(lambda: len(peer.recv(4096, socket.MSG_PEEK)) > 100)
    start = time.monotonic()
    with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
        call(client, "Quick", timeout_s=0.1)
    took = time.monotonic() - start
    peer.close()
    thread.join(PATIENCE_S)

    assert took < 5
    assert [ConnectionClosedError] == [type(error) for error in errors]


def test_a_deadline_of_centuries_is_fine(pair: tuple[Client, socket.socket]) -> None:
    """Whatever the system's calls can take."""
    client, peer = pair
    thread, errors = in_thread(lambda: call(client, "Quick", timeout_s=1e12))
    other, more = in_thread(lambda: call(client, "Quick", timeout_s=1e12))
    peer.recv(100)
    assert wait_until(lambda: client._link._has_reader)
    peer.close()
    thread.join(PATIENCE_S)
    other.join(PATIENCE_S)

    assert [ConnectionClosedError] * 2 == [type(error) for error in errors + more]


def test_a_request_over_the_limit_is_refused_here(echo: EchoServer) -> None:
    """And the connection goes on, with the largest that fits."""
    overhead = len(SERVICE) + len("Quick") + 30
    with echo.connect() as client:
        with pytest.raises(RpcError, match="RESOURCE_EXHAUSTED: message length"):
            call(client, "Quick", bytes(4 << 20))

        assert bytes((4 << 20) - overhead) == call(client, "Quick", bytes((4 << 20) - overhead))
