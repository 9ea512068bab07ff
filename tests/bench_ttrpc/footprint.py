"""What is measured without load: memory of idle connections, the core's time for a frame, and import time."""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from shim.ttrpc._client_connection import ClientConnection
from shim.ttrpc._envelope import encode_request
from shim.ttrpc._frame import REQUEST, encode_frame
from shim.ttrpc._server_connection import ServerConnection
from shim.ttrpc.service import Service, ServiceTable
from tests.bench_ttrpc.contenders import Contender
from tests.bench_ttrpc.loads import request_of
from tests.bench_ttrpc.ours_blocking import Conformance
from tests.bench_ttrpc.processes import Peer
from tests.bench_ttrpc.raw import first_call
from tests.bench_ttrpc.rpcs import ECHO, RPCS

_CONNECTIONS: Final = 200
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"  # HTTP/2's, and empty settings
_SETTLE_S: Final = 0.3
_IMPORT: Final = """
import json, sys, time
wall, cpu, before = time.perf_counter(), time.process_time(), set(sys.modules)
from shim.ttrpc import connect
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
loaded = [name for name in set(sys.modules) - before]
print(json.dumps([wall * 1e3, cpu * 1e3, any(name.startswith("google.protobuf") for name in loaded), len(loaded)]))
"""


def memory(contender: Contender) -> float:
    """Return the KB by which each of 200 idle connections makes the server grow; each has been used once."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-ttrpc-")))
        address = folder / "sock"
        errors = stack.enter_context((folder / "err").open("wb"))
        server = stack.enter_context(Peer(contender.serve, address, errors))
        server.wait_ready()
        for _ in range(10):
            _connected(contender, address, stack)
        time.sleep(_SETTLE_S)
        before = server.pss_kb
        for _ in range(_CONNECTIONS):
            _connected(contender, address, stack)
        time.sleep(_SETTLE_S)
        return (server.pss_kb - before) / _CONNECTIONS


def _connected(contender: Contender, address: Path, stack: contextlib.ExitStack) -> None:
    connection = stack.enter_context(socket.socket(socket.AF_UNIX))
    connection.settimeout(10)
    connection.connect(str(address))
    if contender.pipeliner == "raw":
        first_call(connection)
    else:
        connection.sendall(_PREFACE)
        if not connection.recv(4096):
            raise OSError("the server has closed the connection")
        connection.sendall(b"\0\0\0\x04\x01\0\0\0\0")  # its settings are seen


def imports(runs: int) -> Mapping[str, float]:
    """Return the time that importing the blocking client takes, in ms, and whether that loads protobuf."""
    samples: list[Sequence[float]] = []
    for _ in range(runs):
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT],
            cwd=Path(__file__).resolve().parents[2],
            stdout=subprocess.PIPE,
            check=True,
            timeout=60,
        )
        samples.append(json.loads(done.stdout))
    wall, cpu, loads_protobuf, modules = (statistics.median(column) for column in zip(*samples, strict=True))
    return {"wall_ms": wall, "cpu_ms": cpu, "loads_protobuf": loads_protobuf, "modules": modules}


def core(seconds: float) -> Mapping[str, float]:
    """Return ns of CPU per call, parsing one frame and making another, without protobuf's messages."""
    figures: dict[str, float] = {}
    for name, size in (("64 B", 64), ("4 KiB", 4 << 10), ("1 MiB", 1 << 20)):
        for at_once in (1, 64) if size < 1 << 20 else (1,):
            prepared = max(at_once, min(1024, (16 << 20) // size))  # calls between two looks at the clock
            figures[f"server, {name}, {at_once} at once"] = _server(size, at_once, prepared, seconds)
            figures[f"client, {name}, {at_once} at once"] = _client(size, at_once, prepared, seconds)
    return figures


def _server(size: int, at_once: int, prepared: int, seconds: float) -> float:
    payload = request_of(size).SerializeToString()
    body = encode_request(ECHO.service, ECHO.name, payload)

    def prepare() -> Callable[[], None]:
        connection = ServerConnection(_table())
        frames = [encode_frame(1 + 2 * at, REQUEST, 0, body) for at in range(prepared)]
        batches = [b"".join(frames[at : at + at_once]) for at in range(0, prepared, at_once)]

        def run() -> None:
            for data in batches:
                for event in connection.receive_data(data):
                    connection.send_response(event.stream_id, payload)

        return run

    return _timed(prepare, prepared, seconds)


def _client(size: int, at_once: int, prepared: int, seconds: float) -> float:
    payload = request_of(size).SerializeToString()
    table = _table()

    def answers() -> list[bytes]:
        client, server = ClientConnection(), ServerConnection(table)
        requests = b"".join([client.send_request(ECHO.head, payload)[1] for _ in range(prepared)])
        frames = [server.send_response(event.stream_id, payload) for event in server.receive_data(requests)]
        return [b"".join(frames[at : at + at_once]) for at in range(0, prepared, at_once)]

    batches = answers()  # a new connection gives the same ids again

    def prepare() -> Callable[[], None]:
        connection = ClientConnection()

        def run() -> None:
            for data in batches:
                for _ in range(at_once):
                    connection.send_request(ECHO.head, payload)
                connection.receive_data(data)

        return run

    return _timed(prepare, prepared, seconds)


def _table() -> ServiceTable:
    return ServiceTable([Service.bind(RPCS, Conformance())])


def _timed(prepare: Callable[[], Callable[[], None]], calls: int, seconds: float) -> float:
    """Return ns per call, the median of as many runs as the time allows."""
    samples: list[float] = []
    until = time.perf_counter() + seconds
    while not samples or time.perf_counter() < until:
        run = prepare()
        began = time.process_time_ns()
        run()
        samples.append((time.process_time_ns() - began) / calls)
    return statistics.median(samples)
