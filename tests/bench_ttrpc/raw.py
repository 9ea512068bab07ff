"""A client of ttrpc that costs nearly nothing: prepared frames out, answers counted by their bytes.

With it the server's time is what is measured, the same way for every ttrpc server.  To wake a client that sleeps takes
the kernel longer than a server takes to answer, and is counted as the server's time; of one that stays awake, never.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Final

from shim.ttrpc._envelope import encode_request
from shim.ttrpc._frame import REQUEST, encode_frame
from tests.bench_ttrpc.loads import Command, Figures, commands, request_of, say
from tests.bench_ttrpc.rpcs import ECHO

_PREPARED: Final = 20_000  # calls of one connection: ids only rise
_HEADER: Final = struct.Struct(">IIBB")


def drive(address: str, _variant: str) -> None:
    """Call as told: `callers` is how many calls are in flight on one connection."""
    frames: dict[int, bytes] = {}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        _answer_size(connection, 64)
    say(Figures(0, 0, 0, 0, 0))
    for command in commands():
        if command.size not in frames:
            frames[command.size] = _prepare(command.size)
        say(_load(address, command, frames[command.size]))


def first_call(connection: socket.socket) -> None:
    """Make one call, so that the server has done all it does for a new connection."""
    _answer_size(connection, 64)


def _prepare(size: int) -> bytes:
    body = encode_request(ECHO.service, ECHO.name, request_of(size).SerializeToString())
    return b"".join(encode_frame(1 + 2 * at, REQUEST, 0, body) for at in range(_PREPARED))


def _answer_size(connection: socket.socket, size: int) -> int:
    """Return how long an answer's frame is; it is the same for all of one size."""
    connection.sendall(_prepare_one(size))
    data = b""
    while len(data) < _HEADER.size or len(data) < _HEADER.size + _HEADER.unpack_from(data)[0]:
        received = connection.recv(1 << 20)
        if not received:
            raise RuntimeError("the server has closed the connection")
        data += received
    return len(data)


def _prepare_one(size: int) -> bytes:
    return encode_frame(1, REQUEST, 0, encode_request(ECHO.service, ECHO.name, request_of(size).SerializeToString()))


def _load(address: str, command: Command, frames: bytes) -> Figures:
    calls = 0
    cpu, began = time.process_time(), time.perf_counter()
    until = began + command.seconds
    while time.perf_counter() < until:
        calls += _connection(address, command, frames, until)
    return Figures(calls, time.perf_counter() - began, time.process_time() - cpu, 0, 0)


def _connection(address: str, command: Command, frames: bytes, until: float) -> int:
    """Call on one connection until the time or its prepared frames are over; return how many were answered."""
    frame_size, window = len(frames) // _PREPARED, command.callers
    view = memoryview(frames)
    flags = socket.MSG_DONTWAIT if command.kind == "awake" else 0
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        answer_size = _answer_size(connection, command.size)
        sent, received = 1, answer_size
        while True:
            answered = received // answer_size
            due = min(_PREPARED, answered + window)
            if time.perf_counter() < until and due > sent:
                connection.sendall(view[sent * frame_size : due * frame_size])
                sent = due
            elif answered == sent:
                return answered
            try:
                data = connection.recv(1 << 16, flags)
            except BlockingIOError:
                continue
            if not data:
                raise RuntimeError("the server has closed the connection")
            received += len(data)
