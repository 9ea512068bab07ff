"""Stand-ins for what a shim lives among: a loop in a thread, and containerd's event service.

Both are context managers that leave no thread and no descriptor behind.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from shim.api import events_pb2
from shim.api.events_service_pb2 import ForwardRequest
from shim.ttrpc import CallContext, Client, Method, Service, connect
from shim.ttrpc.loop import Loop
from shim.ttrpc.loop_server import LoopServer
from shim.ttrpc.pool import WorkerPool

T = TypeVar("T")

# Far above what anything here takes, below the limit of a test.
PATIENCE_S: Final = 15.0


ROOT: Final = Path(__file__).parent.parent


def python_path() -> str:
    """Return a PYTHONPATH by which a child in another folder finds what this process finds."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def wait_until(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> bool:
    """Wait for a condition to hold; False when it did not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def connect_soon(address: str) -> Client:
    """Connect to a daemon that is about to listen."""
    clients: list[Client] = []

    def is_there() -> bool:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            clients.append(connect(address, timeout_s=PATIENCE_S))
        return bool(clients)

    assert wait_until(is_there), f"nobody listens on {address}"
    return clients[0]


def open_descriptors() -> list[int]:
    """Return what this process has open, the one for looking excepted."""
    return sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}"))


class LoopThread:
    """A loop that runs in a thread of its own; what its callbacks raise is kept in `errors`."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.loop = Loop(on_error=self.errors.append)
        self._thread = threading.Thread(target=self.loop.run, name="loop")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, function: Callable[[], T]) -> T:
        """Return what `function` returns on the loop's thread."""
        results: list[T] = []
        done = threading.Event()

        def run() -> None:
            try:
                results.append(function())
            finally:
                done.set()

        self.loop.call_soon(run)
        assert done.wait(PATIENCE_S), "the loop does not answer"
        assert results, self.errors
        return results[0]

    def settle(self) -> None:
        """Wait until what has been handed to the loop so far is done."""
        self.call(lambda: None)

    def close(self) -> None:
        """End the thread."""
        self.loop.stop()
        self._thread.join(PATIENCE_S)
        if not self._thread.is_alive():
            self.loop.close()


class Event(NamedTuple):
    """What a shim published."""

    topic: str
    namespace: str
    message: Message


class FakeContainerd:
    """containerd's event service on a unix socket; it can go away and come back."""

    def __init__(self, thread: LoopThread, path: Path) -> None:
        self.path = str(path)
        self.events: list[Event] = []
        self.requests: list[ForwardRequest] = []
        self.contexts: list[CallContext] = []
        self.faults: list[BaseException] = []
        # Raise from here to refuse an event; it runs before the event counts.
        self.judge: Callable[[Event], None] = lambda _event: None
        self._thread = thread
        self._server: LoopServer | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; again, after a stop."""
        Path(self.path).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path)
        listener.listen()
        method = Method("Forward", ForwardRequest, Empty, self._forward, is_inline=True)
        service = Service("containerd.services.events.ttrpc.v1.Events", {"Forward": method})

        def serve() -> None:
            pool = WorkerPool(on_error=self._thread.errors.append)
            self._server = LoopServer(
                [service],
                self._thread.loop,
                pool,
                on_fault=lambda _method, error: self.faults.append(error),
            )
            self._server.add_listener(listener)

        self._thread.call(serve)

    def stop(self) -> None:
        """Go away with all connections."""
        server, self._server = self._server, None
        if server is not None:
            self._thread.call(lambda: server.shutdown(0.0, lambda: None))
            self._thread.settle()
            assert wait_until(lambda: server.connections == 0)

    def topics(self, container: str) -> list[str]:
        """Return the topics of a container's events, in order."""
        return [event.topic for event in self.of(container)]

    def of(self, container: str) -> list[Event]:
        """Return a container's events, in order."""
        return [event for event in list(self.events) if getattr(event.message, "container_id", "") == container]

    def _forward(self, context: CallContext, request: ForwardRequest) -> Empty:
        envelope = request.envelope
        name = envelope.event.type_url.rpartition(".")[2]
        message: Message = getattr(events_pb2, name).FromString(envelope.event.value)
        event = Event(envelope.topic, envelope.namespace, message)
        self.judge(event)
        self.requests.append(request)
        self.contexts.append(context)
        self.events.append(event)
        return Empty()
