"""The blocking client: many threads may call on one connection, and no thread is kept for reading.

Rule: a caller that waits reads for everybody (leader and followers), so that a lone caller pays for no hand-over.
A deadline goes with the request and is kept here too; the server is never told of a call given up (there is no way).
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, TypeVar

from shim.ttrpc._connection import ClientConnection
from shim.ttrpc._events import ResponseReceived
from shim.ttrpc.address import parse_address
from shim.ttrpc.status import Code, ConnectionClosedError, RpcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from google.protobuf.message import Message

    ResponseT = TypeVar("ResponseT", bound=Message)
else:
    ResponseT = TypeVar("ResponseT")

_RECEIVE_SIZE: Final = 256 << 10
_LONGEST_S: Final = 1e6  # what locks and poll take at a time; callers may name any deadline


def connect(address: str, *, timeout_s: float | None = None) -> Client:
    """Connect to a ttrpc server.

    Raises:
        ValueError: The address is no ttrpc address.
        OSError: Nobody answers there; the message names the address.
    """
    family, target = parse_address(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(target)
    except OSError as error:
        sock.close()
        raise type(error)(error.errno, f"cannot connect to {address}: {error.strerror or error}") from None
    return Client(sock)


class Client:
    """A connection to a ttrpc server; also a context manager that closes it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        self._sock = sock
        self._connection = ClientConnection()
        self._condition = threading.Condition(threading.Lock())
        self._send_lock = threading.Lock()
        self._answers: dict[int, ResponseReceived | None] = {}
        self._is_reading = False
        self._is_closed = False

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_closed(self) -> bool:
        """True once the connection has ended, whichever side ended it."""
        return self._is_closed

    def close(self) -> None:
        """Close the connection; calls in flight raise ConnectionClosedError."""
        with self._condition:
            if self._is_closed:
                return
            self._is_closed = True
            self._condition.notify_all()
        try:
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads
        except OSError:
            pass  # the peer was faster
        self._sock.close()

    def call(
        self,
        service: str,
        method: str,
        request: Message,
        response: type[ResponseT],
        *,
        timeout_s: float | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> ResponseT:
        """Call `service`/`method` and return its response message.

        Raises:
            RpcError: The call ended with a status; DEADLINE_EXCEEDED also when `timeout_s` passed here first.
            ConnectionClosedError: The connection ended before the answer came.
        """
        payload = self.call_raw(service, method, request.SerializeToString(), timeout_s=timeout_s, metadata=metadata)
        return response.FromString(payload)

    def call_raw(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout_s: float | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> bytes:
        """Like `call`, with serialised messages."""
        name = f"{service}/{method}"
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        timeout_ns = 0 if timeout_s is None else max(1, int(min(timeout_s, 9e9) * 1e9))
        # Ids must reach the wire in the order of their allocation; the wait for that counts too (ttrpc#174).
        remaining = _remaining(deadline)
        if not self._send_lock.acquire(timeout=-1 if remaining is None else remaining):
            raise RpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded", name)
        try:
            with self._condition:
                self._check_open(name)
                stream_id, frame = self._connection.send_request(service, method, payload, timeout_ns, metadata)
                self._answers[stream_id] = None
            try:
                self._send(frame, deadline, name)
            except BaseException:
                self._forget(stream_id)
                raise
        finally:
            self._send_lock.release()
        answer = self._await(stream_id, deadline, name)
        if answer.code != Code.OK:
            raise RpcError(answer.code, answer.message, name)
        return answer.payload

    def _check_open(self, name: str) -> None:
        if self._is_closed:
            raise ConnectionClosedError(f"{name}: ttrpc: closed")

    def _forget(self, stream_id: int) -> None:
        with self._condition:
            self._answers.pop(stream_id, None)
            self._connection.forget(stream_id)

    def _send(self, frame: bytes, deadline: float | None, name: str) -> None:
        view = memoryview(frame)
        while view:
            try:
                view = view[self._sock.send(view, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                if not self._wait_for(select.POLLOUT, deadline):
                    # Part of the frame is out: nothing can follow it on this connection.
                    if len(view) != len(frame):
                        self.close()
                    raise RpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded", name) from None
            except OSError:
                self.close()
                raise ConnectionClosedError(f"{name}: ttrpc: closed") from None

    def _await(self, stream_id: int, deadline: float | None, name: str) -> ResponseReceived:
        condition = self._condition
        with condition:
            while True:
                answer = self._answers.get(stream_id)
                if answer is not None:
                    del self._answers[stream_id]
                    return answer
                remaining = _remaining(deadline)
                if remaining is not None and not remaining:
                    del self._answers[stream_id]
                    self._connection.forget(stream_id)
                    raise RpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded", name)
                if self._is_closed:
                    del self._answers[stream_id]
                    raise ConnectionClosedError(f"{name}: ttrpc: closed")
                if self._is_reading:
                    condition.wait(remaining)
                    continue
                self._is_reading = True
                condition.release()
                try:
                    data = self._receive(deadline)
                finally:
                    condition.acquire()
                    self._is_reading = False
                    condition.notify_all()
                if data is not None:
                    self._take(data)

    def _receive(self, deadline: float | None) -> bytes | None:
        """Read once; None when the deadline came first, empty at the end of the connection."""
        try:
            if deadline is not None and not self._wait_for(select.POLLIN, deadline):
                return None
            return self._sock.recv(_RECEIVE_SIZE)
        except (OSError, ValueError):  # ValueError: closed by another thread
            return b""

    def _take(self, data: bytes) -> None:
        """Hand what was read to its callers; the lock is held."""
        if not data:
            self._is_closed = True
            self._sock.close()
            return
        for event in self._connection.receive_data(data):
            if event.stream_id in self._answers:
                self._answers[event.stream_id] = event

    def _wait_for(self, event: int, deadline: float | None) -> bool:
        poller = select.poll()
        poller.register(self._sock, event)
        remaining = _remaining(deadline)
        return bool(poller.poll(None if remaining is None else remaining * 1000))


def _remaining(deadline: float | None) -> float | None:
    """Return the seconds to wait for at most, None for ever."""
    return None if deadline is None else min(_LONGEST_S, max(0.0, deadline - time.monotonic()))
