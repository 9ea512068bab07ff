"""Both styles of our ends behind one face, and Go's to meet them: containerd's shim by hand, a tap between two ends.

Rule: what a test does through `Ends` it does with the blocking library or with asyncio's, and nothing else differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self, TypeVar

import pytest
from google.protobuf.message import Message

from shim import ttrpc
from shim.api import task_v2_pb2 as task_api
from shim.api.task_v2_ttrpc import TASK_RPCS as TASK_V2_RPCS
from shim.api.task_v2_ttrpc import TaskRpcs
from shim.api.task_v3_ttrpc import TASK_RPCS as TASK_V3_RPCS
from shim.testing.releases import Release
from shim.ttrpc import CallContext, Deferred, Method, Rpc, Service, aio
from shim.ttrpc._envelope import Request, decode_request
from shim.ttrpc._frame import FrameReader
from tests.integration.byhand import Hand
from tests.integration.client import wait_until
from tests.integration.conftest import KINDS, Flavour, flavours

T = TypeVar("T")
RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)
Handler = Callable[[CallContext, Any], Any]

LIMIT_S: Final = 30.0
STYLES: Final = ("blocking", "asyncio")


class Caller(Protocol):
    """A client, whichever style it has inside."""

    def call(self, rpc: Rpc[RequestT, ResponseT], request: RequestT, *, timeout_s: float | None = None) -> ResponseT:
        """Call a method."""

    def call_raw(self, service: str, method: str, payload: bytes, *, timeout_s: float | None = None) -> bytes:
        """Call a method by its names."""

    def close(self) -> None:
        """Hang up."""


class Ends:
    """Makes clients and servers of the blocking library; a context manager that closes the clients.

    What a handler raised that none should is in `faults`.
    """

    def __init__(self) -> None:
        self.faults: list[tuple[str, BaseException]] = []
        self._clients: list[Caller] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self, address: str) -> Caller:
        """Return a client."""
        self._clients.append(self._connect(address))
        return self._clients[-1]

    @contextlib.contextmanager
    def serve(self, address: str, services: Sequence[Service]) -> Iterator[None]:
        """Serve while the block runs."""
        with ttrpc.Server(services, on_fault=self._fault) as server:
            server.listen(address)
            yield

    def handler(self, function: Handler) -> Handler:
        """Return a function as a handler in this style."""
        return function

    def close(self) -> None:
        """Close the clients."""
        for client in self._clients:
            client.close()

    def _connect(self, address: str) -> Caller:
        return ttrpc.connect(address, timeout_s=LIMIT_S)

    def _fault(self, method: str, error: BaseException) -> None:
        self.faults.append((method, error))


class AsyncioEnds(Ends):
    """The same with asyncio, on a loop in a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="asyncio")
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(LIMIT_S)

    @contextlib.contextmanager
    def serve(self, address: str, services: Sequence[Service]) -> Iterator[None]:
        """Serve while the block runs."""
        server = self.run(self._listen(address, services))
        try:
            yield
        finally:
            self.run(server.stop())

    def handler(self, function: Handler) -> Handler:
        """Return a coroutine function that waits for a deferred answer by itself."""

        async def handle(context: CallContext, request: Any) -> object:
            answer = function(context, request)
            if not isinstance(answer, Deferred):
                return answer
            is_done = asyncio.Event()

            def wake(_done: Deferred) -> None:
                self._loop.call_soon_threadsafe(is_done.set)

            answer.on_done(wake)
            await is_done.wait()
            return answer.result()

        return handle

    def close(self) -> None:
        """Close the clients, and the loop."""
        super().close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT_S)
        self._loop.close()

    async def _listen(self, address: str, services: Sequence[Service]) -> aio.Server:
        server = aio.Server(services, on_fault=self._fault)
        server.listen(address)
        return server

    def _connect(self, address: str) -> Caller:
        return _AsyncioCaller(self.run, self.run(aio.connect(address, timeout_s=LIMIT_S)))


class _AsyncioCaller:
    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any], client: aio.Client) -> None:
        self._run = run
        self._client = client

    def call(self, rpc: Rpc[RequestT, ResponseT], request: RequestT, *, timeout_s: float | None = None) -> ResponseT:
        response: ResponseT = self._run(self._client.call(rpc, request, timeout_s=timeout_s))
        return response

    def call_raw(self, service: str, method: str, payload: bytes, *, timeout_s: float | None = None) -> bytes:
        response: bytes = self._run(self._client.call_raw(service, method, payload, timeout_s=timeout_s))
        return response

    def close(self) -> None:
        async def close() -> None:
            self._client.close()

        self._run(close())


def make_ends(style: str) -> Ends:
    """Return the ends of one of STYLES."""
    return AsyncioEnds() if style == "asyncio" else Ends()


# Tasks.


def task_service(release: Release) -> str:
    """Return the name of the service that Go's shim of a release serves, and its `ctr shim` calls."""
    return f"containerd.task.v{2 if release.major < 2 else 3}.Task"


class Task:
    """The task service of a shim; requests are task v2's, which have the same bytes as v3's."""

    def __init__(self, caller: Caller, service: str, container: str) -> None:
        self.caller = caller
        self.container = container
        self._service = service

    def call(self, rpc: Rpc[RequestT, ResponseT], request: RequestT, timeout_s: float = LIMIT_S) -> ResponseT:
        """Make any call."""
        named = Rpc(self._service, rpc.name, rpc.request, rpc.response)
        return self.caller.call(named, request, timeout_s=timeout_s)

    def connect(self) -> task_api.ConnectResponse:
        """Ask for the pids of shim and init."""
        return self.call(TaskRpcs.CONNECT, task_api.ConnectRequest(id=self.container))

    def start(self) -> int:
        """Start init, and return its pid."""
        return self.call(TaskRpcs.START, task_api.StartRequest(id=self.container)).pid

    def state(self, exec_id: str = "") -> task_api.StateResponse:
        """Ask for the state of init or an exec."""
        return self.call(TaskRpcs.STATE, task_api.StateRequest(id=self.container, exec_id=exec_id))

    def wait(self, timeout_s: float = LIMIT_S) -> int:
        """Wait for the end of init, and return its exit status."""
        return self.call(TaskRpcs.WAIT, task_api.WaitRequest(id=self.container), timeout_s).exit_status

    def kill(self) -> None:
        """Kill init."""
        self.call(TaskRpcs.KILL, task_api.KillRequest(id=self.container, signal=9))

    def delete(self) -> task_api.DeleteResponse:
        """Delete the container."""
        return self.call(TaskRpcs.DELETE, task_api.DeleteRequest(id=self.container))

    def shutdown(self) -> None:
        """Ask the shim to end, which it does if it has no containers."""
        # One of ten times or so Go's shim has ended before it has written its answer.
        with contextlib.suppress(ttrpc.ConnectionClosedError):
            self.call(TaskRpcs.SHUTDOWN, task_api.ShutdownRequest(id=self.container, now=True))


def scripted_tasks(ends: Ends, answer: Callable[[str, Any], Message | Deferred]) -> list[Service]:
    """Return task v2 and v3, where `answer(rpc's name, request)` has every response, as task v2's."""

    def method(rpc: Rpc[Any, Any]) -> Method:
        def handle(context: CallContext, request: Message) -> Message | Deferred:
            response = answer(rpc.name, request)
            return response if isinstance(response, Deferred) else rpc.response.FromString(response.SerializeToString())

        return Method(rpc.name, rpc.request, rpc.response, ends.handler(handle))

    tables = (TASK_V2_RPCS, TASK_V3_RPCS)
    return [Service(rpcs[0].service, {rpc.name: method(rpc) for rpc in rpcs}) for rpcs in tables]


# Go's shim.


class GoHand(Hand):
    """Runs Go's shim of a release by hand."""

    def __init__(self, release: Release) -> None:
        super().__init__(release.go_shim)
        self.release = release
        self._addresses: dict[str, str] = {}

    def start_go(self, container: str, events: str = "") -> str:
        """Do `start`, which has to succeed, and return the daemon's address; `events` is where it shall publish."""
        environment = {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
        done = self.start(container, environment={**environment, **({"TTRPC_ADDRESS": events} if events else {})})

        assert (0, b"") == (done.returncode, done.stderr)
        # Since 2.0 it is JSON, with the address in it.
        self._addresses[container] = "unix://" + done.stdout.decode().partition("unix://")[2].partition('"')[0]
        return self._addresses[container]

    def close(self) -> list[str]:
        """End the daemons that tests have not ended, and return what did not go by itself."""
        for container, address in self._addresses.items():
            with contextlib.suppress(OSError, ttrpc.TtrpcError), ttrpc.connect(address, timeout_s=1) as client:
                task = Task(client, task_service(self.release), container)
                for step in (task.kill, task.wait, task.delete):
                    with contextlib.suppress(ttrpc.RpcError):
                        step()
                task.shutdown()
        paths = [Path(address.removeprefix("unix://")) for address in self._addresses.values()]
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not any(path.exists() for path in paths), "the daemons end", 5.0)
        left = [f"socket {path}" for path in paths if path.exists()]
        for path in paths:
            path.unlink(missing_ok=True)
        return left + super().close()


class Tapped(NamedTuple):
    """A request that a tap has seen: which connection it came on (counting from 0), its stream id, and itself."""

    connection: int
    stream_id: int
    request: Request


class Tap:
    """Listens at `path` in front of a server, and notes the requests that pass; a context manager."""

    def __init__(self, path: Path, server: Path) -> None:
        self.address = str(path)
        self.seen: list[Tapped] = []
        self._server = str(server)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="tap")]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LIMIT_S)
        for sock in (self._listener, *self._sockets):
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                number = len(self._sockets) // 2
                self._sockets += [client, server]
                server.connect(self._server)
                for source, target, note in ((client, server, number), (server, client, None)):
                    thread = threading.Thread(target=self._copy, args=(source, target, note), name="tap")
                    self._threads.append(thread)
                    thread.start()

    def _copy(self, source: socket.socket, target: socket.socket, connection: int | None) -> None:
        reader = FrameReader()
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if connection is not None:
                    frames = reader.feed(data)
                    self.seen += [
                        Tapped(connection, frame.stream_id, decode_request(frame.body or b"")) for frame in frames
                    ]
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)


# Fixtures, which a module of tests takes over by assignment.


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test with each release that is asked for, once: the kind of our shim makes no difference here."""
    if "go" in metafunc.fixturenames:
        chosen = flavours(metafunc.config.getoption("--containerd"), KINDS[:1])
        metafunc.parametrize("go", chosen, indirect=True, ids=[each.key for each in chosen], scope="session")


@pytest.fixture(scope="session")
def go(request: pytest.FixtureRequest) -> Release:
    """Return the release whose Go ends are met."""
    flavour: Flavour = request.param
    if isinstance(flavour.release, str):
        pytest.fail(f"no containerd {flavour.key}: {flavour.release}", pytrace=False)
    return flavour.release


@pytest.fixture(params=STYLES)
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """Return our ends, of one style after the other."""
    with make_ends(request.param) as made:
        yield made
