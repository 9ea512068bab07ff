"""Events to containerd, in order, through restarts of containerd.

Rule: one event is under way at a time and the next one waits for its answer, so nothing is reordered.  An event that
containerd refuses is dropped (it would be refused again); one that does not get through is tried again, on a new
connection. When the queue is full, exits stay and the oldest of the others go.  All of it runs on the loop; only
`publish` is for any thread. Spec: containerd api/services/ttrpc/events; back-off and limits are wider than Go's,
which loses events after 15 s.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from shim.api.events_service_pb2 import ForwardRequest
from shim.ttrpc._client_connection import ClientConnection
from shim.ttrpc._envelope import encode_head
from shim.ttrpc._events import FaultReceived, ResponseReceived
from shim.ttrpc.address import parse_address
from shim.ttrpc.loop import READABLE, WRITABLE, Loop, Timer
from shim.ttrpc.status import Code, LocalProtocolError, RpcError

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from shim.runtime.logger import Logger

SERVICE: Final = "containerd.services.events.ttrpc.v1.Events"
_FORWARD: Final = encode_head(SERVICE, "Forward")
EXIT_TOPIC: Final = "/tasks/exit"
_ATTEMPT_S: Final = 5.0
_BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_MAX_QUEUE: Final = 4096
# Answers that another attempt cannot change.
_REFUSALS: Final = frozenset({Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED, Code.PERMISSION_DENIED, Code.INTERNAL})


class _Queued(NamedTuple):
    topic: str
    payload: bytes


class Publisher:
    """Forwards events to the containerd at `address`; without an address it drops them."""

    def __init__(self, loop: Loop, address: str, namespace: str, logger: Logger) -> None:
        self._loop = loop
        self._address = address
        self._namespace = namespace
        self._logger = logger
        self._queue: deque[_Queued] = deque()
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
        return len(self._queue)

    def publish(self, topic: str, event: Message) -> None:
        """Queue an event; returns at once, from any thread."""
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
        queued = _Queued(topic, request.SerializeToString())
        self._loop.call_soon(lambda: self._enqueue(queued))

    def flush(self, timeout_s: float, on_idle: Callable[[], None]) -> None:
        """Call `on_idle()` once the queue is empty, or after `timeout_s` seconds; runs on the loop."""
        self._on_idle = on_idle
        self._loop.call_later(timeout_s, self._idle)
        if not self._queue:
            self._idle()

    def close(self) -> None:
        """Give up the connection; runs on the loop."""
        if self._timer is not None:
            self._timer.cancel()
        self._disconnect()

    def _idle(self) -> None:
        done, self._on_idle = self._on_idle, None
        if done is not None:
            if self._queue:
                self._logger.warning("events were not delivered before the shim ended", count=len(self._queue))
            done()

    def _enqueue(self, queued: _Queued) -> None:
        self._queue.append(queued)
        if len(self._queue) > _MAX_QUEUE:
            self._shed()
        if self._current is None and self._timer is None:
            self._send_head()

    def _shed(self) -> None:
        """Drop the oldest event that is no exit and not under way."""
        for index, queued in enumerate(self._queue):
            if index and queued.topic != EXIT_TOPIC:
                del self._queue[index]
                self._logger.error("event queue is full, dropping an event", topic=queued.topic)
                return

    def _send_head(self) -> None:
        self._timer = None
        if not self._queue:
            if self._on_idle is not None:
                self._idle()
            return
        try:
            if self._sock is None:
                self._connect()
            stream_id, frame = self._connection.send_request(
                _FORWARD,
                self._queue[0].payload,
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
            self._logger.error("containerd refused an event", topic=self._queue[0].topic, error=message)
        self._current = None
        self._failures = 0
        if self._timer is not None:
            self._timer.cancel()
        self._queue.popleft()
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
            self._logger.warning("cannot publish events, trying again", error=reason, pending=len(self._queue))
        self._timer = self._loop.call_later(delay, self._send_head)
