"""containerd's event service on a socket: takes what a shim publishes, in order, and fails it when told to.

Rule: an event counts once the daemon would have passed it on; what it would refuse is refused with its words.
Spec: containerd plugins/services/events/ttrpc.go, core/events/exchange/exchange.go.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from shim.api import events_pb2
from shim.api.events_service_pb2 import ForwardRequest
from shim.api.events_service_ttrpc import EventsService, events_service
from shim.testing.conditions import PATIENCE_S, wait_until
from shim.ttrpc import CallContext, Code, Deferred, RpcError, Server
from shim.ttrpc.loop import READABLE

_IDENTIFIER: Final = re.compile(r"^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$")
_LONGEST_IDENTIFIER: Final = 76


@dataclass(frozen=True, slots=True)
class Event:
    """One event as the shim forwarded it; `message` is decoded when its type is one of containerd's."""

    topic: str
    namespace: str
    message: Any  # whatever the shim forwards; a test knows what it looks for
    timestamp_ns: int = field(default=0, compare=False)

    @property
    def container(self) -> str:
        """The container that the event is about, or ''."""
        return str(getattr(self.message, "container_id", ""))

    @property
    def exec(self) -> str:
        """The exec that the event is about, or '' when it is about the container or its init."""
        own = getattr(self.message, "exec_id", "") or getattr(self.message, "id", "")
        return "" if own == self.container else str(own)


class Gate:
    """Holds up whoever comes to it until it is released."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], None]] = []
        self._is_open = False
        self.reached: int = 0

    def pass_through(self, go_on: Callable[[], None]) -> None:
        """Call `go_on()` once released."""
        with self._lock:
            self.reached += 1
            if not self._is_open:
                self._waiting.append(go_on)
                return
        go_on()

    def wait_reached(self, count: int = 1) -> None:
        """Wait until so many have come."""
        assert wait_until(lambda: self.reached >= count), f"{self.reached} of {count} have come"  # noqa: S101

    def release(self) -> None:
        """Let go all who wait, and hold up nobody any more."""
        with self._lock:
            self._is_open = True
            waiting, self._waiting = self._waiting, []
        for go_on in waiting:
            go_on()


@dataclass(slots=True)
class _Fault:
    """What happens to the next events of a topic instead of an answer."""

    topic: str
    times: int | None
    error: RpcError | None = None
    gate: Gate | None = None
    counts: bool = True


class EventService(EventsService):
    """Serves `Forward` at a path, also after a stop; a context manager that starts and stops it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: str = os.fspath(path)
        self.events: list[Event] = []
        self.requests: list[ForwardRequest] = []
        self.contexts: list[CallContext] = []
        self.faults: list[BaseException] = []
        # Raise from here to refuse an event; it runs before the event counts.
        self.judge: Callable[[Event], None] = lambda _event: None
        self._changed = threading.Condition()
        self._planned: list[_Fault] = []
        self._server: Server | None = None
        self._connections: list[socket.socket] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def is_running(self) -> bool:
        """Say whether anybody listens."""
        return self._server is not None

    def start(self) -> None:
        """Listen; again, after a stop."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path)
        listener.listen()
        listener.setblocking(False)
        server = Server(
            [events_service(self, inline=["Forward"])], on_fault=lambda _method, error: self.faults.append(error)
        )
        self._server = server.__enter__()
        self._listener = listener
        server.loop.call_soon(
            lambda: server.loop.register(listener.fileno(), READABLE, lambda _events: self._accept(server))
        )

    def stop(self) -> None:
        """Go away with all connections, as containerd does when it ends."""
        server, self._server = self._server, None
        if server is None:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        closed = threading.Event()

        def close() -> None:
            server.loop.unregister(self._listener.fileno())
            self._listener.close()
            closed.set()

        server.loop.call_soon(close)
        closed.wait(PATIENCE_S)
        server.stop(0.0)
        server.__exit__(None, None, None)
        self._forget_connections()

    def restart(self) -> None:
        """Stop and start on the same address."""
        self.stop()
        self.start()

    # What goes wrong.

    def refuse(
        self,
        topic: str = "",
        *,
        code: Code = Code.UNAVAILABLE,
        text: str = "not now",
        times: int | None = None,
    ) -> None:
        """Answer the next `times` events of a topic (all: '' and None) with an error; they do not count."""
        self._plan(_Fault(topic, times, error=RpcError(code, text), counts=False))

    def hold(self, topic: str = "", *, times: int | None = None) -> Gate:
        """Take the next events but answer them only when the gate that is returned is released."""
        gate = Gate()
        self._plan(_Fault(topic, times, gate=gate))
        return gate

    def drop(self, topic: str = "", *, times: int | None = 1, counts: bool = True) -> None:
        """Close every connection instead of answering the next events, which count if only the answer shall be lost."""
        self._plan(_Fault(topic, times, counts=counts))

    def behave(self) -> None:
        """Forget what was to go wrong; what is held stays so."""
        with self._changed:
            self._planned.clear()

    # What has come.

    def of(self, container: str) -> list[Event]:
        """Return a container's events, in order."""
        return [event for event in list(self.events) if event.container == container]

    def topics(self, container: str) -> list[str]:
        """Return the topics of a container's events, in order."""
        return [event.topic for event in self.of(container)]

    def wait_for(
        self,
        topic: str,
        *,
        container: str | None = None,
        exec: str | None = None,  # containerd's word
        count: int = 1,
        timeout_s: float = PATIENCE_S,
    ) -> Event:
        """Return the `count`-th event with this topic, once it has come.

        Raises:
            AssertionError: It has not; the text names what has.
        """

        def found() -> list[Event]:
            return [
                event
                for event in self.events
                if event.topic == topic and container in (None, event.container) and exec in (None, event.exec)
            ]

        with self._changed:
            self._changed.wait_for(lambda: len(found()) >= count, timeout_s)
            matching = found()
            if len(matching) < count:
                came = " ".join(event.topic for event in self.events) or "nothing"
                raise AssertionError(f"{len(matching)} of {count} times {topic} within {timeout_s} s; came: {came}")
            return matching[count - 1]

    def wait_for_topics(self, container: str, topics: Sequence[str], timeout_s: float = PATIENCE_S) -> None:
        """Wait until a container's events are exactly these, in this order.

        Raises:
            AssertionError: They are not; the text has both lists.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.topics(container) == list(topics), timeout_s):
                raise AssertionError(f"{container}: expected {list(topics)}, came {self.topics(container)}")

    # Serving.

    def forward(self, context: CallContext, request: ForwardRequest, /) -> Empty | Deferred:
        """Take one event, or do to it what was planned."""
        event = _decode(request)
        _validate(request)
        self.judge(event)
        fault = self._take_fault(event.topic)
        if fault is None or fault.counts:
            with self._changed:
                self.events.append(event)
                self.requests.append(request)
                self.contexts.append(context)
                self._changed.notify_all()
        if fault is None:
            return Empty()
        if fault.error is not None:
            raise fault.error
        answer = Deferred()
        if fault.gate is not None:
            fault.gate.pass_through(lambda: answer.resolve(Empty()))
        else:
            self._forget_connections()
        return answer

    def _plan(self, fault: _Fault) -> None:
        with self._changed:
            self._planned.append(fault)

    def _take_fault(self, topic: str) -> _Fault | None:
        with self._changed:
            for fault in self._planned:
                if fault.topic in ("", topic):
                    if fault.times is not None:
                        fault.times -= 1
                        if fault.times == 0:
                            self._planned.remove(fault)
                    return fault
        return None

    def _accept(self, server: Server) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            self._connections.append(connection.dup())  # by which it can be cut off
            server.add_connection(connection)

    def _forget_connections(self) -> None:
        while self._connections:
            connection = self._connections.pop()
            with contextlib.suppress(OSError):  # the shim has gone
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def _decode(request: ForwardRequest) -> Event:
    envelope = request.envelope
    name = envelope.event.type_url.rpartition("/")[2]
    kind: type[Message] | None = getattr(events_pb2, name.removeprefix("containerd.events."), None)
    if kind is not None and kind.DESCRIPTOR.full_name == name:
        message: Message = kind.FromString(envelope.event.value)
    else:
        message = AnyMessage.FromString(envelope.event.SerializeToString())
    return Event(envelope.topic, envelope.namespace, message, envelope.timestamp.ToNanoseconds())


def _validate(request: ForwardRequest) -> None:
    """Refuse what the daemon refuses."""
    envelope = request.envelope
    trouble = _identifier_trouble(envelope.namespace)
    if trouble:
        raise RpcError(Code.INVALID_ARGUMENT, f"event envelope has invalid namespace: {trouble}: invalid argument")
    trouble = _topic_trouble(envelope.topic)
    if trouble:
        raise RpcError(Code.INVALID_ARGUMENT, f'envelope topic "{envelope.topic}": {trouble}: invalid argument')
    if not envelope.HasField("timestamp"):
        raise RpcError(Code.INVALID_ARGUMENT, "timestamp must be set on forwarded event: invalid argument")


def _topic_trouble(topic: str) -> str:
    if not topic:
        return "must not be empty"
    if not topic.startswith("/"):
        return "must start with '/'"
    if topic == "/":
        return "must have at least one component"
    for component in topic[1:].split("/"):
        trouble = _identifier_trouble(component)
        if trouble:
            return f'failed validation on component "{component}": {trouble}'
    return ""


def _identifier_trouble(text: str) -> str:
    if not text:
        return "identifier must not be empty"
    if len(text) > _LONGEST_IDENTIFIER:
        return f'identifier "{text}" greater than maximum length ({_LONGEST_IDENTIFIER} characters)'
    return "" if _IDENTIFIER.fullmatch(text) else f'identifier "{text}" must match {_IDENTIFIER.pattern}'
