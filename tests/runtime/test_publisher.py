"""Events on their way to containerd: in order, through restarts, and what is given up when."""

import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.message import Message

from shim.api import events_pb2
from shim.runtime.logger import Logger
from shim.runtime.publisher import RemotePublisher
from shim.testing import Event, EventService
from shim.ttrpc import Code, RpcError
from tests.fakes import LoopThread, wait_until

MODULE = "shim.runtime.publisher"


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    """The loop that everything here runs on; no error may have reached it by the end."""
    with LoopThread() as thread:
        yield thread
    assert [] == thread.errors


@pytest.fixture
def containerd(thread: LoopThread, tmp_path: Path) -> Iterator[EventService]:
    """A containerd that is not there yet."""
    fake = EventService(tmp_path / "containerd.sock.ttrpc")
    yield fake
    fake.stop()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Logger]:
    """A log to read from `log.txt`."""
    (tmp_path / "log.txt").touch()
    logger = Logger.open(str(tmp_path / "log.txt"), is_debug=True)
    yield logger
    os.close(logger.fd)


@pytest.fixture
def publisher(thread: LoopThread, containerd: EventService, log: Logger) -> Iterator[RemotePublisher]:
    """A publisher to that containerd."""
    publisher = RemotePublisher(thread.loop, containerd.path, "ns", log)
    yield publisher
    thread.call(publisher.close)


def exit_of(number: int) -> events_pb2.TaskExit:
    """Return an exit to tell apart by its pid."""
    return events_pb2.TaskExit(container_id="c", id="c", pid=number)


def publish(publisher: RemotePublisher, numbers: range, topic: str = "/tasks/exit") -> None:
    """Publish one event for each number."""
    for number in numbers:
        publisher.publish(topic, exit_of(number))


def numbers_of(containerd: EventService) -> list[int]:
    """Return the numbers that arrived, an event that was sent twice in a row once."""
    return [key for key, _ in itertools.groupby(getattr(event.message, "pid", -1) for event in containerd.events)]


def is_delivered(thread: LoopThread, publisher: RemotePublisher) -> bool:
    """Wait until everything published so far has been answered."""
    thread.settle()
    return wait_until(lambda: publisher.pending == 0)


def test_an_event_arrives_as_containerd_wants_it(
    thread: LoopThread, containerd: EventService, publisher: RemotePublisher
) -> None:
    """Its type's bare name, a namespace, a time, and a deadline; everything in one envelope."""
    containerd.start()
    message = events_pb2.TaskOOM(container_id="c1")
    publisher.publish("/tasks/oom", message)
    assert wait_until(lambda: containerd.events)
    envelope, context = containerd.requests[0].envelope, containerd.contexts[0]

    assert [Event("/tasks/oom", "ns", message)] == containerd.events
    assert "containerd.events.TaskOOM" == envelope.event.type_url
    assert abs(envelope.timestamp.ToSeconds() - time.time()) < 60
    assert ["ns"] == context.values("containerd-namespace-ttrpc")
    assert 0 < (context.remaining() or 0) <= 5
    assert is_delivered(thread, publisher)


def test_events_of_many_threads_keep_each_threads_order(containerd: EventService, publisher: RemotePublisher) -> None:
    """One at a time on one connection; the order of publishing is that of arriving."""
    containerd.start()
    threads = [threading.Thread(target=publish, args=(publisher, range(n * 100, n * 100 + 50))) for n in range(4)]
    for worker in threads:
        worker.start()
    for worker in threads:
        worker.join()
    assert wait_until(lambda: len(containerd.events) == 200)
    numbers = numbers_of(containerd)

    for n in range(4):
        assert [*range(n * 100, n * 100 + 50)] == [number for number in numbers if number // 100 == n]


def test_events_from_before_containerd_is_there_are_kept(
    thread: LoopThread, containerd: EventService, publisher: RemotePublisher
) -> None:
    """A daemon may be faster than the one that it serves."""
    publish(publisher, range(20))
    assert wait_until(lambda: publisher.pending == 20)
    containerd.start()
    assert is_delivered(thread, publisher)

    assert [*range(20)] == numbers_of(containerd)


def test_a_restart_of_containerd_loses_and_reorders_nothing(
    thread: LoopThread, containerd: EventService, publisher: RemotePublisher
) -> None:
    """Whatever was under way; only an event whose answer was lost may come twice."""
    containerd.start()
    for round_ in range(4):
        publish(publisher, range(round_ * 40, round_ * 40 + 20))
        containerd.stop()
        publish(publisher, range(round_ * 40 + 20, round_ * 40 + 40))
        containerd.start()
    assert is_delivered(thread, publisher)

    assert [*range(160)] == numbers_of(containerd)


def test_an_idle_connection_that_ended_is_opened_again(containerd: EventService, publisher: RemotePublisher) -> None:
    """At once, with no event lost or late."""
    containerd.start()
    publish(publisher, range(1))
    assert wait_until(lambda: publisher.pending == 0 and containerd.events)
    containerd.stop()
    containerd.start()
    publish(publisher, range(1, 2))

    assert wait_until(lambda: [0, 1] == numbers_of(containerd))


@pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED, Code.PERMISSION_DENIED, Code.INTERNAL])
def test_a_refused_event_is_dropped(
    thread: LoopThread, containerd: EventService, publisher: RemotePublisher, code: Code, tmp_path: Path
) -> None:
    """It would be refused again; the log tells, and the next one goes."""

    def judge(event: Event) -> None:
        if event.topic == "/bad":
            raise RpcError(code, "envelope is bad")

    containerd.judge = judge
    containerd.start()
    publish(publisher, range(2), "/bad")
    publish(publisher, range(2, 4))
    assert is_delivered(thread, publisher)

    assert [2, 3] == numbers_of(containerd)
    text = (tmp_path / "log.txt").read_text()
    assert 2 == text.count('level=error msg="containerd refused an event" topic=/bad error="envelope is bad"\n')


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.UNKNOWN])
def test_an_event_that_failed_is_tried_again(
    thread: LoopThread, containerd: EventService, publisher: RemotePublisher, code: Code, tmp_path: Path
) -> None:
    """Before any later one; the log tells once."""
    failures = [RpcError(code, "not now")] * 2

    def judge(_event: Event) -> None:
        if failures:
            raise failures.pop()

    containerd.judge = judge
    containerd.start()
    publish(publisher, range(3))
    assert is_delivered(thread, publisher)

    assert [0, 1, 2] == [getattr(event.message, "pid", -1) for event in containerd.events]
    text = (tmp_path / "log.txt").read_text()
    assert 1 == text.count('level=warning msg="cannot publish events, trying again" error="not now" pending=')


def test_a_containerd_that_does_not_answer_is_asked_again(
    thread: LoopThread, publisher: RemotePublisher, containerd: EventService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a new connection, when the time for one attempt is over."""
    monkeypatch.setattr(f"{MODULE}._ATTEMPT_S", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(containerd.path)
        silent.listen()
        publish(publisher, range(2))
        silent.settimeout(5)
        first, second = silent.accept()[0], silent.accept()[0]
        frames = first.recv(65536), second.recv(65536)
        ended = first.recv(1)
        first.close()
        second.close()
    containerd.start()
    assert is_delivered(thread, publisher)

    assert frames[0] == frames[1] != b""  # the same event, under the first id of each connection
    assert b"" == ended
    assert [0, 1] == numbers_of(containerd)


def test_a_full_queue_of_others_costs_no_exit(
    thread: LoopThread,
    containerd: EventService,
    publisher: RemotePublisher,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The oldest of the others go, and the log tells of each; the order of the rest stays."""
    monkeypatch.setattr(f"{MODULE}._MAX_OTHERS", 5)
    for number in range(30):
        publisher.publish("/tasks/exit" if number % 2 else "/tasks/oom", exit_of(number))
    assert wait_until(lambda: publisher.pending == 21)
    containerd.start()
    assert is_delivered(thread, publisher)

    # The first is under way, so it stays.
    assert [0, *range(1, 20, 2), *range(20, 30)] == numbers_of(containerd)
    text = (tmp_path / "log.txt").read_text()
    assert 9 == text.count('level=error msg="event queue is full, dropping an event" topic=/tasks/oom\n')


def test_the_queue_of_exits_ends_somewhere(
    thread: LoopThread, containerd: EventService, publisher: RemotePublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A containerd that never comes back does not fill the node's memory: the latest exits are kept."""
    monkeypatch.setattr(f"{MODULE}._MAX_EXITS", 5)
    publish(publisher, range(10))
    assert wait_until(lambda: publisher.pending == 6)
    containerd.start()
    assert is_delivered(thread, publisher)

    assert [0, *range(5, 10)] == numbers_of(containerd)


def test_an_event_too_large_to_send_is_dropped(
    thread: LoopThread, containerd: EventService, publisher: RemotePublisher, tmp_path: Path
) -> None:
    """It must not stand in the way of all others for ever."""
    containerd.start()
    huge = events_pb2.TaskOOM(container_id="x" * (4 << 20))
    for _ in range(2):
        publisher.publish("/tasks/huge", huge)
        publish(publisher, range(1))
    assert is_delivered(thread, publisher)

    assert ["/tasks/exit"] * 2 == [event.topic for event in containerd.events]
    assert 2 == (tmp_path / "log.txt").read_text().count("level=error")


def test_without_an_address_events_vanish(thread: LoopThread, log: Logger) -> None:
    """A start by hand has no containerd."""
    publisher = RemotePublisher(thread.loop, "", "ns", log)
    publish(publisher, range(3))
    done = threading.Event()
    thread.call(lambda: publisher.flush(5.0, done.set))

    assert done.is_set()
    assert 0 == publisher.pending


def test_an_address_that_is_none_harms_nobody(thread: LoopThread, log: Logger, tmp_path: Path) -> None:
    """Its events wait in vain; the log says why."""
    publisher = RemotePublisher(thread.loop, "http://x", "ns", log)
    publish(publisher, range(2))
    assert wait_until(lambda: "unsupported protocol: http" in (tmp_path / "log.txt").read_text())
    assert wait_until(lambda: publisher.pending == 2)
    thread.call(publisher.close)


def test_flush_calls_back_once_everything_has_arrived(
    thread: LoopThread, containerd: EventService, publisher: RemotePublisher
) -> None:
    """With an empty queue at once; and once only."""
    calls: list[int] = []
    thread.call(lambda: publisher.flush(60.0, lambda: calls.append(publisher.pending)))
    assert [0] == calls

    publish(publisher, range(5))
    thread.call(lambda: publisher.flush(60.0, lambda: calls.append(publisher.pending)))
    assert [0] == calls
    containerd.start()
    assert wait_until(lambda: calls == [0, 0])
    assert [*range(5)] == numbers_of(containerd)


def test_flush_gives_up_after_its_time(thread: LoopThread, publisher: RemotePublisher, tmp_path: Path) -> None:
    """A shim must end although containerd is gone; the log says what was lost."""
    done = threading.Event()
    publish(publisher, range(3))
    thread.call(lambda: publisher.flush(0.05, done.set))

    assert done.wait(5)
    text = (tmp_path / "log.txt").read_text()
    assert 'level=warning msg="events were not delivered before the shim ended" count=3\n' in text


def test_publishing_blocks_nobody(publisher: RemotePublisher) -> None:
    """Thousands of events with no containerd cost no time worth noticing."""
    start = time.monotonic()
    publish(publisher, range(2000))

    assert time.monotonic() - start < 5
    assert wait_until(lambda: publisher.pending == 2000)


def test_any_message_may_be_published(thread: LoopThread, containerd: EventService, publisher: RemotePublisher) -> None:
    """Each of the task events, under its own name."""
    containerd.start()
    kinds: list[type[Message]] = [
        events_pb2.TaskCreate,
        events_pb2.TaskStart,
        events_pb2.TaskDelete,
        events_pb2.TaskExecAdded,
        events_pb2.TaskExecStarted,
        events_pb2.TaskPaused,
        events_pb2.TaskResumed,
    ]
    for kind in kinds:
        publisher.publish("/tasks/x", kind(container_id="c"))
    assert is_delivered(thread, publisher)

    assert kinds == [type(event.message) for event in containerd.events]


@pytest.mark.timeout(60)
def test_ten_thousand_events_outlive_five_restarts(
    thread: LoopThread, containerd: EventService, publisher: RemotePublisher
) -> None:
    """Every exit arrives, each container's events in order; what comes twice is the same to the letter."""
    containers, lives, restarts = 5, 400, 5
    containerd.start()
    life = (
        ("/tasks/exec-added", lambda name, pid: events_pb2.TaskExecAdded(container_id=name, exec_id=str(pid))),
        ("/tasks/exec-started", lambda name, pid: events_pb2.TaskExecStarted(container_id=name, exec_id=str(pid))),
        ("/tasks/paused", lambda name, pid: events_pb2.TaskPaused(container_id=name)),
        ("/tasks/resumed", lambda name, pid: events_pb2.TaskResumed(container_id=name)),
        ("/tasks/exit", lambda name, pid: events_pb2.TaskExit(container_id=name, id=str(pid), pid=pid)),
    )

    published: list[str] = []

    def live(name: str) -> None:
        for pid in range(1, lives + 1):
            # Not so far ahead of containerd that the queue were full, and events would be dropped.
            assert wait_until(lambda: len(published) - len(containerd.events) < 2000, 50.0)
            for topic, make in life:
                published.append(topic)
                publisher.publish(topic, make(name, pid))

    names = [f"c{number}" for number in range(containers)]
    threads = [threading.Thread(target=live, args=(name,)) for name in names]
    for each in threads:
        each.start()
    total = containers * lives * len(life)
    for restart in range(1, restarts + 1):
        assert wait_until(lambda restart=restart: len(containerd.events) > total * restart // 7, 50.0)  # type: ignore[misc]
        containerd.stop()
        containerd.start()
    for each in threads:
        each.join()
    thread.settle()
    assert wait_until(lambda: publisher.pending == 0, 50.0)

    # One that came twice did so in a row, as nothing is sent before its answer is there.
    letters = [request.SerializeToString(deterministic=True) for request in containerd.requests]
    once = [request for at, request in enumerate(containerd.requests) if at == 0 or letters[at] != letters[at - 1]]
    assert total == 10_000 == len(once)
    assert len(letters) - len(once) <= restarts
    assert len(set(letters)) == len(once)
    for name in names:
        own = containerd.of(name)
        exits = [getattr(event.message, "pid", 0) for event in own if event.topic == "/tasks/exit"]
        topics = [key for key, _ in itertools.groupby(event.topic for event in own)]

        assert [*range(1, lives + 1)] == [key for key, _ in itertools.groupby(exits)]
        assert [topic for topic, _ in life] * lives == topics
