"""Events to containerd, in order, through restarts of containerd.

Rule: one event is under way at a time and the next one waits for its answer, so nothing is reordered.  An event that
containerd refuses is dropped (it would be refused again); one that does not get through is tried again, on a new
connection.  Exits have a queue of their own, so that a full queue of the others, whose oldest goes then, costs no exit.
All of it runs on the loop; only `publish` is for any thread.
Spec: containerd api/services/ttrpc/events; back-off and limits are wider than Go's, which loses events after 15 s.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from shim.api.events_service_pb2 import ForwardRequest
from shim.runtime.topics import TASK_EXIT
from shim.ttrpc._client_connection import ClientConnection
from shim.ttrpc._envelope import encode_head
from shim.ttrpc._events import FaultReceived, ResponseReceived
from shim.ttrpc.address import parse_address
from shim.ttrpc.loop import READABLE, WRITABLE, EventLoop, Timer
from shim.ttrpc.status import Code, LocalProtocolError, RpcError

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from shim.runtime.logger import Logger

SERVICE: Final = "containerd.services.events.ttrpc.v1.Events"
_FORWARD: Final = encode_head(SERVICE, "Forward")
_ATTEMPT_S: Final = 5.0
_BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_MAX_EXITS: Final = 1 << 16  # some 20 MB: a node has no more processes than that
_MAX_OTHERS: Final = 4096
# Answers that another attempt cannot change.
_REFUSALS: Final = frozenset({Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED, Code.PERMISSION_DENIED, Code.INTERNAL})


class _Queued(NamedTuple):
    number: int
    topic: str
    payload: bytes


class RemotePublisher:
    """Forwards events to the containerd whose ttrpc socket is `address`; without an address it drops them.

    An event whose answer got lost with the connection is sent again, the same to the letter: containerd may have it
    twice, with one timestamp.  While containerd is away 65536 exits and 4096 other events are kept, the latest of each.
    """

    def __init__(self, loop: EventLoop, address: str, namespace: str, logger: Logger) -> None:
        self._loop = loop
        self._address = address
        self._namespace = namespace
        self._logger = logger
        self._exits: deque[_Queued] = deque()
        self._others: deque[_Queued] = deque()
        self._count = 0
        self._head: _Queued | None = None  # is being sent, or will be again
        self._sock: socket.socket | None = None
        self._connection = ClientConnection()
        self._out = b""
        self._current: int | None = None
        self._timer: Timer | None = None
        self._failures = 0
        self._on_idle: Callable[[], None] | None = None

    @property
    def pending(self) -> int:
        """How many events have not been answered yet."""
        return len(self._exits) + len(self._others) + (self._head is not None)

    def publish(self, topic: str, event: Message) -> None:
        """Queue an event, a message of `shim.api`, under one of `shim.topics`; returns at once, from any thread."""
        if not self._address:
            return
        request = ForwardRequest()
        envelope = request.envelope
        seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
        envelope.timestamp.seconds, envelope.timestamp.nanos = seconds, nanos
        envelope.namespace = self._namespace
        envelope.topic = topic
        envelope.event.type_url = event.DESCRIPTOR.full_name  # bare, as containerd's filters compare it
        envelope.event.value = event.SerializeToString()
        payload = request.SerializeToString()
        self._loop.call_soon(lambda: self._enqueue(topic, payload))

    def flush(self, timeout_s: float, on_idle: Callable[[], None]) -> None:
        """Call `on_idle()` once the queue is empty, or after `timeout_s` seconds; runs on the loop."""
        self._on_idle = on_idle
        self._loop.call_later(timeout_s, self._idle)
        if not self.pending:
            self._idle()

    def close(self) -> None:
        """Give up the connection; runs on the loop."""
        if self._timer is not None:
            self._timer.cancel()
        self._disconnect()

    def _idle(self) -> None:
        done, self._on_idle = self._on_idle, None
        if done is not None:
            if self.pending:
                self._logger.warning("events were not delivered before the shim ended", count=self.pending)
            done()

    def _enqueue(self, topic: str, payload: bytes) -> None:
        queue, most = (self._exits, _MAX_EXITS) if topic == TASK_EXIT else (self._others, _MAX_OTHERS)
        if len(queue) == most:
            self._logger.error("event queue is full, dropping an event", topic=queue.popleft().topic)
        self._count += 1
        queue.append(_Queued(self._count, topic, payload))
        if self._current is None and self._timer is None:
            self._send_head()

    def _next(self) -> _Queued | None:
        """Take the oldest event off the queues."""
        queues = [queue for queue in (self._exits, self._others) if queue]
        return min(queues, key=lambda queue: queue[0].number).popleft() if queues else None

    def _send_head(self) -> None:
        self._timer = None
        self._head = self._head or self._next()
        if self._head is None:
            if self._on_idle is not None:
                self._idle()
            return
        try:
            if self._sock is None:
                self._connect()
            stream_id, frame = self._connection.send_request(
                _FORWARD,
                self._head.payload,
                timeout_ns=int(_ATTEMPT_S * 1e9),
                metadata=(("containerd-namespace-ttrpc", self._namespace),),
            )
        except RpcError as error:  # too large for a frame: no containerd would take it
            self._answered(Code.INVALID_ARGUMENT, error.message)
            return
        except (OSError, ValueError, LocalProtocolError) as error:
            self._failed(str(error))
            return
        self._current = stream_id
        self._timer = self._loop.call_later(_ATTEMPT_S, lambda: self._failed("no answer in time"))
        self._out += frame
        self._write()

    def _connect(self) -> None:
        family, target = parse_address(self._address)
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(target)
        except OSError:
            sock.close()
            raise
        self._sock = sock
        self._connection = ClientConnection()
        self._out = b""
        self._loop.register(sock.fileno(), READABLE, self._ready)

    def _disconnect(self) -> None:
        if self._sock is not None:
            self._loop.unregister(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _ready(self, events: int) -> None:
        if events & WRITABLE:
            self._write()
        sock = self._sock
        if sock is None or not events & ~WRITABLE:
            return
        try:
            data = sock.recv(64 << 10)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        for event in self._connection.receive_data(data):
            if event.stream_id == self._current:
                if isinstance(event, ResponseReceived):
                    self._answered(event.code, event.message)
                elif isinstance(event, FaultReceived):
                    self._answered(Code.INTERNAL, event.message)

    def _write(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            sent = sock.send(self._out)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lost()
            return
        self._out = self._out[sent:]
        self._loop.modify(sock.fileno(), READABLE | WRITABLE if self._out else READABLE)

    def _answered(self, code: int, message: str) -> None:
        if code not in (Code.OK, *_REFUSALS):
            self._failed(message)
            return
        if code != Code.OK:
            topic = self._head.topic if self._head is not None else ""
            self._logger.error("containerd refused an event", topic=topic, error=message)
        self._current = None
        self._failures = 0
        if self._timer is not None:
            self._timer.cancel()
        self._head = None
        self._send_head()

    def _lost(self) -> None:
        """The connection ended: idle ones are reopened with the next event, one in use at once."""
        if self._current is None:
            self._disconnect()
        else:
            self._failed("connection closed")

    def _failed(self, reason: str) -> None:
        """Try the head of the queue again later; at once after the first failure, which is a restart as a rule."""
        if self._timer is not None:
            self._timer.cancel()
        self._current = None
        self._disconnect()
        delay = 0.0 if self._failures == 0 else _BACKOFF_S[min(self._failures - 1, len(_BACKOFF_S) - 1)]
        self._failures += 1
        if self._failures == 2:
            self._logger.warning("cannot publish events, trying again", error=reason, pending=self.pending)
        self._timer = self._loop.call_later(delay, self._send_head)
