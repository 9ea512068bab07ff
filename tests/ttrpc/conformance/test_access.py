"""Who may connect, how many, and what a connection may hold; the addresses where servers live."""

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from shim.ttrpc import ConnectionClosedError, Credentials, Limits, RpcError
from tests.fakes import open_descriptors, wait_until
from tests.protos.conformance_pb2 import Payload
from tests.protos.conformance_ttrpc import ConformanceRpcs as Rpcs
from tests.ttrpc.conformance.conftest import Connect
from tests.ttrpc.conformance.ends import KINDS, End, make_end
from tests.ttrpc.conformance.scene import HOLD, STALL
from tests.ttrpc.conformance.script import data, dial, request
from tests.ttrpc.conformance.servers import ServerEnd

Serve = Callable[..., ServerEnd]
OTHER = 65534  # nobody


def test_same_user_is_accepted(client: End, server: ServerEnd) -> None:
    """Go TestUnixSocketHandshake: and the handler knows who it is."""
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())

    assert Credentials(os.getpid(), os.geteuid(), os.getegid()) == server.scene.contexts[0].peer


def test_another_user_is_refused_and_told_of(style: str, kind: str) -> None:
    """8.4, credentials: its connection ends before a byte is read; the server's owner hears of it. Needs root."""
    assert 0 == os.geteuid(), "run as root: another user is needed"
    server = ServerEnd(style, f"@shim-conformance-{os.getpid()}-other")
    child = os.fork()
    if child == 0:
        status = 3
        try:
            os.setgid(OTHER)
            os.setuid(OTHER)
            end = make_end(kind, server.address)
            try:
                end.call(Rpcs.ECHO, Payload())
            except ConnectionClosedError:
                status = 0
        finally:
            os._exit(status)
    assert (child, 0) == os.waitpid(child, 0)

    assert [Credentials(child, OTHER, OTHER)] == server.refused
    assert ([], 0) == (server.scene.contexts, server.server.connections)
    server.dispose()


def test_refusal_is_for_one_connection(serve: Serve, connect: Connect) -> None:
    """Rust accept_hook_rejects, table 3.3 handshake failure: the next one is asked about anew; no descriptor stays."""
    asked: list[Credentials | None] = []

    def authorize(credentials: Credentials | None) -> bool:
        asked.append(credentials)
        return len(asked) > 1

    server = serve(authorize=authorize)
    before = len(open_descriptors())
    raw = dial(server.address)
    assert raw.is_at_end()
    raw.close()
    assert before == len(open_descriptors())

    assert Payload(seq=1) == connect(server.address).call(Rpcs.ECHO, Payload())
    assert (2, 1) == (len(asked), len(server.refused))


def test_authorize_that_raises_refuses(serve: Serve, connect: Connect) -> None:
    """A fault of the author's: told of, the connection closed, and the server goes on accepting."""
    errors = [ValueError("bug")]

    def authorize(credentials: Credentials | None) -> bool:
        if errors:
            raise errors.pop()
        return True

    server = serve(authorize=authorize)
    raw = dial(server.address)
    assert raw.is_at_end()
    raw.close()

    assert Payload(seq=1) == connect(server.address).call(Rpcs.ECHO, Payload())
    assert ["bug"] == [str(error) for _, error in server.faults]


def test_slow_authorize_holds_up_nobody_else(serve: Serve, connect: Connect) -> None:
    """8.4, slow hook: calls of others are answered and others accepted meanwhile (Go blocks every accept)."""
    entered, leave = threading.Event(), threading.Event()
    slow = threading.Lock()

    def authorize(credentials: Credentials | None) -> bool:
        if slow.acquire(blocking=False):
            entered.set()
            leave.wait(10)
        return True

    server = serve(authorize=authorize)
    first = dial(server.address)
    assert entered.wait(10)
    client = connect(server.address)
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    first.send(request(1, "Echo"))
    leave.set()

    assert ["1 OK 0801"] == first.said(1)
    first.close()


def test_connections_beyond_the_limit_wait(serve: Serve, connect: Connect) -> None:
    """They are served once others have gone, in the meantime nothing is lost."""
    server = serve(limits=Limits(connections=2))
    first, second, third = connect(server.address), connect(server.address), connect(server.address)
    assert Payload(seq=1) == first.call(Rpcs.ECHO, Payload())
    assert Payload(seq=1) == second.call(Rpcs.ECHO, Payload())
    waiting = third.start(Rpcs.ECHO, Payload(seq=7))
    assert Payload(seq=1) == first.call(Rpcs.ECHO, Payload())
    assert (2, False) == (server.server.connections, waiting.is_done)
    first.close()

    assert Payload(seq=8) == waiting.result()
    assert wait_until(lambda: server.server.connections == 2)


def test_calls_beyond_the_limit_are_refused(serve: Serve, connect: Connect) -> None:
    """On that connection alone, streams count too; once others have ended there is room again."""
    server = serve(limits=Limits(calls=3))
    client, other = connect(server.address), connect(server.address)
    calls = [client.start(Rpcs.SLEEP, HOLD) for _ in range(2)]
    stream = client.open(Rpcs.ECHO_STREAM)
    assert wait_until(lambda: len(server.scene.contexts) == 3)
    for _ in range(3):
        with pytest.raises(RpcError, match="RESOURCE_EXHAUSTED: more than 3 calls in flight on this connection"):
            client.call(Rpcs.ECHO, Payload())
    assert Payload(seq=1) == other.call(Rpcs.ECHO, Payload())
    stream.close_send()
    assert [] == stream.rest()
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    server.scene.gate.open()

    assert [Empty()] * 2 == [call.result() for call in calls]


def test_full_stream_is_given_up_after_its_time(serve: Serve) -> None:
    """Transcript 11.6, 200 x D/0 to a stalled handler, then a unary call: one status for all that comes for it."""
    server = serve(limits=Limits(stall_s=0.05))
    raw = dial(server.address)
    raw.send(request(1, "EchoStream", b"", 2), data(1, STALL), *[data(1)] * 200)
    assert ["1 8 ttrpc: stream buffer full"] == raw.said(1)
    raw.send(*[data(1)] * 200, request(3, "Echo"))
    said = raw.said(2)
    server.scene.gate.open()

    assert ["1 3 StreamID is no longer active", "3 OK 0801"] == said
    raw.close()


def _has_vsock_loopback() -> bool:
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
            sock.bind((1, socket.VMADDR_PORT_ANY))
        return True
    except OSError:
        return False


ADDRESSES = ["unix", "plain", "abstract", "at"] + ["vsock"] * _has_vsock_loopback()


@pytest.mark.parametrize("form", ADDRESSES)
def test_addresses(form: str, kind: str, style: str, tmp_path: Path) -> None:
    """Section 6: a path with a scheme and without, an abstract name in either spelling, vsock where it loops back."""
    name = f"shim-conformance-{os.getpid()}-{kind}-{style}"
    served, dialled = {
        "unix": (f"unix://{tmp_path}/s",) * 2,
        "plain": (f"{tmp_path}/s",) * 2,
        "abstract": (f"@{name}", name),
        "at": (f"unix://@{name}", f"@{name}"),
        "vsock": ("vsock://1:50123",) * 2,
    }[form]
    server = ServerEnd(style, served)
    end = make_end(kind, dialled)
    assert Payload(seq=1) == end.call(Rpcs.ECHO, Payload())
    end.dispose()
    server.dispose()

    assert not (tmp_path / "s").exists()
    with pytest.raises(OSError, match="cannot connect to"):
        make_end(kind, dialled)


def test_an_abstract_name_is_free_again(style: str) -> None:
    """Rust test_server_lifetime: it is gone with its server."""
    for _ in range(3):
        server = ServerEnd(style, f"@shim-conformance-{os.getpid()}-lifetime")
        server.dispose()


@pytest.mark.parametrize("form", ["descriptor", "socket", "socketpair"])
def test_inherited_and_connected_sockets(server: ServerEnd, connect: Connect, form: str) -> None:
    """Section 6: a descriptor's number, a connected socket, and no listener at all."""
    if form == "socketpair":
        sock, theirs = socket.socketpair()
        server.on_loop(lambda: server.server.add_connection(theirs))
    else:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(server.address.removeprefix("unix://"))
    client = connect(sock.detach() if form == "descriptor" else sock)

    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    assert Credentials(os.getpid(), os.geteuid(), os.getegid()) == server.scene.contexts[0].peer


def test_inherited_listener(style: str, connect: Connect, tmp_path: Path) -> None:
    """As a shim gets it: bound by somebody else, whose file stays when the server ends."""
    server = ServerEnd(style, f"unix://{tmp_path}/own")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "theirs"))
    listener.listen()
    inherited = socket.socket(fileno=os.dup(listener.fileno()))
    listener.close()
    server.on_loop(lambda: server.server.add_listener(inherited))

    assert Payload(seq=1) == connect(f"unix://{tmp_path}/theirs").call(Rpcs.ECHO, Payload())
    server.dispose()
    assert ["theirs"] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize("kind_", KINDS)
def test_descriptor_that_is_no_socket(kind_: str) -> None:
    """The error names it."""
    read_end, write_end = os.pipe()
    with pytest.raises(OSError, match=f"descriptor {read_end} is no socket"):
        make_end(kind_, read_end)
    os.close(read_end)
    os.close(write_end)


def test_a_listener_survives_a_flood_of_connections(server: ServerEnd, connect: Connect) -> None:
    """Hundreds at once, most of which say nothing."""
    scripts = [dial(server.address) for _ in range(100)]
    client = connect(server.address)
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    began = time.monotonic()
    for script in scripts:
        script.close()

    assert wait_until(lambda: server.server.connections == 1)
    assert time.monotonic() - began < 10
