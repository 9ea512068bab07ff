"""How clients end: the hook, forks, the interpreter's exit, a loop that is closed."""

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shim import ttrpc
from shim.ttrpc import ConnectionClosedError, aio, aio_link, link
from shim.ttrpc.address import end_connection
from tests.fakes import PATIENCE_S, open_descriptors, python_path, wait_until
from tests.protos.conformance_pb2 import Payload, Total
from tests.protos.conformance_ttrpc import ConformanceRpcs as Rpcs
from tests.ttrpc.conformance.conftest import Connect
from tests.ttrpc.conformance.ends import End
from tests.ttrpc.conformance.script import Script, data, pair, response
from tests.ttrpc.conformance.servers import ServerEnd


def test_hook_runs_when_the_server_goes(connect: Connect, server: ServerEnd) -> None:
    """Go TestClientEOF: once, without any call being made; the next call is `closed`."""
    closed: list[int] = []
    client: End = connect(server.address, on_close=lambda: closed.append(client.active))
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    assert [] == closed
    server.stop()
    server.wait()
    assert wait_until(lambda: closed == [0])
    with pytest.raises(ConnectionClosedError, match="ttrpc: closed"):
        client.call(Rpcs.ECHO, Payload())
    client.close()

    assert (True, [0]) == (client.is_closed, closed)


def test_hook_runs_after_every_call_has_failed(connect: Connect) -> None:
    """Table 3.2, on-close hook."""
    script, sock = pair()
    done: list[int] = []
    client: End = connect(sock, on_close=lambda: done.append(client.active - client.core.active))
    calls = [client.start(Rpcs.ECHO, Payload()) for _ in range(5)]
    stream = client.open(Rpcs.ECHO_STREAM)
    script.frames(6)
    script.close()

    assert wait_until(lambda: done == [0])
    for wait in [*[call.result for call in calls], stream.recv]:
        with pytest.raises(ConnectionClosedError):
            wait()
    assert [0] == done


def test_hook_runs_once_for_our_own_close(connect: Connect) -> None:
    """And a hook that blocks holds up nobody but itself (Go TestUserOnCloseWait)."""
    script, sock = pair()
    closed: list[int] = []
    client = connect(sock, on_close=lambda: closed.append(1))
    client.close()
    client.close()

    assert wait_until(lambda: closed == [1])
    script.close()


def test_a_blocking_hook_holds_up_no_close() -> None:
    """It has a thread of its own."""
    script, sock = pair()
    entered, leave = threading.Event(), threading.Event()

    def hook() -> None:
        entered.set()
        leave.wait(PATIENCE_S)

    client = ttrpc.connect(sock, on_close=hook)
    script.close()
    assert entered.wait(PATIENCE_S)
    client.close()
    with pytest.raises(ConnectionClosedError):
        client.call(Rpcs.ECHO, Payload())
    leave.set()


def test_hook_runs_although_a_stream_is_full(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads from the connection just then; the server's end is seen all the same, and nothing is lost."""
    for module in (link, aio_link):
        monkeypatch.setattr(module, "_STALL_S", 0.02)
    script, sock = pair()
    closed: list[int] = []
    client = connect(sock, on_close=lambda: closed.append(1))
    lazy = client.open(Rpcs.DIVIDE, Total())
    script.frames(1)
    for _ in range(10):
        script.send(*[data(1)] * 10)
    script.close()

    assert wait_until(lambda: closed == [1])
    assert 100 == len(lazy.read(100))
    with pytest.raises(ConnectionClosedError):
        lazy.recv()


def test_hook_runs_for_an_abandoned_stream_that_is_full(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its object is garbage, the connection is read again."""
    monkeypatch.setattr(aio_link, "_STALL_S", 0.02)
    script, sock = pair()
    closed: list[int] = []
    client = connect(sock, on_close=lambda: closed.append(1))
    lazy = client.open(Rpcs.DIVIDE, Total())
    script.send(*[data(1)] * 100)
    del lazy
    gc.collect()
    call = client.start(Rpcs.ECHO, Payload())
    assert 2 == len(script.frames(2))
    script.send(response(3))
    assert Payload() == call.result()
    script.close()

    assert wait_until(lambda: closed == [1])


def test_clients_leave_nothing_behind(connect: Connect, server: ServerEnd) -> None:
    """Descriptors and threads are as before, with hooks and without, closed by either side or forgotten."""
    before, threads = open_descriptors(), threading.active_count()
    for number in range(6):
        client = connect(server.address, on_close=(lambda: None) if number % 2 else None)
        assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
        client.dispose()

    assert wait_until(lambda: server.server.connections == 0)
    assert wait_until(lambda: before == open_descriptors())
    assert wait_until(lambda: threading.active_count() <= threads + server.server.pool.threads)


def test_a_forgotten_client_is_closed(server: ServerEnd) -> None:
    """The blocking one needs no close: the connection ends with its last reference, and its hook runs."""
    closed: list[int] = []
    client = ttrpc.connect(server.address, on_close=lambda: closed.append(1))
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    stream = client.open(Rpcs.ECHO_STREAM)
    del client
    gc.collect()
    stream.send(Payload(seq=1))  # which keeps its connection
    assert Payload(seq=2) == stream.recv()
    del stream
    gc.collect()

    assert wait_until(lambda: server.server.connections == 0 and closed == [1])


@pytest.mark.parametrize("does", ["exits", "closes", "forgets"])
def test_fork_with_an_open_client(client: End, server: ServerEnd, does: str) -> None:
    """8.4: what the child does with its copy, the parent's connection lives on."""
    stream = client.open(Rpcs.ECHO_STREAM)
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    child = os.fork()
    if child == 0:
        try:
            inner = client.client  # type: ignore[attr-defined]  # of either kind
            if does == "closes":
                if client.kind == "blocking":
                    inner.close()
                else:  # its loop is the parent's: no call of asyncio's is right there
                    end_connection(inner._link._sock, inner._link._pid)
            elif does == "forgets" and client.kind == "blocking":
                inner._link.hang_up()  # what the collection of the last reference does
        finally:
            os._exit(0)
    assert (child, 0) == os.waitpid(child, 0)
    stream.send(Payload(seq=5))

    assert Payload(seq=6) == stream.recv()
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    stream.cancel()


BLOCKED = {
    "blocking": """
import socket, sys, threading
from shim import ttrpc
from tests.protos.conformance_pb2 import Payload
from tests.protos.conformance_ttrpc import ConformanceRpcs as Rpcs
client = ttrpc.connect(int(sys.argv[1]), on_close=lambda: None)
for _ in range(3):
    threading.Thread(target=client.call, args=(Rpcs.ECHO, Payload()), daemon=True).start()
stream = client.open(Rpcs.ECHO_STREAM)
threading.Thread(target=stream.recv, daemon=True).start()
sys.stdin.read()
""",
    "asyncio": """
import asyncio, sys
from shim.ttrpc import aio
from tests.protos.conformance_pb2 import Payload
from tests.protos.conformance_ttrpc import ConformanceRpcs as Rpcs
async def main():
    client = await aio.connect(int(sys.argv[1]))
    tasks = [asyncio.create_task(client.call(Rpcs.ECHO, Payload())) for _ in range(3)]
    stream = await client.open(Rpcs.ECHO_STREAM)
    tasks.append(asyncio.create_task(stream.recv()))
    await asyncio.to_thread(sys.stdin.read)
    return client, stream
asyncio.run(main())[0].close()
""",
}


def test_interpreter_exits_with_callers_blocked(kind: str) -> None:
    """8.4: neither a thread that reads nor a task that waits keeps the process, and it says nothing."""
    script, sock = pair()
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", BLOCKED[kind], str(sock.fileno())]
    environment = {"PYTHONPATH": python_path(), "PATH": os.environ["PATH"]}
    child = subprocess.Popen(
        command, pass_fds=[sock.fileno()], env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    sock.close()
    assert {1, 3, 5, 7} == {frame.stream_id for frame in script.frames(4)}
    _, said = child.communicate(b"", PATIENCE_S)

    assert (0, b"") == (child.returncode, said)
    assert script.is_at_end()
    script.close()


def test_a_loop_that_is_closed_with_pending_calls() -> None:
    """8.4: the client can still be closed, which frees its descriptor."""
    before = open_descriptors()
    script, sock = pair()
    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(aio.connect(sock))
    call = loop.create_task(client.call(Rpcs.ECHO, Payload()))
    stream = loop.run_until_complete(client.open(Rpcs.ECHO_STREAM))
    assert 2 == len(script.frames(2))
    loop.close()
    client.close()
    client.close()

    assert script.is_at_end()
    assert client.is_closed
    script.close()
    del stream
    call._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's word for it
    assert before == open_descriptors()


def test_a_signal_handler_that_raises_ends_the_call() -> None:
    """As Ctrl-C does: the caller is free, nothing stays in the tables, and the next call is answered."""

    class Interruption(Exception):
        """Raised by the handler."""

    done = threading.Event()

    def interrupt(_signum: int, _frame: object) -> None:
        if not done.is_set():
            done.set()
            raise Interruption

    script, sock = pair()
    client = ttrpc.connect(sock)
    old = signal.signal(signal.SIGUSR2, interrupt)
    main = threading.main_thread().ident
    assert main is not None
    try:

        def send() -> None:
            script.frames(1)
            while not done.wait(0.01):  # one that comes just before the system call does not end that
                signal.pthread_kill(main, signal.SIGUSR2)

        sender = threading.Thread(target=send)
        sender.start()
        with pytest.raises(Interruption):
            client.call(Rpcs.ECHO, Payload())
        sender.join()
    finally:
        signal.signal(signal.SIGUSR2, old)
    assert (0, 0) == (len(client._link._pending), client._link._connection.active)

    answerer = threading.Thread(target=lambda: script.send(response(script.frames(1)[0].stream_id)))
    answerer.start()
    assert Payload() == client.call(Rpcs.ECHO, Payload())
    answerer.join()
    client.close()
    script.close()


def test_connecting_to_nobody(kind: str, tmp_path: Path, connect: Connect) -> None:
    """The error names the address, and no descriptor stays."""
    before = open_descriptors()
    with pytest.raises(FileNotFoundError, match="cannot connect to unix:///"):
        connect(f"unix://{tmp_path}/none")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "bound"))
        with pytest.raises(ConnectionRefusedError, match="cannot connect to unix:///"):
            connect(f"unix://{tmp_path}/bound")

    assert before == open_descriptors()


def test_closing_without_a_call(scripted: tuple[Script, End]) -> None:
    """A client that never called anything can be closed."""
    script, client = scripted
    client.close()

    assert script.is_at_end()
