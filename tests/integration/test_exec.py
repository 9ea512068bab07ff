"""Further processes in a running container: their output, exit codes, ids, failures and events."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from shim import ttrpc
from shim.api.task_types_pb2 import CREATED, RUNNING, STOPPED
from shim.api.task_v2_pb2 import ExecProcessRequest
from shim.testing.containerd import Containerd
from shim.testing.events import EventLog
from shim.testing.leftovers import read_process
from tests.integration.client import Fifo, Guests, TaskClient, wait_until

pytestmark = pytest.mark.every_form

Connect = Callable[[str], TaskClient]
Remove = Callable[[str], None]

EXEC_LIFE = ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]


def test_exec_prints(containerd: Containerd, running: str) -> None:
    """What the process writes on its two outputs comes out of ctr's two outputs."""
    result = containerd.exec(running, "sh", "-c", "echo out; echo err >&2")

    assert ("out\n", "err\n", 0) == (result.stdout, result.stderr, result.returncode)


@pytest.mark.parametrize("code", [1, 77, 255])
def test_exec_code(containerd: Containerd, running: str, code: int) -> None:
    """`ctr tasks exec` ends with the process's own exit code."""
    assert code == containerd.exec(running, "sh", "-c", f"exit {code}", check=False).returncode


def test_exec_sees_the_container(containerd: Containerd, running: str) -> None:
    """The process runs among the container's own: its init is process 1 there."""
    result = containerd.exec(running, "sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline")

    assert "sleep 1000 " == result.stdout


def test_exec_thirty_at_once(events: EventLog, running: str, task: TaskClient, fifo: Callable[[str], Fifo]) -> None:
    """Thirty at the same time each print their own text, end with their own code, and are told in order."""
    ids = [f"e{number}" for number in range(30)]
    # Not by ctr: thirty of those on a busy machine lose output, whichever shim they talk to. They give up opening a
    # fifo when the process has been deleted before they came to it.
    outputs = {exec_id: fifo(exec_id) for exec_id in ids}

    def run(exec_id: str) -> int:
        task.exec(exec_id, "sh", "-c", f"echo I am {exec_id}; exit {exec_id[1:]}", stdout=outputs[exec_id].path)
        task.start(exec_id)
        code = task.wait(exec_id).exit_status
        task.delete(exec_id)
        return code

    with ThreadPoolExecutor(len(ids)) as threads:
        codes = list(threads.map(run, ids))

    assert list(range(30)) == codes
    assert [f"I am {exec_id}\n".encode() for exec_id in ids] == [outputs[exec_id].read() for exec_id in ids]
    events.wait("/tasks/exit", running, count=len(ids))
    for exec_id in ids:
        assert EXEC_LIFE == exec_topics(events, running, exec_id)


def test_exec_ten_at_once_by_ctr(containerd: Containerd, running: str) -> None:
    """Ten of ctr's execs at the same time end each with its own code."""

    def run(code: int) -> int:
        return containerd.exec(running, "sh", "-c", f"exit {code}", exec_id=f"e{code}", check=False).returncode

    with ThreadPoolExecutor(10) as threads:
        codes = list(threads.map(run, range(10)))

    assert list(range(10)) == codes


def exec_topics(events: EventLog, container: str, exec_id: str) -> list[str]:
    """Return the topics of one exec's events, in order."""
    return [
        event.topic
        for event in events.all(container, prefix="/tasks/")
        if exec_id in (event.body.get("exec_id"), event.body.get("id"))
    ]


def test_exec_life_by_calls(events: EventLog, running: str, task: TaskClient) -> None:
    """State, Wait, Start and Delete of an exec agree with each other and with its events."""
    task.exec("e", "sh", "-c", "exit 9")
    added = task.state("e")

    assert (CREATED, "e", 0) == (added.status, added.id, added.pid)

    pid = task.start("e")
    exit_ = task.wait("e")
    ended = task.state("e")
    deleted = task.delete("e")
    events.wait("/tasks/exit", running)
    added_event, started_event, exit_event = (event.body for event in events.all(running, prefix="/tasks/ex"))

    assert 9 == exit_.exit_status
    assert (STOPPED, pid, 9, exit_.exited_at) == (ended.status, ended.pid, ended.exit_status, ended.exited_at)
    assert (pid, 9, exit_.exited_at) == (deleted.pid, deleted.exit_status, deleted.exited_at)
    assert {"container_id": running, "exec_id": "e"} == added_event
    assert {"container_id": running, "exec_id": "e", "pid": pid} == started_event
    assert ("e", pid, 9) == (exit_event["id"], exit_event["pid"], exit_event["exit_status"])


def test_exec_of_a_missing_program(containerd: Containerd, events: EventLog, running: str, task: TaskClient) -> None:
    """The answer to Start says what is missing; nobody waits for ever, nothing has run, the exec can be deleted."""
    task.exec("e", "/nosuch")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(task.wait, "e")
        with pytest.raises(ttrpc.RpcError) as caught:
            task.start("e")
        waiting.result(20)

    assert ttrpc.Code.UNKNOWN == caught.value.code
    assert caught.value.message.startswith("OCI runtime exec failed: ")
    assert 'exec: "/nosuch": stat /nosuch: no such file or directory' in caught.value.message

    task.delete("e")
    with pytest.raises(ttrpc.RpcError, match="process does not exist e: not found"):
        task.state("e")
    task.run("e", "true")
    events.wait("/tasks/exit", running)

    assert ["/tasks/exec-added", *EXEC_LIFE] == exec_topics(events, running, "e")
    assert "RUNNING" == containerd.tasks()[running].status


def test_exec_of_a_missing_program_by_ctr(containerd: Containerd, running: str) -> None:
    """The client is told which program is missing."""
    result = containerd.exec(running, "nosuch", check=False)

    assert 0 != result.returncode
    assert 'exec: "nosuch": executable file not found in $PATH' in result.stderr


def test_exec_id_is_free_after_delete(running: str, task: TaskClient) -> None:
    """An id may be used again and again, once its exec has been deleted."""
    codes = [task.run("again", "sh", "-c", f"exit {number}") for number in range(3)]

    assert [0, 1, 2] == codes


def test_exec_id_in_use(running: str, task: TaskClient) -> None:
    """A second exec of the same id is refused while the first is there, running or not."""
    task.exec("e", "sleep", "1000")
    for _ in range(2):
        with pytest.raises(ttrpc.RpcError, match="id e: already exists") as caught:
            task.exec("e", "true")

        assert ttrpc.Code.ALREADY_EXISTS == caught.value.code
        if task.state("e").status == CREATED:
            task.start("e")
    task.kill(signal.SIGKILL, "e")

    assert 137 == task.wait("e").exit_status
    task.delete("e")


def test_exec_kill(running: str, task: TaskClient) -> None:
    """A signal reaches the exec it is meant for, only while that runs, and no other process."""
    task.exec("e", "sleep", "1000")
    with pytest.raises(ttrpc.RpcError, match="process not created: failed precondition") as early:
        task.kill(signal.SIGTERM, "e")
    task.start("e")
    with pytest.raises(ttrpc.RpcError, match="cannot delete a running process"):
        task.delete("e")
    task.kill(signal.SIGTERM, "e")

    assert 143 == task.wait("e").exit_status
    with pytest.raises(ttrpc.RpcError, match="process already finished: not found") as late:
        task.kill(signal.SIGTERM, "e")

    task.delete("e")

    assert ttrpc.Code.FAILED_PRECONDITION == early.value.code
    assert ttrpc.Code.NOT_FOUND == late.value.code
    assert RUNNING == task.state().status


def test_exec_kill_by_ctr(
    containerd: Containerd,
    running: str,
    task: TaskClient,
) -> None:
    """`ctr tasks kill --exec-id` ends the exec, and the waiting ctr with it."""
    process = containerd.popen("tasks", "exec", "--exec-id", "victim", running, "sleep", "1000")
    with process:
        wait_until(lambda: is_running(task, "victim"), "the exec runs")
        containerd.ctr("tasks", "kill", "--exec-id", "victim", "--signal", "SIGKILL", running)

        assert 137 == process.wait(30)


def is_running(task: TaskClient, exec_id: str) -> bool:
    """Say whether an exec is there and runs."""
    try:
        return task.state(exec_id).status == RUNNING
    except ttrpc.RpcError:
        return False


def test_exec_folder_environment_and_user(running: str, task: TaskClient, tmp_path: Path) -> None:
    """The process gets the working directory, environment and user that its spec says."""
    log = tmp_path / "log"
    process: dict[str, object] = {"cwd": "/home", "env": ["A=b c", "PATH=/bin"], "user": {"uid": 1000, "gid": 65534}}
    task.exec("e", "sh", "-c", "pwd; echo $A; id -u; id -g", stdout=f"file://{log}", process=process)
    task.start("e")
    task.wait("e")
    task.delete("e")

    assert "/home\nb c\n1000\n65534\n" == log.read_text()


def test_exec_folder_and_user_by_ctr(containerd: Containerd, running: str) -> None:
    """Ctr's --cwd and --user reach the process."""
    result = containerd.exec(running, "sh", "-c", "pwd; id -un", options=["--cwd", "/usr", "--user", "1000:1000"])

    assert "/usr\nuser\n" == result.stdout


def test_exec_spec_that_is_no_json(running: str, task: TaskClient) -> None:
    """A broken spec is refused at once, and its id stays free."""
    request = ExecProcessRequest(id=running, exec_id="e", spec=AnyMessage(type_url="x", value=b"{"))
    with pytest.raises(ttrpc.RpcError, match="exec spec"):
        task.call("Exec", request, Empty)

    assert 0 == task.run("e", "true")


def test_exec_detached_outlives_ctr(containerd: Containerd, running: str, task: TaskClient) -> None:
    """A detached exec runs on without its ctr."""
    containerd.exec(running, "sleep", "1000", exec_id="d", options=["--detach"])

    assert RUNNING == task.state("d").status

    task.kill(signal.SIGKILL, "d")

    assert 137 == task.wait("d").exit_status
    task.delete("d")


def test_exec_exits_come_before_the_exit_of_init(
    guests: Guests,
    events: EventLog,
    name: str,
) -> None:
    """When init is killed, the exits of all execs are told first, and its own once."""
    task = guests.create(name, "sleep", "1000")
    task.start()
    pids = {}
    for exec_id in ("a", "b", "c"):
        task.exec(exec_id, "sleep", "1000")
        pids[exec_id] = task.start(exec_id)
    task.exec("never-started", "true")
    task.kill(signal.SIGKILL)

    assert 137 == task.wait().exit_status
    events.wait("/tasks/exit", name, count=4)
    exits = [event.body["id"] for event in events.all(name) if event.topic == "/tasks/exit"]

    assert {"a", "b", "c"} == set(exits[:3])
    assert [name] == exits[3:]
    assert [137] * 3 == [task.wait(exec_id).exit_status for exec_id in pids]
    wait_until(lambda: all(read_process(pid) is None for pid in pids.values()), "the execs have ended")


def test_exec_after_the_exit_of_init(guests: Guests, name: str) -> None:
    """Nothing can be run in a container that has ended: neither a new exec nor one registered before."""
    task = guests.create(name, "sleep", "1000")
    task.start()
    task.exec("before", "true")
    task.kill(signal.SIGKILL)
    task.wait()
    with pytest.raises(ttrpc.RpcError) as start:
        task.start("before")
    with pytest.raises(ttrpc.RpcError, match="cannot exec in a stopped state"):
        task.exec("after", "true")

    assert ttrpc.Code.FAILED_PRECONDITION == start.value.code
    assert f"container {name} init process is not running: failed precondition" == start.value.message


def test_exec_of_a_created_container(guests: Guests, name: str) -> None:
    """A container that waits for its start already takes execs, as upstream has it."""
    task = guests.create(name, "sleep", "1000")

    assert 5 == task.run("e", "sh", "-c", "exit 5")

    task.start()

    assert RUNNING == task.state().status


def test_exec_start_while_init_is_killed(guests: Guests, events: EventLog, name: str) -> None:
    """Execs that are being started while init dies either ran or failed, and no exit comes after init's."""
    task = guests.create(name, "sleep", "1000")
    task.start()
    ids = [f"e{number}" for number in range(8)]
    for exec_id in ids:
        task.exec(exec_id, "sleep", "1000")

    def start(exec_id: str) -> bool:
        try:
            task.start(exec_id)
        except ttrpc.RpcError:
            return False
        return True

    with ThreadPoolExecutor(len(ids) + 1) as threads:
        started = [threads.submit(start, exec_id) for exec_id in ids]
        task.kill(signal.SIGKILL)
        ran = {exec_id for exec_id, future in zip(ids, started, strict=True) if future.result()}
    task.wait()
    event = events.wait("/tasks/exit", name, count=len(ran) + 1)
    exits = [event.body["id"] for event in events.all(name) if event.topic == "/tasks/exit"]

    assert name == event.body["id"]
    assert sorted([*ran, name]) == sorted(exits)
    assert {exec_id for exec_id in ids if EXEC_LIFE == exec_topics(events, name, exec_id)} == ran
