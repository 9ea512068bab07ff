"""The daemon of asyncio shims, where it differs from the blocking one; test_shim.py runs both."""

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.api import events_pb2
from shim.api.task_v3_ttrpc import TaskRpcs
from shim.testing import EventService
from shim.ttrpc import Client, ConnectionClosedError, RpcError, connect
from tests.fakes import PATIENCE_S, wait_until
from tests.runtime.home import Home

# Both ways to a daemon are the same from its first call on.
pytestmark = pytest.mark.parametrize("spawn", ["fork"], indirect=True)


@pytest.fixture
def aio(nest: Home) -> Home:
    """A home for shims of aio_shims.py; the test says which, by `program`."""
    nest.python = ("-W", "error")
    nest.program = ("tests.runtime.aio_shims", "plain")
    return nest


def become(home: Home, name: str) -> Home:
    """Run another of the shims there."""
    home.program = ("tests.runtime.aio_shims", name)
    return home


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[EventService]:
    """Who takes the events."""
    with EventService(tmp_path / "ttrpc") as containerd:
        yield containerd


def test_reaper_monitor_and_publisher_work_on_asyncios_loop(aio: Home, containerd: EventService) -> None:
    """A child's exit comes to a coroutine, and its event to containerd."""
    become(aio, "watching").environment["TTRPC_ADDRESS"] = containerd.path
    with aio.connect() as client:
        answer = client.call(
            TaskRpcs.CREATE, TaskRpcs.CREATE.request(stdin="exit 7", stdout=str(PATIENCE_S)), timeout_s=PATIENCE_S
        )
        assert wait_until(lambda: containerd.events)

    assert 7 == answer.pid
    assert [("/tasks/oom", events_pb2.TaskOOM(container_id="7"))] == [
        (event.topic, event.message) for event in containerd.events
    ]


def test_events_survive_a_restart_of_containerd(aio: Home, containerd: EventService) -> None:
    """On asyncio's loop as on the other."""
    become(aio, "watching").environment["TTRPC_ADDRESS"] = containerd.path
    with aio.connect() as client:
        for status in range(1, 9):
            if status % 3 == 0:
                containerd.stop()
            request = TaskRpcs.CREATE.request(stdin=f"exit {status}", stdout=str(PATIENCE_S))
            client.call(TaskRpcs.CREATE, request, timeout_s=PATIENCE_S)
            if status % 3 == 1 and status > 1:
                containerd.start()
        assert wait_until(lambda: len({e.message.SerializeToString() for e in containerd.events}) == 8)


def test_a_bug_in_a_callback_is_in_the_log(aio: Home) -> None:
    """So is one in a task that nobody asked how it ended."""
    with become(aio, "failing").connect() as client:
        client.call(TaskRpcs.STATE, TaskRpcs.STATE.request(id="c"), timeout_s=PATIENCE_S)
        client.call(TaskRpcs.CONNECT, TaskRpcs.CONNECT.request(), timeout_s=PATIENCE_S)

        assert wait_until(lambda: "a bug in a task" in aio.log())
        told = r'msg="error in the event loop: Exception in callback [^\n]* error="ZeroDivisionError: '
        assert re.search(told, aio.log())


@pytest.mark.parametrize("way", ["Shutdown", "SIGTERM"])
def test_neither_threads_nor_stubborn_tasks_keep_the_daemon(aio: Home, way: str) -> None:
    """As one that waits in a thread for the end of a container."""
    with become(aio, "stubborn").connect() as client:
        if way == "SIGTERM":
            os.kill(aio.daemons()[0], signal.SIGTERM)
        else:
            client.call(TaskRpcs.SHUTDOWN, TaskRpcs.SHUTDOWN.request(), timeout_s=PATIENCE_S)

        assert aio.has_ended()
    assert "publisher stopped" in aio.log()


def test_a_signal_while_the_services_are_made_ends_the_daemon(aio: Home) -> None:
    """It is not forgotten, though there is no server yet that it could end."""
    home = become(aio, "early")

    assert 0 == home.start().returncode
    assert home.has_ended()
    assert "reaper stopped" in home.log()


def open_calls(home: Home) -> int:
    """Ask the daemon how many calls wait for their answer."""
    before = home.log().count("=== END goroutine")
    os.kill(home.daemons()[0], signal.SIGUSR1)
    assert wait_until(lambda: home.log().count("=== END goroutine") > before)
    return home.log().rpartition("=== BEGIN goroutine")[2].count("open call ")


def wait_for_ever(client: Client) -> threading.Thread:
    """Call Wait in a thread; it is not going to be answered."""

    def call() -> None:
        with pytest.raises((RpcError, ConnectionClosedError)):
            client.call(TaskRpcs.WAIT, TaskRpcs.WAIT.request(id="c"), timeout_s=PATIENCE_S)

    thread = threading.Thread(target=call)
    thread.start()
    return thread


def test_a_coroutine_that_waits_does_not_keep_the_daemon(aio: Home) -> None:
    """It is given up after a grace, and nothing is wrong with that."""
    with aio.connect() as client:
        thread = wait_for_ever(client)
        assert wait_until(lambda: open_calls(aio) == 1)
        os.kill(aio.daemons()[0], signal.SIGTERM)

        assert aio.has_ended()
        thread.join(PATIENCE_S)
    assert "level=error" not in aio.log()


def test_a_caller_that_goes_ends_its_call(aio: Home) -> None:
    """Its coroutine is cancelled; others of the daemon go on."""
    with aio.connect() as client:
        leaving = connect(aio.address)
        thread = wait_for_ever(leaving)
        assert wait_until(lambda: open_calls(aio) == 1)
        leaving.close()
        thread.join(PATIENCE_S)

        assert wait_until(lambda: open_calls(aio) == 0)
        client.call(TaskRpcs.CONNECT, TaskRpcs.CONNECT.request(), timeout_s=PATIENCE_S)
    assert "level=error" not in aio.log()
