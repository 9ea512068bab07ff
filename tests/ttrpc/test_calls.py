"""Client and server over real sockets: answers, deadlines, waits, and whatever handlers raise."""

import os
import socket
import threading
import time
from collections.abc import Callable

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import BytesValue

from shim.errors import ContainerNotFoundError
from shim.ttrpc import Client, Code, Rpc, RpcError
from shim.ttrpc._envelope import Response
from shim.ttrpc.service import Credentials
from tests.fakes import PATIENCE_S, wait_until
from tests.ttrpc.echo import SERVICE, EchoServer, call, request_frame


def run_threads(count: int, function: Callable[[int], None]) -> list[BaseException]:
    """Run `function(number)` in so many threads at once and return what they raised."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            function(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def check_calls(client: Client, number: int, count: int) -> None:
    """Make `count` calls, each with a payload of its own, by both kinds of handler."""
    for step in range(count):
        payload = f"{number}.{step}".encode() * (1 + step % 50)
        assert payload == call(client, "Echo" if step % 4 == 0 else "Quick", payload)


def test_a_thousand_calls_of_sixteen_threads_get_their_own_answers(echo: EchoServer) -> None:
    """On one connection, to a unix socket."""
    with echo.connect() as client:
        assert [] == run_threads(16, lambda number: check_calls(client, number, 63))

    assert 16 * 63 == len(echo.contexts)


def test_calls_over_a_socketpair_get_their_own_answers(echo: EchoServer) -> None:
    """A server needs no listener; small socket buffers make every write partial."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    echo.thread.call(lambda: echo.server.add_connection(theirs))
    with Client(ours) as client:
        assert [] == run_threads(4, lambda number: check_calls(client, number, 25))
        assert [b"x" * 200_000] * 4 == [call(client, "Echo", b"x" * 200_000) for _ in range(4)]


def test_large_calls_both_ways_at_once_do_not_deadlock(echo: EchoServer) -> None:
    """200 kB there and back from four threads: the load that stopped Go's first client."""

    def work(number: int) -> None:
        payload = bytes([number]) * 200_000
        for _ in range(10):
            assert payload == call(client, "Echo", payload)

    with echo.connect() as client:
        assert [] == run_threads(4, work)


def test_metadata_and_credentials_reach_the_handler(echo: EchoServer) -> None:
    """Keys in lower case, values in order; the peer is who connected."""
    with echo.connect() as client:
        client.call(Rpc(SERVICE, "Quick", BytesValue, BytesValue), BytesValue(), metadata=[("Key", "a"), ("key", "b")])
    context = echo.contexts[0]

    assert (("key", "a"), ("key", "b")) == context.metadata
    assert Credentials(os.getpid(), os.geteuid(), os.getegid()) == context.peer
    assert (f"{SERVICE}/Quick", None) == (context.method, context.deadline)


def test_many_clients_at_once_are_kept_apart(echo: EchoServer) -> None:
    """Each connection has ids of its own."""
    clients = [echo.connect() for _ in range(20)]
    assert [b"%d" % number for number in range(20)] == [
        call(client, "Echo", b"%d" % number) for number, client in enumerate(clients)
    ]
    assert 20 == echo.server.connections
    for client in clients:
        client.close()

    assert wait_until(lambda: echo.server.connections == 0)


@pytest.mark.parametrize(
    ("error", "code", "text", "is_fault"),
    [
        (RpcError(Code.ABORTED, "said so"), 10, "said so", False),
        (RpcError(4711, "said so"), 4711, "said so", False),
        (ContainerNotFoundError("c"), 5, "container not created: not found", False),
        (FileNotFoundError(2, "none", "/f"), 5, "[Errno 2] none: '/f'", False),
        (OSError(5, "i/o"), 2, "[Errno 5] i/o", False),
        (ValueError("bug"), 2, "bug", True),
        (AssertionError(), 2, "AssertionError", True),
        (SystemExit(5), 2, "5", True),
        (KeyboardInterrupt(), 2, "KeyboardInterrupt", True),
        (GeneratorExit(), 2, "GeneratorExit", True),
        (RecursionError("deep"), 2, "deep", True),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), 2, None, True),
        (ValueError("\udcff"), 2, "?", True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
@pytest.mark.parametrize("method", ["Fail", "FailQuick"])
def test_whatever_a_handler_raises_is_contained_to_its_call(
    echo: EchoServer, method: str, error: BaseException, code: int, text: str | None, is_fault: bool
) -> None:
    """The peer gets a status, bugs are reported, and the connection and the loop go on."""
    echo.error = error
    with echo.connect() as client:
        for _ in range(2):
            with pytest.raises(RpcError) as caught:
                client.call(Rpc(SERVICE, method, Empty, Empty), Empty(), timeout_s=PATIENCE_S)
            assert code == caught.value.code
            assert text in (caught.value.message, None)
            assert f"{SERVICE}/{method}" == caught.value.method
        assert b"x" == call(client, "Echo", b"x")

    assert [(f"{SERVICE}/{method}", error)] * 2 * is_fault == echo.faults


@pytest.mark.parametrize(
    ("service", "method", "payload", "code", "text"),
    [
        ("no.Such", "Echo", b"", 12, "service no.Such"),
        ("", "", b"", 12, "service "),
        (SERVICE, "Nope", b"", 12, "method Nope"),
        (SERVICE, "Echo", b"\x0a\x05", 13, "ttrpc: error unmarshalling payload: "),
        (SERVICE, "Wrong", b"", 13, "method Wrong returned Empty, not google.protobuf.BytesValue"),
    ],
)
def test_calls_that_cannot_be_made_are_answered(
    echo: EchoServer, service: str, method: str, payload: bytes, code: int, text: str
) -> None:
    """With the code and text that Go's peers know, and the connection goes on."""
    with echo.connect() as client:
        with pytest.raises(RpcError) as caught:
            client.call_raw(service, method, payload, timeout_s=PATIENCE_S)
        assert b"x" == call(client, "Echo", b"x")

    assert code == caught.value.code
    assert caught.value.message.startswith(text)
    assert [] == echo.faults


def test_a_deadline_is_answered_once_and_the_late_result_dropped(echo: EchoServer) -> None:
    """At its time, not before; the handler learns that nobody waits."""
    with echo.raw() as peer:
        start = time.monotonic()
        peer.send(request_frame(1, "Block", timeout_ns=50_000_000))
        first = peer.read(1)
        took = time.monotonic() - start
        cancelled = echo.contexts[0].is_cancelled
        echo.gate.set()
        assert wait_until(lambda: echo.pool.threads == 0)
        peer.send(request_frame(3, "Quick", b"\x0a\x01x"))

        assert [(1, Response(4, "context deadline exceeded", b""))] == first
        assert 0.05 <= took < 5
        assert cancelled
        assert [(3, Response(0, "", b"\x0a\x01x"))] == peer.read(1)
    assert [] == echo.faults


def test_a_deadline_ends_a_wait(echo: EchoServer) -> None:
    """A deferred answer that comes after it is dropped too."""
    with echo.raw() as peer:
        peer.send(request_frame(1, "Wait", timeout_ns=20_000_000))
        assert [(1, Response(4, "context deadline exceeded", b""))] == peer.read(1)
        assert echo.waits[0].is_done
        echo.waits[0].resolve(BytesValue(value=b"late"))
        peer.send(request_frame(3, "Quick"))

        assert [(3, Response(0, "", b""))] == peer.read(1)


def test_a_deadline_that_has_passed_is_answered_at_once(echo: EchoServer) -> None:
    """Negative timeouts are how peers say so."""
    with echo.raw() as peer:
        peer.send(request_frame(1, "Block", timeout_ns=-1))

        assert [(1, Response(4, "context deadline exceeded", b""))] == peer.read(1)


def test_a_deadline_of_centuries_is_fine(echo: EchoServer) -> None:
    """No peer can stop the loop with one."""
    with echo.raw() as peer:
        peer.send(request_frame(1, "Wait", timeout_ns=(1 << 63) - 1) + request_frame(3, "Wait", timeout_ns=-(1 << 63)))
        assert [(3, Response(4, "context deadline exceeded", b""))] == peer.read(1)
        peer.send(request_frame(5, "Quick", b"\x0a\x01x", timeout_ns=1 << 62))

        assert [(5, Response(0, "", b"\x0a\x01x"))] == peer.read(1)


def test_five_hundred_waits_hold_no_thread_and_delay_nobody(echo: EchoServer) -> None:
    """They are answered when their time comes, each once."""
    with echo.raw() as peer, echo.connect() as client:
        threads = threading.active_count()
        peer.send(b"".join(request_frame(number, "Wait") for number in range(1, 1001, 2)))
        assert wait_until(lambda: len(echo.waits) == 500)
        peer.send(request_frame(1001, "Quick", b"\x0a\x01x"))

        assert [(1001, Response(0, "", b"\x0a\x01x"))] == peer.read(1)
        assert b"y" == call(client, "Quick", b"y")
        assert threads == threading.active_count()
        for number, wait in enumerate(echo.waits):
            wait.resolve(BytesValue(value=b"%d" % number))
        assert {2 * number + 1: b"%d" % number for number in range(500)} == {
            stream_id: BytesValue.FromString(answer.payload).value for stream_id, answer in peer.read(500)
        }


def test_a_wait_may_fail_or_end_with_a_wrong_answer(echo: EchoServer) -> None:
    """Both are answered as if the handler had raised or returned it."""
    with echo.raw() as peer:
        peer.send(request_frame(1, "Wait") + request_frame(3, "Wait") + request_frame(5, "Wait"))
        assert wait_until(lambda: len(echo.waits) == 3)
        echo.waits[0].fail(ContainerNotFoundError("c"))
        echo.waits[1].resolve(Empty())
        echo.waits[2].fail(ValueError("bug"))

        assert [
            (1, Response(5, "container not created: not found", b"")),
            (3, Response(13, "method Wait returned Empty, not google.protobuf.BytesValue", b"")),
            (5, Response(2, "bug", b"")),
        ] == peer.read(3)
    assert ["bug"] == [str(error) for _, error in echo.faults]


def test_a_client_that_gave_up_ignores_the_late_answer(echo: EchoServer) -> None:
    """The next calls get their own."""
    with echo.connect() as client:
        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED: context deadline exceeded"):
            call(client, "Block", timeout_s=0.02)
        echo.gate.set()

        assert [b"1", b"late", b"2"] == [call(client, "Echo", b"1"), call(client, "Block"), call(client, "Echo", b"2")]


def test_a_caller_whose_deadline_passes_hands_the_reading_on(echo: EchoServer) -> None:
    """It read for the others, who must not wait for ever."""
    answers: list[bytes] = []
    with echo.connect() as client:

        def work(number: int) -> None:
            if number == 0:
                with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
                    call(client, "Wait", timeout_s=0.05)
                for wait in echo.waits:
                    wait.resolve(BytesValue(value=b"x"))
            else:
                time.sleep(0.01)
                answers.append(call(client, "Wait"))

        assert [] == run_threads(5, work)

    assert [b"x"] * 4 == answers


def test_a_call_in_many_threads_may_be_slow_and_quick_in_any_order(echo: EchoServer) -> None:
    """Quick ones overtake slow ones on the same connection."""
    order: list[str] = []
    with echo.connect() as client:

        def work(number: int) -> None:
            if number == 0:
                order.append(call(client, "Block").decode())
            else:
                assert wait_until(lambda: bool(echo.contexts))
                order.append(call(client, "Quick", b"quick").decode())
                echo.gate.set()

        assert [] == run_threads(2, work)

    assert ["quick", "late"] == order


def test_a_wait_whose_peer_has_gone_is_resolved_into_nothing(echo: EchoServer) -> None:
    """Containers end long after their clients."""
    with echo.raw() as peer:
        peer.send(request_frame(1, "Wait"))
        assert wait_until(lambda: len(echo.waits) == 1)
    assert wait_until(lambda: echo.contexts[0].is_cancelled)
    assert wait_until(lambda: echo.waits[0].is_done)
    echo.waits[0].resolve(BytesValue(value=b"x"))

    assert [] == echo.faults
