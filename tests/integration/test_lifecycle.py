"""The life of a container: create, start, wait, kill, delete; its exit codes, its events, the end of its shim."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shim import ttrpc
from shim.api.task_types_pb2 import CREATED, RUNNING, STOPPED
from shim.testing.containerd import Containerd
from shim.testing.events import EventLog
from shim.testing.leftovers import read_process
from tests.integration.client import Guests, TaskClient, shim_address, wait_until

pytestmark = pytest.mark.every_form

Connect = Callable[[str], TaskClient]
Remove = Callable[[str], None]

GO_ZERO_TIME = -62135596800
LIFE = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
# The edges of signed and unsigned bytes, those that shells and signals use, and some between.
CODES = (0, 1, 2, 3, 7, 42, 63, 64, 99, 100, 125, 126, 127, 128, 129, 130, 137, 139, 143, 192, 200, 253, 254, 255)


def share_pids(spec: dict[str, Any]) -> None:
    """Take the container's own pid namespace away: its init is then a process that default signal actions kill."""
    spec["linux"]["namespaces"] = [space for space in spec["linux"]["namespaces"] if space["type"] != "pid"]


# Through containerd.


def test_run_prints(containerd: Containerd, name: str) -> None:
    """What the container prints is what `ctr run` prints."""
    result = containerd.run(name, "echo", "hello")

    assert ("hello\n", "", 0) == (result.stdout, result.stderr, result.returncode)


def test_life_by_ctr(
    containerd: Containerd,
    name: str,
) -> None:
    """A container is made, started, seen, killed and deleted, each by its own command."""
    image = "docker.io/library/busybox:latest"
    options = ["--runtime", containerd.runtime, "--snapshotter", containerd.snapshotter]
    containerd.ctr("containers", "create", *options, image, name, "sleep", "1000")

    assert {} == containerd.tasks()

    containerd.ctr("tasks", "start", "--null-io", "--detach", name)
    task = containerd.tasks()[name]
    process = read_process(task.pid)

    assert "RUNNING" == task.status
    assert process is not None
    assert ("sleep", "1000") == process.arguments

    containerd.ctr("tasks", "kill", "--signal", "SIGKILL", name)
    containerd.wait_status(name, "STOPPED")

    assert None is read_process(task.pid)
    assert task.pid == containerd.task_pid(name)

    containerd.ctr("tasks", "delete", name, check=False)

    assert {} == containerd.tasks()

    containerd.ctr("containers", "delete", name)
    wait_until(lambda: not containerd.bundle(name).exists(), "the bundle is gone")


@pytest.mark.parametrize("code", [0, 1, 7, 127, 255])
def test_exit_code_of_container(containerd: Containerd, name: str, code: int) -> None:
    """`ctr run` ends with the exit code of the container."""
    result = containerd.run(name, "sh", "-c", f"exit {code}", check=False)

    assert code == result.returncode


def test_events_of_a_life(containerd: Containerd, events: EventLog, name: str) -> None:
    """Containerd hears of create, start, exit and delete, in this order, once each, about the right process."""
    containerd.run(name, "sh", "-c", "exit 7", check=False)
    events.wait("/tasks/delete", name)
    bodies = [event.body for event in events.all(name, prefix="/tasks/")]
    create, start, exit_, delete = bodies
    pid = start["pid"]

    assert LIFE == [event.topic for event in events.all(name, prefix="/tasks/")]
    assert [name] * 4 == [body["container_id"] for body in bodies]
    assert [pid] * 4 == [body["pid"] for body in bodies]
    assert pid > 0
    assert str(containerd.bundle(name)) == create["bundle"]
    assert (name, 7) == (exit_["id"], exit_["exit_status"])
    assert ("", 7) == (delete.get("id", ""), delete["exit_status"])
    assert exit_["exited_at"] == delete["exited_at"]


def test_shim_ends_with_its_container(containerd: Containerd, name: str, remove: Remove) -> None:
    """After the last delete the shim's process and its socket are gone."""
    containerd.run(name, "sleep", "1000", detach=True, options=["--null-io"])
    shim = containerd.shim_pid(name)
    socket = Path(shim_address(containerd.bundle(name)).removeprefix("unix://"))

    assert read_process(shim) is not None
    assert socket.is_socket()

    remove(name)
    wait_until(lambda: read_process(shim) is None, f"shim {shim} has ended")

    assert not socket.exists()


def test_twelve_at_once(containerd: Containerd, events: EventLog, name: str, remove: Remove) -> None:
    """Twelve containers start, run and stop side by side, each with a shim and a complete story of its own."""
    names = [f"{name}-{number}" for number in range(12)]
    with ThreadPoolExecutor(len(names)) as threads:
        run = [
            threads.submit(containerd.run, each, "sleep", "1000", detach=True, options=["--null-io"], timeout_s=100)
            for each in names
        ]
        for future in run:
            future.result()
        tasks = containerd.tasks()
        shims = list(threads.map(containerd.shim_pid, names))
        list(threads.map(remove, names))

    assert dict.fromkeys(names, "RUNNING") == {each: tasks[each].status for each in names}
    assert 12 == len(set(shims))
    for each in names:
        events.wait("/tasks/delete", each)

        assert LIFE == events.topics(each)


@pytest.mark.parametrize("round_", range(3))
def test_short_lives_in_a_row(containerd: Containerd, events: EventLog, name: str, round_: int) -> None:
    """A container that ends at once tells the same story as a long one: no exit before its start."""
    containerd.run(name, "true")
    events.wait("/tasks/delete", name)

    assert LIFE == events.topics(name)


# Past containerd, call by call.


def test_life_by_calls(guests: Guests, name: str) -> None:
    """State, Wait, Connect and the answers of each step agree with each other from create to delete."""
    task = guests.create(name, "sh", "-c", "exit 42")
    created = task.state()

    assert CREATED == created.status
    assert (name, GO_ZERO_TIME) == (created.id, created.exited_at.seconds)
    assert created.pid == task.connect().task_pid
    assert read_process(created.pid) is not None

    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(guests.client(name).wait) for _ in range(2)]
        before = time.time()

        assert created.pid == task.start()

        exits = [future.result() for future in waiting]
    stopped = task.state()

    assert [42, 42] == [exit_.exit_status for exit_ in exits]
    assert exits[0].exited_at == exits[1].exited_at == stopped.exited_at == task.wait().exited_at
    assert before - 1 < stopped.exited_at.ToNanoseconds() / 1e9 < time.time() + 1
    assert (STOPPED, created.pid, 42) == (stopped.status, stopped.pid, stopped.exit_status)

    deleted = task.delete()

    assert (created.pid, 42, stopped.exited_at) == (deleted.pid, deleted.exit_status, deleted.exited_at)
    with pytest.raises(ttrpc.RpcError, match="container not created: not found") as caught:
        task.state()
    assert ttrpc.Code.NOT_FOUND == caught.value.code


def test_both_task_versions_answer(guests: Guests, name: str) -> None:
    """One shim serves task v2 and task v3 side by side, about the same containers."""
    task = guests.create(name, "sleep", "1000")
    newer = guests.client(name, "containerd.task.v3.Task")
    newer.start()

    assert RUNNING == newer.state().status
    assert task.state() == newer.state()

    newer.kill(signal.SIGKILL)

    assert 137 == task.wait().exit_status
    assert 137 == newer.delete().exit_status


def test_exit_codes_of_execs(guests: Guests, name: str) -> None:
    """Every kind of exit code comes through as it is."""
    task = guests.create(name, "sleep", "1000")
    task.start()
    with ThreadPoolExecutor(6) as threads:
        codes = list(threads.map(lambda code: task.run(f"exit-{code}", "sh", "-c", f"exit {code}"), CODES))

    assert list(CODES) == codes


@pytest.mark.parametrize(("number", "code"), [("KILL", 137), ("TERM", 143), ("SEGV", 139)])
def test_exit_by_signal(guests: Guests, name: str, number: str, code: int) -> None:
    """A process that a signal ends, init or exec, has the exit code 128 plus the signal's number."""
    task = guests.create(name, "sleep", "1000", edit=share_pids)
    task.start()
    task.exec("e", "sleep", "1000")
    task.start("e")
    task.kill(signal.Signals[f"SIG{number}"], "e")

    assert code == task.wait("e").exit_status
    assert code == task.delete("e").exit_status

    task.kill(signal.Signals[f"SIG{number}"])

    assert code == task.wait().exit_status
    assert code == task.delete().exit_status


def test_exit_code_of_a_killed_container(containerd: Containerd, name: str) -> None:
    """The code of a killed init reaches ctr too."""
    process = containerd.popen(*containerd.run_arguments(name, "sleep", "1000"))
    with process:
        containerd.wait_status(name, "RUNNING", 30)
        containerd.ctr("tasks", "kill", "--signal", "SIGKILL", name)

        assert 137 == process.wait(30)


def test_kill_after_the_end(guests: Guests, name: str) -> None:
    """A signal for a process that has ended is answered with not found, which clients take for success."""
    task = guests.create(name, "true")
    task.start()
    task.wait()
    with pytest.raises(ttrpc.RpcError, match="process already finished: not found") as caught:
        task.kill(signal.SIGTERM)

    assert ttrpc.Code.NOT_FOUND == caught.value.code


def test_delete_of_a_container_never_started(
    guests: Guests,
    events: EventLog,
    name: str,
) -> None:
    """Deleting what was only created kills it: 137, an exit and a delete event, and no start."""
    task = guests.create(name, "sleep", "1000")
    pid = task.state().pid
    deleted = task.delete()
    events.wait("/tasks/delete", name)
    exits = [event.body for event in events.all(name) if event.topic == "/tasks/exit"]

    assert (pid, 137) == (deleted.pid, deleted.exit_status)
    assert deleted.exited_at.seconds > 0
    assert ["/tasks/create", "/tasks/exit", "/tasks/delete"] == events.topics(name)
    assert [(pid, 137)] == [(body["pid"], body["exit_status"]) for body in exits]
    wait_until(lambda: read_process(pid) is None, "the init that never ran has ended")


def test_kill_of_a_container_never_started(guests: Guests, events: EventLog, name: str) -> None:
    """A container killed before its start ends with 137, and cannot be started any more."""
    task = guests.create(name, "sleep", "1000")
    task.kill(signal.SIGKILL)

    assert 137 == task.wait().exit_status
    with pytest.raises(ttrpc.RpcError, match="cannot start a stopped process"):
        task.start()

    task.delete()
    events.wait("/tasks/delete", name)

    assert ["/tasks/create", "/tasks/exit", "/tasks/delete"] == events.topics(name)


def test_children_end_with_init_when_pids_are_shared(
    guests: Guests,
    name: str,
) -> None:
    """Without a pid namespace of its own, nothing of a container lives on after its init."""
    task = guests.create(name, "sh", "-c", "sleep 1001 & sleep 1002 & wait", edit=share_pids)
    init = task.start()
    wait_until(lambda: len(task.pids().processes) == 3, "three processes run")
    pids = [process.pid for process in task.pids().processes]
    task.kill(signal.SIGKILL)
    task.wait()

    assert init in pids
    wait_until(lambda: all(read_process(pid) is None for pid in pids), "all three have ended")


def test_many_waiters_leave_room_for_calls(guests: Guests, name: str) -> None:
    """A hundred blocked Waits keep no other call from being answered, and are all answered at the exit."""
    task = guests.create(name, "sleep", "1000")
    task.start()
    waiter = guests.client(name)
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(waiter.wait().exit_status)) for _ in range(100)]
    for thread in threads:
        thread.start()

    assert [0, 0, 0] == [task.run(f"e{number}", "true") for number in range(3)]
    assert [] == codes

    task.kill(signal.SIGKILL)
    for thread in threads:
        thread.join(30)

    assert [137] * 100 == codes


def test_delete_of_a_running_container_is_refused(guests: Guests, name: str) -> None:
    """A running container cannot be deleted, and is none the worse for the attempt."""
    task = guests.create(name, "sleep", "1000")
    task.start()
    with pytest.raises(ttrpc.RpcError, match="cannot delete a running process"):
        task.delete()

    assert RUNNING == task.state().status


def test_shutdown_with_containers_does_nothing(guests: Guests, name: str) -> None:
    """A shim with containers answers Shutdown and stays."""
    task = guests.create(name, "sleep", "1000")
    task.start()
    task.shutdown()

    assert RUNNING == guests.client(name).state().status
