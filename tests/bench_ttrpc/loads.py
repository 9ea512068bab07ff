"""What a client process does when told: calls for a given time by threads or by tasks, and how long each took.

Rule: the same loops for every Python contender; the one in Go (go/load.go) does the same.  Commands come as lines of
JSON on stdin, figures leave as lines of JSON on stdout, and the end of stdin ends the process.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Final, NamedTuple, Protocol

from tests.bench_ttrpc.rpcs import check
from tests.protos.conformance_pb2 import Payload

_DOWNLOAD: Final = 500  # parts of one Divide


class Command(NamedTuple):
    """One load: `kind` is unary, ping-pong, upload or download."""

    kind: str
    callers: int
    size: int
    seconds: float


class Figures(NamedTuple):
    """What came of it."""

    calls: int
    seconds: float
    cpu_s: float
    p50_us: float
    p99_us: float


class BlockingClient(Protocol):
    """A contender's client, called by threads."""

    def echo(self, request: Payload) -> Payload:
        """Call Echo."""

    def ping_pong(self) -> AbstractContextManager[Callable[[Payload], Payload]]:
        """Open EchoStream; what comes of it sends one message and returns its answer."""

    def upload(self, messages: Iterator[Payload]) -> None:
        """Call EchoNull."""

    def download(self, count: int) -> int:
        """Call Divide and return how many parts came."""


class AsyncClient(Protocol):
    """A contender's client, called by tasks."""

    async def echo(self, request: Payload) -> Payload:
        """Call Echo."""

    def ping_pong(self) -> AbstractAsyncContextManager[Callable[[Payload], Awaitable[Payload]]]:
        """Open EchoStream; what comes of it sends one message and returns its answer."""

    async def upload(self, messages: Iterator[Payload]) -> None:
        """Call EchoNull."""

    async def download(self, count: int) -> int:
        """Call Divide and return how many parts came."""


class _Count:
    """Messages until the time is over, counted."""

    def __init__(self, message: Payload, seconds: float) -> None:
        self.sent = 0
        self._message = message
        self._until = time.perf_counter() + seconds

    def __iter__(self) -> Iterator[Payload]:
        while time.perf_counter() < self._until:
            self.sent += 1
            yield self._message


def request_of(size: int) -> Payload:
    """Return the request whose data has so many bytes."""
    return Payload(seq=1, data=os.urandom(size))


def drive_blocking(client: BlockingClient) -> None:
    """Serve the commands on stdin with threads."""
    _warm(client)
    for command in commands():
        say(_load(client, command))


def _warm(client: BlockingClient) -> None:
    request = request_of(64)
    for _ in range(100):
        check(client.echo(request), request)
    say(Figures(0, 0, 0, 0, 0))


def _load(client: BlockingClient, command: Command) -> Figures:
    request = request_of(command.size)
    cpu, began = time.process_time(), time.perf_counter()
    if command.kind == "upload":
        messages = _Count(request, command.seconds)
        client.upload(iter(messages))
        return _figures(messages.sent, began, cpu, [])
    if command.kind == "download":
        received = 0
        while time.perf_counter() < began + command.seconds:
            received += client.download(_DOWNLOAD)
        return _figures(received, began, cpu, [])
    if command.kind == "ping-pong":
        with client.ping_pong() as exchange:
            times = _timed(exchange, request, began + command.seconds)
        return _figures(len(times), began, cpu, times)
    if command.callers == 1:
        times = _timed(client.echo, request, began + command.seconds)
        return _figures(len(times), began, cpu, times)
    results: list[list[int]] = []
    start = threading.Barrier(command.callers + 1)
    until = began  # set again once everybody stands at the barrier

    def calls() -> None:
        start.wait()
        results.append(_timed(client.echo, request, until))

    threads = [threading.Thread(target=calls, daemon=True) for _ in range(command.callers)]
    for thread in threads:
        thread.start()
    cpu, began = time.process_time(), time.perf_counter()
    until = began + command.seconds
    start.wait()
    for thread in threads:
        thread.join()
    if len(results) != command.callers:
        raise RuntimeError(f"{command.callers - len(results)} of {command.callers} callers failed")
    return _figures(sum(map(len, results)), began, cpu, [took for times in results for took in times])


def _timed(call: Callable[[Payload], Payload], request: Payload, until: float) -> list[int]:
    clock = time.perf_counter_ns
    until_ns = int(until * 1e9)
    times: list[int] = []
    before = clock()
    while before < until_ns:
        check(call(request), request)
        after = clock()
        times.append(after - before)
        before = after
    return times


def drive_async(connect: Callable[[], AbstractAsyncContextManager[AsyncClient]]) -> None:
    """Serve the commands on stdin with tasks."""
    asyncio.run(_drive_async(connect))


async def _drive_async(connect: Callable[[], AbstractAsyncContextManager[AsyncClient]]) -> None:
    async with connect() as client:
        request = request_of(64)
        for _ in range(100):
            check(await client.echo(request), request)
        say(Figures(0, 0, 0, 0, 0))
        async for command in _commands_async():
            say(await _load_async(client, command))


async def _load_async(client: AsyncClient, command: Command) -> Figures:
    request = request_of(command.size)
    cpu, began = time.process_time(), time.perf_counter()
    until = began + command.seconds
    if command.kind == "upload":
        messages = _Count(request, command.seconds)
        await client.upload(iter(messages))
        return _figures(messages.sent, began, cpu, [])
    if command.kind == "download":
        received = 0
        while time.perf_counter() < until:
            received += await client.download(_DOWNLOAD)
        return _figures(received, began, cpu, [])
    if command.kind == "ping-pong":
        async with client.ping_pong() as exchange:
            times = await _timed_async(exchange, request, until)
        return _figures(len(times), began, cpu, times)
    calls = [_timed_async(client.echo, request, until) for _ in range(command.callers)]
    times = [took for times in await asyncio.gather(*calls) for took in times]
    return _figures(len(times), began, cpu, times)


async def _timed_async(call: Callable[[Payload], Awaitable[Payload]], request: Payload, until: float) -> list[int]:
    clock = time.perf_counter_ns
    until_ns = int(until * 1e9)
    times: list[int] = []
    before = clock()
    while before < until_ns:
        check(await call(request), request)
        after = clock()
        times.append(after - before)
        before = after
    return times


def _figures(calls: int, began: float, cpu: float, times: list[int]) -> Figures:
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    times.sort()
    p50, p99 = (times[len(times) // 2], times[len(times) * 99 // 100]) if times else (0, 0)
    return Figures(calls, seconds, cpu_s, p50 / 1e3, p99 / 1e3)


def commands() -> Iterator[Command]:
    """Yield what stdin says."""
    for line in sys.stdin:
        yield Command(**json.loads(line))


async def _commands_async() -> AsyncIterator[Command]:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        yield Command(**json.loads(line))


def say(figures: Figures) -> None:
    """Answer one command."""
    sys.stdout.write(json.dumps(figures._asdict()) + "\n")
    sys.stdout.flush()


def serve_until_told() -> None:
    """Say that the server is ready, and end the process with stdin: no server outlives the benchmark."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    threading.Thread(target=_exit_with_stdin, daemon=True).start()


def _exit_with_stdin() -> None:
    os.read(0, 1)
    os._exit(0)
