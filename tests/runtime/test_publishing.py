"""Events of a program that is no daemon."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim import InvalidArgumentError, StandalonePublisher, UnavailableError, topics
from shim.api import TaskExit, TaskOOM
from shim.runtime.logger import Logger
from shim.testing import Event, EventService
from tests.fakes import ROOT, open_descriptors, python_path


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[EventService]:
    """A containerd that is there."""
    with EventService(tmp_path / "containerd.sock.ttrpc") as containerd:
        yield containerd


def example(address: str) -> subprocess.CompletedProcess[str]:
    """Run examples/publish.py; what Python warns of fails it."""
    command = [sys.executable, "-W", "error", str(ROOT / "examples/publish.py"), address]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("prefix", ["", "unix://"])
def test_leaving_has_delivered_all(containerd: EventService, prefix: str) -> None:
    """In order; no thread and no descriptor is left."""
    before = open_descriptors(), threading.active_count()
    with StandalonePublisher(prefix + containerd.path, "ns") as publisher:
        for pid in range(200):
            publisher.publish(topics.TASK_EXIT, TaskExit(container_id="c", pid=pid))

    assert [Event("/tasks/exit", "ns", TaskExit(container_id="c", pid=pid)) for pid in range(200)] == containerd.events
    assert 0 == publisher.pending
    assert threading.active_count() == before[1]
    # The fake's own end of the connection goes when it has seen ours go.
    containerd.stop()
    assert set(open_descriptors()) <= set(before[0])


def test_leaving_without_an_event_is_nothing(tmp_path: Path) -> None:
    """Whether or not anybody is there."""
    with StandalonePublisher(str(tmp_path / "nobody"), "ns"):
        pass


def test_what_was_not_delivered_is_counted(tmp_path: Path) -> None:
    """The error names the number and the address."""
    path = str(tmp_path / "nobody")

    def publish() -> None:
        with StandalonePublisher(path, "ns", timeout_s=0.1) as publisher:
            for _ in range(3):
                publisher.publish(topics.TASK_OOM, TaskOOM(container_id="c"))

    with pytest.raises(UnavailableError) as caught:
        publish()

    assert f"3 events were not delivered to {path}" == str(caught.value)


def test_an_error_of_the_callers_own_is_the_one_that_is_seen(tmp_path: Path) -> None:
    """That events are left is the smaller trouble."""

    def publish() -> None:
        with StandalonePublisher(str(tmp_path / "nobody"), "ns", timeout_s=0.05) as publisher:
            publisher.publish(topics.TASK_OOM, TaskOOM(container_id="c"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        publish()


def test_patience_outlasts_a_restart(containerd: EventService) -> None:
    """An event from before containerd comes back is delivered, and leaving waits for it."""
    containerd.stop()
    back = threading.Timer(0.2, containerd.start)
    with StandalonePublisher(containerd.path, "ns", timeout_s=15.0) as publisher:
        publisher.publish(topics.TASK_OOM, TaskOOM(container_id="c"))
        back.start()
    back.join()

    assert ["/tasks/oom"] == [event.topic for event in containerd.events]


def test_what_is_published_too_late_is_no_error(containerd: EventService) -> None:
    """A thread of the program may not know that it is over."""
    with StandalonePublisher(containerd.path, "ns") as publisher:
        pass
    publisher.publish(topics.TASK_OOM, TaskOOM(container_id="c"))

    assert [] == containerd.events


def test_a_refused_event_is_told_to_the_logger(containerd: EventService, tmp_path: Path) -> None:
    """And is no reason to wait."""
    (tmp_path / "log").touch()
    logger = Logger.open(str(tmp_path / "log"), is_debug=False)

    def refuse(event: Event) -> None:
        raise InvalidArgumentError("no such thing")

    containerd.judge = refuse
    with StandalonePublisher(containerd.path, "ns", logger=logger) as publisher:
        publisher.publish(topics.TASK_OOM, TaskOOM(container_id="c"))
    os.close(logger.fd)

    assert 'msg="containerd refused an event" topic=/tasks/oom' in (tmp_path / "log").read_text()


def test_no_address_is_refused() -> None:
    """Rather than drop events in silence, as a daemon has to that was started without one."""
    with pytest.raises(InvalidArgumentError, match="no address of containerd"):
        StandalonePublisher("", "ns")


def test_the_example_prints_its_three_lines(containerd: EventService) -> None:
    """And its event is there when it says so."""
    done = example(containerd.path)

    assert (0, "") == (done.returncode, done.stderr)
    assert f"Connecting: {containerd.path}\nSending event\nDone\n" == done.stdout
    assert [Event("/tasks/oom", "default", TaskOOM(container_id="123"))] == containerd.events


def test_the_example_says_what_is_wrong(tmp_path: Path) -> None:
    """In one line, with an exit code."""
    away, empty = example(str(tmp_path / "nobody")), example("")

    assert (1, 1) == (away.returncode, empty.returncode)
    assert re.fullmatch(r".*publish\.py: 1 events were not delivered to .*/nobody\n", away.stderr)
    assert re.fullmatch(r".*publish\.py: no address of containerd's ttrpc socket to publish to\n", empty.stderr)
    assert "Done" not in away.stdout + empty.stdout
