"""Events through restarts of a real containerd: what it has taken, as the wire between the shim and it tells."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

import shim
from shim.api import TaskExit, TaskOOM
from shim.api.events_service_pb2 import ForwardRequest
from shim.testing.containerd import Containerd
from shim.testing.releases import Release
from shim.ttrpc._envelope import decode_request, decode_response
from shim.ttrpc._frame import Frame, FrameReader
from tests.integration import interop
from tests.integration.client import wait_until

EVENTS: Final = 10_000
RESTARTS: Final = 5
CONTAINERS: Final = 20


class Taken(NamedTuple):
    """An event that containerd has answered well."""

    topic: str
    container: str
    number: int
    at: tuple[int, int]


class Wire:
    """Stands between a publisher and containerd, copies every byte, and notes what containerd has answered."""

    def __init__(self, path: Path, containerd: str) -> None:
        self.path = path
        self.taken: list[Taken] = []
        self.refused: list[str] = []
        self._containerd = containerd
        self._listener = socket.socket(socket.AF_UNIX)
        self._threads: list[threading.Thread] = []
        self._ends: list[socket.socket] = [self._listener]

    def __enter__(self) -> Self:
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._run(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()

    def _run(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args)  # type: ignore[arg-type]  # one of ours
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                shim_end, _ = self._listener.accept()
            except OSError:
                return
            containerd_end = socket.socket(socket.AF_UNIX)
            self._ends += [shim_end, containerd_end]
            try:
                containerd_end.connect(self._containerd)
            except OSError:  # it is not there: as if nobody listened
                shim_end.shutdown(socket.SHUT_RDWR)
                continue
            asked: dict[int, Taken] = {}
            self._run(self._copy, shim_end, containerd_end, asked, self._request)
            self._run(self._copy, containerd_end, shim_end, asked, self._response)

    def _copy(self, source: socket.socket, sink: socket.socket, asked: dict[int, Taken], note: object) -> None:
        reader = FrameReader()
        with contextlib.suppress(OSError):
            while data := source.recv(64 << 10):
                for item in reader.feed(data):
                    if isinstance(item, Frame):
                        note(item, asked)  # type: ignore[operator]  # _request or _response
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _request(self, frame: Frame, asked: dict[int, Taken]) -> None:
        envelope = ForwardRequest.FromString(decode_request(frame.body or b"").payload).envelope
        kind = TaskExit if envelope.topic == shim.topics.TASK_EXIT else TaskOOM
        message = kind.FromString(envelope.event.value)
        container, _, number = message.container_id.partition(".")
        at = (envelope.timestamp.seconds, envelope.timestamp.nanos)
        asked[frame.stream_id] = Taken(envelope.topic, container, int(number), at)

    def _response(self, frame: Frame, asked: dict[int, Taken]) -> None:
        response = decode_response(frame.body or b"")
        if response.code:
            self.refused.append(response.message)
        else:
            self.taken.append(asked[frame.stream_id])


go, pytest_generate_tests = interop.go, interop.pytest_generate_tests


@pytest.fixture
def containerd(go: Release) -> Iterator[Containerd]:
    """Return a containerd to end, one of each release; in the end it must have left nothing behind."""
    with Containerd(go) as running:
        yield running

    assert [] == running.left_behind


@pytest.fixture
def leaves_no_task() -> None:
    """Replace the check of the shared containerd: this one is removed as a whole."""


def publish(publisher: shim.StandalonePublisher) -> None:
    """Publish, half of it exits, at a pace that lasts through all restarts; names tell container and number."""
    numbers = [itertools.count() for _ in range(CONTAINERS)]
    for event in range(EVENTS):
        container = event % CONTAINERS
        name = f"c{container}.{next(numbers[container])}"
        if event // CONTAINERS % 2:
            publisher.publish(shim.topics.TASK_OOM, TaskOOM(container_id=name))
        else:
            ended = Timestamp(seconds=event + 1)
            publisher.publish(shim.topics.TASK_EXIT, TaskExit(container_id=name, id=name, pid=1, exited_at=ended))
        if event % 10 == 0:
            time.sleep(0.004)


@pytest.mark.timeout(300)
def test_ten_thousand_events_through_five_restarts(containerd: Containerd) -> None:
    """containerd takes every one, in order per container, none twice; killed it is as well as stopped."""
    with Wire(containerd.folder / "wire", f"{containerd.address}.ttrpc") as wire:
        with shim.StandalonePublisher(str(wire.path), containerd.namespace, timeout_s=120) as publisher:
            thread = threading.Thread(target=publish, args=(publisher,))
            thread.start()
            for restart in range(RESTARTS):
                wanted = (restart + 1) * EVENTS // (RESTARTS + 2)
                wait_until(lambda wanted=wanted: len(wire.taken) >= wanted, f"{wanted} events", 60)  # type: ignore[misc]
                if restart % 2:
                    containerd.stop()
                else:
                    containerd.kill()
                containerd.start()
            thread.join()

        taken = list(wire.taken)

    assert [] == wire.refused
    assert EVENTS == len(taken)
    assert EVENTS // 2 == sum(event.topic == shim.topics.TASK_EXIT for event in taken)
    assert {1} == set(Counter((event.container, event.number) for event in taken).values())
    for container in range(CONTAINERS):
        mine = [event.number for event in taken if event.container == f"c{container}"]
        assert list(range(EVENTS // CONTAINERS)) == mine
