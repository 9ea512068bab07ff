"""What can be asked of a running container: pause, resume, kill all, limits, metrics, its processes."""

from __future__ import annotations

import signal
import threading
import time
from typing import Final

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from shim import ttrpc
from shim.api import cgroups_v1_pb2, cgroups_v2_pb2
from shim.api.runc_options_pb2 import ProcessDetails
from shim.api.task_types_pb2 import CREATED, PAUSED, RUNNING
from shim.api.task_v2_pb2 import CheckpointTaskRequest
from shim.testing.containerd import Containerd
from shim.testing.events import EventLog
from shim.testing.leftovers import cgroups, read_process
from tests.integration.client import Guests, TaskClient, wait_until

MIB: Final = 1 << 20
Metrics = cgroups_v1_pb2.Metrics | cgroups_v2_pb2.Metrics


def limit(containerd: Containerd, container: str, *names: str) -> int:
    """Return the number in a file of a container's cgroup; `names` are the file's under version 1 and version 2."""
    folders = [folder / container for _, folder in cgroups((containerd.namespace,))]
    found = [folder / name for folder in folders for name in names if (folder / name).exists()]
    assert found, f"none of {names} in {[str(folder) for folder in folders]}"
    return int(found[0].read_text())


def metrics(task: TaskClient) -> Metrics:
    """Return a container's metrics, of whichever version its cgroup has."""
    stats = task.stats()
    for kind in (cgroups_v1_pb2.Metrics, cgroups_v2_pb2.Metrics):
        if stats.type_url == kind.DESCRIPTOR.full_name:
            return kind.FromString(stats.value)
    raise AssertionError(f"unknown metrics {stats.type_url}")


def cpu_ns(found: Metrics) -> int:
    """Return the processor time used so far."""
    return found.cpu.usage.total if isinstance(found, cgroups_v1_pb2.Metrics) else found.cpu.usage_usec * 1000


def memory(found: Metrics) -> int:
    """Return the memory in use."""
    return found.memory.usage.usage if isinstance(found, cgroups_v1_pb2.Metrics) else found.memory.usage


# Pause and resume.


def test_pause_and_resume(containerd: Containerd, events: EventLog, name: str) -> None:
    """A paused container is seen as such and does nothing; resumed, it goes on."""
    containerd.run(name, "sh", "-c", "while echo >> /count; do sleep 0.02; done", detach=True, options=["--null-io"])
    count = containerd.bundle(name) / "rootfs" / "count"
    wait_until(count.exists, "the container counts")
    containerd.ctr("tasks", "pause", name)
    events.wait("/tasks/paused", name)

    assert "PAUSED" == containerd.tasks()[name].status

    size = count.stat().st_size
    time.sleep(0.5)

    assert size == count.stat().st_size

    containerd.ctr("tasks", "resume", name)
    events.wait("/tasks/resumed", name)

    assert "RUNNING" == containerd.tasks()[name].status
    wait_until(lambda: count.stat().st_size > size, "the container counts again")

    containerd.ctr("tasks", "kill", "--signal", "SIGKILL", name)
    containerd.wait_status(name, "STOPPED")
    containerd.ctr("tasks", "rm", name, check=False)
    containerd.ctr("containers", "rm", name)
    events.wait("/tasks/delete", name)
    life = ["create", "start", "paused", "resumed", "exit", "delete"]

    assert [f"/tasks/{step}" for step in life] == events.topics(name)


def test_paused_container_refuses(running: str, task: TaskClient) -> None:
    """While paused: no exec, no second pause, no start, no delete; execs there are show as paused too."""
    task.exec("e", "sleep", "1000")
    task.start("e")
    task.pause()

    assert (PAUSED, PAUSED) == (task.state().status, task.state("e").status)
    with pytest.raises(ttrpc.RpcError, match="cannot exec in a paused state"):
        task.exec("new", "true")
    with pytest.raises(ttrpc.RpcError, match="cannot pause a paused container"):
        task.pause()
    with pytest.raises(ttrpc.RpcError, match="cannot start a paused process"):
        task.start()
    with pytest.raises(ttrpc.RpcError, match="cannot delete a paused process"):
        task.delete()

    task.resume()

    assert (RUNNING, RUNNING) == (task.state().status, task.state("e").status)
    with pytest.raises(ttrpc.RpcError, match="cannot resume a running process"):
        task.resume()

    task.kill(signal.SIGKILL, "e")
    task.wait("e")
    task.delete("e")


def test_pause_of_what_does_not_run(guests: Guests, name: str) -> None:
    """Neither a container that was only created nor one that has ended can be paused or resumed."""
    task = guests.create(name, "true")
    for call, word in ((task.pause, "pause"), (task.resume, "resume")):
        with pytest.raises(ttrpc.RpcError, match=f"cannot {word} task in created state"):
            call()
    task.start()
    task.wait()
    for call, word in ((task.pause, "pause"), (task.resume, "resume")):
        with pytest.raises(ttrpc.RpcError, match=f"cannot {word} a stopped container"):
            call()


def test_kill_while_paused(guests: Guests, events: EventLog, name: str) -> None:
    """A paused container can be killed: it is thawed for it, its exit is told, and it can be deleted."""
    task = guests.create(name, "sh", "-c", "sleep 1001 & sleep 1002 & wait")
    task.start()
    wait_until(lambda: len(task.pids().processes) == 3, "three processes run")
    pids = [process.pid for process in task.pids().processes]
    task.pause()
    task.kill(signal.SIGKILL)

    assert 137 == task.wait(timeout_s=30).exit_status
    assert 137 == task.delete().exit_status
    wait_until(lambda: all(read_process(pid) is None for pid in pids), "all three have ended")
    events.wait("/tasks/delete", name)

    assert "/tasks/exit" == events.topics(name)[-2]


# Signals.


def test_kill_all(containerd: Containerd, name: str) -> None:
    """A signal for all reaches init's children, which one for init alone does not."""
    command = "trap : TERM; sleep 1001 & sleep 1002 & wait; wait; wait; exit 9"
    arguments = containerd.run_arguments(name, "sh", "-c", command)
    with containerd.popen(*arguments) as process:
        containerd.wait_status(name, "RUNNING", 30)
        wait_until(lambda: len(processes(containerd, name)) == 3, "three processes run")
        containerd.ctr("tasks", "kill", name)
        time.sleep(0.3)

        assert 3 == len(processes(containerd, name))

        containerd.ctr("tasks", "kill", "--all", name)

        assert 9 == process.wait(30)


def processes(containerd: Containerd, container: str) -> list[int]:
    """Return the pids that `ctr tasks ps` shows."""
    lines = containerd.ctr("tasks", "ps", container).stdout.splitlines()[1:]
    return [int(line.split()[0]) for line in lines]


# Limits.


def test_update(containerd: Containerd, running: str, task: TaskClient) -> None:
    """Update changes the limits of a running container's cgroup, and leaves the others as they are."""
    task.update({"memory": {"limit": 64 * MIB}, "pids": {"limit": 77}})

    assert 64 * MIB == limit(containerd, running, "memory.limit_in_bytes", "memory.max")
    assert 77 == limit(containerd, running, "pids.max")

    task.update({"pids": {"limit": 78}})

    assert 64 * MIB == limit(containerd, running, "memory.limit_in_bytes", "memory.max")
    assert 78 == limit(containerd, running, "pids.max")
    assert RUNNING == task.state().status


def test_update_before_start_and_after_exit(containerd: Containerd, guests: Guests, name: str) -> None:
    """A created container takes limits, one that has ended does not."""
    task = guests.create(name, "true")
    task.update({"pids": {"limit": 33}})

    assert 33 == limit(containerd, name, "pids.max")

    task.start()
    task.wait()
    with pytest.raises(ttrpc.RpcError, match="cannot update a stopped container"):
        task.update({"pids": {"limit": 34}})


def test_update_that_makes_no_sense(running: str, task: TaskClient) -> None:
    """What runc says about limits that it cannot set is the answer."""
    with pytest.raises(ttrpc.RpcError, match="runc did not terminate successfully: exit status 1: ") as caught:
        task.update({"memory": {"limit": 4096}})

    assert ttrpc.Code.UNKNOWN == caught.value.code
    assert RUNNING == task.state().status


# Metrics and processes.


def test_stats(running: str, task: TaskClient) -> None:
    """Metrics are of the cgroup's version; memory is in use, processes are counted, processor time grows."""
    # What has just made the container may be counted for a moment longer.
    wait_until(lambda: metrics(task).pids.current == 1, "only init is counted")
    before = metrics(task)

    assert memory(before) > 0

    task.run("e", "sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
    used = cpu_ns(metrics(task)) - cpu_ns(before)

    # A loop of 200000 rounds takes more than this on any processor.
    assert 10_000_000 < used


def test_stats_by_ctr(containerd: Containerd, running: str) -> None:
    """`ctr tasks metrics` can read them."""
    lines = containerd.ctr("tasks", "metrics", running).stdout.splitlines()
    values = dict(line.split(maxsplit=1) for line in lines if line)

    assert running in values
    assert 0 < int(values["pids.current"])


def test_pids(running: str, task: TaskClient) -> None:
    """All processes are listed; those of execs, and only those, say which exec they are."""
    task.exec("e", "sleep", "1000")
    pid = task.start("e")
    listed = {process.pid: process.info for process in task.pids().processes}
    init = task.state().pid

    assert {init, pid} == set(listed)
    assert "" == listed[init].type_url
    assert "containerd.runc.v1.ProcessDetails" == listed[pid].type_url
    assert "e" == ProcessDetails.FromString(listed[pid].value).exec_id

    task.kill(signal.SIGKILL, "e")
    task.wait("e")
    wait_until(lambda: [init] == [process.pid for process in task.pids().processes], "only init is listed")
    task.delete("e")


def test_pids_by_ctr(containerd: Containerd, running: str, task: TaskClient) -> None:
    """`ctr tasks ps` shows the processes with their execs."""
    task.exec("e", "sleep", "1000")
    pid = task.start("e")
    lines = containerd.ctr("tasks", "ps", running).stdout.splitlines()

    assert str(containerd.task_pid(running)) in [line.split()[0] for line in lines]
    assert any(str(pid) in line and "e" in line.split(maxsplit=1)[1] for line in lines)

    task.kill(signal.SIGKILL, "e")
    task.wait("e")
    task.delete("e")


def test_pids_of_what_does_not_run(guests: Guests, name: str) -> None:
    """A created container has its one process; one that has ended has none, which is no failure."""
    task = guests.create(name, "true")

    assert [task.state().pid] == [process.pid for process in task.pids().processes]

    task.start()
    task.wait()

    assert [] == list(task.pids().processes)


def test_oom_is_told_before_the_exit(containerd: Containerd, events: EventLog, guests: Guests, name: str) -> None:
    """A process that the kernel kills for memory is announced, before its exit."""

    def little_memory(spec: dict[str, dict[str, object]]) -> None:
        spec["linux"]["resources"] = {"memory": {"limit": 16 * MIB, "swap": 16 * MIB}}

    task = guests.create(name, "sh", "-c", "tail /dev/zero", edit=little_memory)
    task.start()

    assert 137 == task.wait().exit_status
    events.wait("/tasks/exit", name)
    topics = events.topics(name)

    assert "/tasks/oom" in topics
    assert topics.index("/tasks/oom") < topics.index("/tasks/exit")


def test_checkpoint_without_criu_says_so(containerd: Containerd, running: str, task: TaskClient) -> None:
    """In the runtime's own words, to clients of the shim and of containerd alike; the container runs on."""
    bundle = containerd.bundle(running)
    request = CheckpointTaskRequest(id=running, path=str(containerd.folder / "image"), options=AnyMessage())
    with pytest.raises(ttrpc.RpcError, match="criu") as caught:
        task.call("Checkpoint", request, Empty)
    result = containerd.ctr("tasks", "checkpoint", running, check=False)

    assert ttrpc.Code.UNKNOWN == caught.value.code
    assert caught.value.message.startswith("runc did not terminate successfully: exit status 1: ")
    assert caught.value.message.endswith(f" path= {bundle}/criu-dump.log")
    assert "\n" not in caught.value.message
    assert 0 != result.returncode
    assert "criu" in result.stderr
    assert not (bundle / "work" / "criu-work").exists()
    assert RUNNING == task.state().status


def test_connect_of_an_unknown_container(guests: Guests) -> None:
    """Connect answers about any id: containerd uses it to see whether the shim is alive."""
    answer = guests.client("no-such-container").connect()

    assert 0 == answer.task_pid
    assert read_process(answer.shim_pid) is not None


def test_state_is_answered_while_the_runtime_works(guests: Guests, name: str) -> None:
    """State of one container does not wait for the making of others."""
    task = guests.create(name, "sleep", "1000")
    slow = [guests.client(f"{name}-{number}") for number in range(4)]
    requests = [guests.request(client.container, guests.bundle(client.container, "true")) for client in slow]
    threads = [
        threading.Thread(target=client.create, args=(request,)) for client, request in zip(slow, requests, strict=True)
    ]
    for thread in threads:
        thread.start()
    durations = []
    while any(thread.is_alive() for thread in threads):
        started = time.monotonic()

        assert CREATED == task.state().status

        durations.append(time.monotonic() - started)

    assert 1.0 > max(durations)
