"""Calls to a shim as raw bytes of ttrpc, the same for every side: no client library's time is in the figures.

Nor, where latency is measured, has the client to be woken, unless that is what is asked for: on two processors it takes
the kernel longer than either shim takes to answer.
"""

from __future__ import annotations

import json
import socket
import statistics
import struct
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_RESPONSE: Final = 2
_HEADER: Final = struct.Struct(">IIBB")
_TIMEOUT_S: Final = 20.0


class Caller:
    """One connection to a daemon, one call at a time; a context manager."""

    def __init__(self, path: str, service: str) -> None:
        self._service = service
        self._stream = -1
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(_TIMEOUT_S)
        try:
            self._connection.connect(path)
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def call(self, method: str, container: str) -> bytes:
        """Make one call with the container's id as the request's first field, and return the frame's payload.

        Raises:
            RuntimeError: The answer is a status, or no answer to this call.
        """
        self._stream += 2
        self._connection.sendall(frame(self._stream, self._service, method, container))
        frame_ = self._receive()
        _, stream, kind, _ = _HEADER.unpack_from(frame_)
        answer = frame_[_HEADER.size :]
        has_status = answer[:1] == b"\x0a" and answer[1] != 0
        if (stream, kind) != (self._stream, _RESPONSE) or has_status:
            raise RuntimeError(f"{method} was answered with a frame of type {kind} for stream {stream}: {answer!r}")
        return answer

    def p50_us(self, method: str, container: str, calls: int, *, sleeps: bool = False) -> float:
        """Return the median of so many calls, one after the other, in microseconds."""
        taken = []
        self._connection.settimeout(_TIMEOUT_S if sleeps else 0)
        try:
            for _ in range(calls):
                began = time.perf_counter_ns()
                self.call(method, container)
                taken.append(time.perf_counter_ns() - began)
        finally:
            self._connection.settimeout(_TIMEOUT_S)
        return statistics.median(taken) / 1e3

    def _receive(self) -> bytes:
        """Return a whole frame."""
        data = b""
        until = time.monotonic() + _TIMEOUT_S
        while len(data) < _HEADER.size or len(data) < _HEADER.size + _HEADER.unpack_from(data)[0]:
            try:
                chunk = self._connection.recv(1 << 16)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError("the shim does not answer") from None
                continue
            if not chunk:
                raise ConnectionError("the shim closed the connection")
            data += chunk
        return data


def frame(stream: int, service: str, method: str, container: str) -> bytes:
    """Return a whole request."""
    payload = _field(1, container.encode())
    body = _field(1, service.encode()) + _field(2, method.encode()) + _field(3, payload)
    return _HEADER.pack(len(body), stream, 1, 0) + body


def socket_of(answer: str) -> str:
    """Return the path of the socket in what `start` answers, in text or JSON, or in what containerd has kept of it."""
    text = answer.strip()
    address: str = json.loads(text)["address"] if text.startswith("{") else text
    return address.removeprefix("unix://")


def socket_in(bundle: Path) -> str:
    """Return the path of the socket of the daemon that serves a bundle's container."""
    # 2.x writes the first, 1.6 the second; a shim may leave the second of its own.
    kept = next(path for path in (bundle / "bootstrap.json", bundle / "address") if path.is_file())
    return socket_of(kept.read_text())


def _field(number: int, value: bytes) -> bytes:
    if len(value) > 127:
        raise ValueError("only short fields are encoded here")
    return bytes([number << 3 | 2, len(value)]) + value
