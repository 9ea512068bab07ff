"""A server with one service to try everything on, and a peer that speaks bytes only."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BytesValue, Int64Value

from shim.ttrpc import CallContext, Client, Deferred, Method, Rpc, Service, connect
from shim.ttrpc._envelope import Metadata, Response, decode_response, encode_request
from shim.ttrpc._frame import REQUEST, Frame, FrameReader, encode_frame
from shim.ttrpc.loop_server import LoopServer, same_user
from shim.ttrpc.pool import WorkerPool
from shim.ttrpc.service import Credentials
from tests.fakes import PATIENCE_S, LoopThread, wait_until

SERVICE: Final = "test.v1.Echo"


class EchoServer:
    """Serves test.v1.Echo on a unix socket, in a thread of its own; a context manager."""

    def __init__(self, path: Path, authorize: Callable[[Credentials | None], bool] = same_user) -> None:
        self.address = f"unix://{path}"
        self.thread = LoopThread()
        self.pool = WorkerPool(self.thread.errors.append, idle_s=0.02)
        self.gate = threading.Event()
        self.error: BaseException = ValueError("not set")
        self.waits: list[Deferred] = []
        self.contexts: list[CallContext] = []
        self.faults: list[tuple[str, BaseException]] = []
        self.refused: list[Credentials | None] = []
        self.count = 0
        self.server = LoopServer(
            [self._service()],
            self.thread.loop,
            self.pool,
            authorize=authorize,
            on_fault=lambda method, error: self.faults.append((method, error)),
            on_refused=self.refused.append,
        )
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen(64)
        self.thread.call(lambda: self.server.add_listener(listener))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.set()
        self.thread.call(lambda: self.server.shutdown(0.0, lambda: None))
        assert wait_until(lambda: self.server.connections == 0)
        assert wait_until(lambda: self.pool.threads == 0)
        self.thread.close()

    def connect(self) -> Client:
        """Return a client of this server."""
        return connect(self.address, timeout_s=PATIENCE_S)

    def raw(self) -> RawPeer:
        """Return a peer of this server that speaks bytes."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(self.address.removeprefix("unix://"))
        return RawPeer(sock)

    def _service(self) -> Service:
        methods = [
            Method("Echo", BytesValue, BytesValue, self._echo),
            Method("Quick", BytesValue, BytesValue, self._echo, is_inline=True),
            Method("Fail", Empty, Empty, self._fail),
            Method("FailQuick", Empty, Empty, self._fail, is_inline=True),
            Method("Block", Empty, BytesValue, self._block),
            Method("Wait", Empty, BytesValue, self._wait, is_inline=True),
            Method("Wrong", Empty, BytesValue, lambda _context, _request: Empty()),
            Method("Big", Int64Value, BytesValue, self._big, is_inline=True),
        ]
        return Service(SERVICE, {method.name: method for method in methods})

    def _echo(self, context: CallContext, request: BytesValue) -> Message:
        self.contexts.append(context)
        return request

    def _fail(self, context: CallContext, request: Empty) -> Message:
        raise self.error

    def _block(self, context: CallContext, request: Empty) -> Message:
        self.contexts.append(context)
        assert self.gate.wait(PATIENCE_S)
        return BytesValue(value=b"late")

    def _wait(self, context: CallContext, request: Empty) -> Deferred:
        self.contexts.append(context)
        deferred = Deferred()
        self.waits.append(deferred)
        return deferred

    def _big(self, context: CallContext, request: Int64Value) -> Message:
        self.count += 1
        return BytesValue(value=bytes(request.value))


def call(client: Client, method: str, payload: bytes = b"", timeout_s: float | None = PATIENCE_S) -> bytes:
    """Call a method that takes and returns bytes."""
    rpc = Rpc(SERVICE, method, BytesValue, BytesValue)
    return client.call(rpc, BytesValue(value=payload), timeout_s=timeout_s).value


def request_frame(
    stream_id: int, method: str, payload: bytes = b"", timeout_ns: int = 0, metadata: Metadata = ()
) -> bytes:
    """Return the frame of a call of test.v1.Echo."""
    return encode_frame(stream_id, REQUEST, 0, encode_request(SERVICE, method, payload, timeout_ns, metadata))


class RawPeer:
    """A client that sends what bytes it likes; a context manager."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._reader = FrameReader()
        self._frames: list[Frame] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send all of `data`."""
        self.sock.sendall(data)

    def read(self, count: int, timeout_s: float = PATIENCE_S) -> list[tuple[int, Response]]:
        """Return the next `count` answers as (stream id, answer); fewer at the end of the connection or in time."""
        self.sock.settimeout(timeout_s)
        while len(self._frames) < count:
            try:
                data = self.sock.recv(1 << 20)
            except TimeoutError:
                break
            if not data:
                break
            self._frames += self._reader.feed(data)
        taken, self._frames = self._frames[:count], self._frames[count:]
        return [(frame.stream_id, decode_response(frame.body or b"")) for frame in taken]

    def is_at_end(self) -> bool:
        """True when the server has closed the connection and nothing more came."""
        self.sock.settimeout(PATIENCE_S)
        return not self._frames and self.sock.recv(1) == b""
