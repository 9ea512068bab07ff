"""containerd or a shim dies of SIGKILL: containers outlive the one, and leave nothing behind after the other.

Each test has a containerd of its own, in which in the end nothing may be left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.api.events_pb2 import TaskExit
from shim.testing import EventService
from shim.testing.containerd import Containerd
from shim.testing.leftovers import SOCKET_FOLDER, processes_of, read_process, socket_name
from shim.testing.releases import Release
from tests.integration.client import TaskClient, shim_address, wait_until

pytestmark = pytest.mark.every_form

SANDBOX = "io.kubernetes.cri.sandbox-id"
# Counts, a line every 20 ms, until SIGTERM ends it with 5; as pid 1 it would otherwise not heed that.
COUNT = "trap 'exit 5' TERM; i=0; while :; do echo $i; i=$((i+1)); usleep 20000; done"
# Ends with 7 once the file /gate is there.
GATE = "while ! [ -e /gate ]; do usleep 20000; done; exit 7"


class PatientContainerd(Containerd):
    """A containerd that gives `delete` more than five seconds: several at once take that long on a busy machine."""

    def settings(self) -> str:
        """Return the limit."""
        return '[timeouts]\n"io.containerd.timeout.shim.cleanup" = "30s"\n'


@pytest.fixture
def containerd(release: Release, shim_folder: Path) -> Iterator[Containerd]:
    """Return a containerd to kill; in the end it must have left nothing behind."""
    with PatientContainerd(release, [shim_folder]) as running:
        running.import_image()
        yield running

    assert [] == running.left_behind


@pytest.fixture
def leaves_no_task() -> None:
    """Replace the check of the shared containerd: this one is removed as a whole."""


def remove(containerd: Containerd, *containers: str) -> None:
    """Kill and delete tasks, which all have to be there, and their containers."""
    containerd.ctr("tasks", "rm", "--force", *containers, check=False)
    containerd.ctr("containers", "rm", *containers)

    assert not set(containers) & set(containerd.tasks())


def counted(log: Path) -> list[int]:
    """Return the complete lines that a counting container has written."""
    return [int(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def shim_pid(containerd: Containerd, container: str) -> int:
    """Return the shim's pid as it says itself."""
    with TaskClient(shim_address(containerd.bundle(container)), container) as client:
        return client.connect().shim_pid


def wait_dead(*pids: int) -> None:
    """Wait until processes have ended."""
    wait_until(lambda: not any(read_process(pid) for pid in pids), f"the end of {pids}")


def assert_only_sockets_left(containerd: Containerd, *groups: str) -> None:
    """Wait until nothing is left but the sockets of killed shims; the next start replaces them."""
    folder = SOCKET_FOLDER
    sockets = {f"socket {folder / socket_name(containerd.address, containerd.namespace, group)}" for group in groups}
    deadline = time.monotonic() + 20
    while (left := set(containerd.leftovers(0)) - sockets) and time.monotonic() < deadline:
        time.sleep(0.1)

    assert set() == left, containerd.tail()


# containerd dies.


def test_containers_outlive_containerd(containerd: Containerd, tmp_path: Path) -> None:
    """After SIGKILL and a new start all run with their pids, no output is lost, and they can be worked with."""
    log = tmp_path / "log"
    containerd.run("count", "sh", "-c", COUNT, detach=True, options=["--log-uri", f"file://{log}"])
    for name in ("a", "b"):
        containerd.run(name, "sleep", "1000", detach=True, options=["--annotation", f"{SANDBOX}=pod"])
    before = containerd.tasks()
    shims = [shim_pid(containerd, name) for name in ("count", "a", "b")]
    containerd.kill()
    down = len(counted(log))
    wait_until(lambda: len(counted(log)) > down + 20, "output while containerd is down")
    containerd.restart()
    up = len(counted(log))
    wait_until(lambda: len(counted(log)) > up + 20, "output after the restart")
    lines = counted(log)

    assert ["RUNNING"] * 3 == [task.status for task in containerd.tasks().values()]
    assert before == containerd.tasks()
    assert shims == [shim_pid(containerd, name) for name in ("count", "a", "b")]
    assert list(range(len(lines))) == lines
    for name in before:
        assert f"{name}\n" == containerd.exec(name, "echo", name).stdout
    containerd.ctr("tasks", "kill", "-s", "SIGTERM", "count")
    containerd.wait_status("count", "STOPPED")
    assert "non-zero exit code 5" in containerd.ctr("tasks", "rm", "count").stderr
    containerd.ctr("containers", "rm", "count")
    remove(containerd, "a", "b")
    assert [] == containerd.leftovers()


def test_container_outlives_containerd_and_its_client(containerd: Containerd) -> None:
    """One with an attached `ctr run` loses its reader, too, and runs on: nothing breaks its writes."""
    process = containerd.popen(*containerd.run_arguments("c", "sh", "-c", COUNT, rm=False))
    containerd_output = process.stdout
    assert containerd_output is not None
    assert b"0\n" == containerd_output.readline()
    pid = containerd.task_pid("c")
    containerd.kill()
    process.communicate(timeout=60)
    containerd.restart()

    assert (pid, "RUNNING") == (containerd.tasks()["c"].pid, containerd.tasks()["c"].status)
    assert "alive\n" == containerd.exec("c", "echo", "alive").stdout
    remove(containerd, "c")


def test_exec_outlives_containerd(containerd: Containerd) -> None:
    """An exec runs on as well, and its end is told to the new containerd."""
    containerd.run("c", "sleep", "1000", detach=True)
    events = containerd.events()
    containerd.ctr("tasks", "exec", "--detach", "--exec-id", "e", "c", "sh", "-c", GATE)
    containerd.kill()
    containerd.restart()
    (containerd.bundle("c") / "rootfs/gate").touch()
    exited = events.wait("/tasks/exit", "c", timeout_s=30)

    assert ("e", 7) == (exited.body["id"], exited.body["exit_status"])
    assert "RUNNING" == containerd.tasks()["c"].status
    remove(containerd, "c")


def test_events_flow_after_a_restart(containerd: Containerd) -> None:
    """What happens after the restart is told in order, from the first event on."""
    events = containerd.events()
    containerd.run("c", "sleep", "1000", detach=True)
    events.wait("/tasks/start", "c")
    containerd.kill()
    containerd.restart()
    containerd.exec("c", "true")
    containerd.ctr("tasks", "kill", "-s", "SIGKILL", "c")
    exited = events.wait("/tasks/exit", "c", count=2, timeout_s=30)
    remove(containerd, "c")
    events.wait("/tasks/delete", "c")

    assert ("c", 137) == (exited.body["id"], exited.body["exit_status"])
    assert [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/exit",
        "/tasks/delete",
    ] == events.topics("c")


def test_exit_while_containerd_is_down(containerd: Containerd) -> None:
    """It is seen by the next containerd: 1.6 shows the stopped task, later ones delete what has ended meanwhile."""
    containerd.run("c", "sh", "-c", GATE, detach=True)
    pid, shim = containerd.task_pid("c"), shim_pid(containerd, "c")
    containerd.kill()
    (containerd.bundle("c") / "rootfs/gate").touch()
    wait_dead(pid)
    containerd.restart()

    if containerd.release.key == "1.6":
        assert (pid, "STOPPED") == (containerd.tasks()["c"].pid, containerd.tasks()["c"].status)
        assert "non-zero exit code 7" in containerd.ctr("tasks", "rm", "c").stderr
    assert {} == containerd.tasks()
    wait_dead(shim)
    containerd.ctr("containers", "rm", "c")
    assert [] == containerd.leftovers()


def test_exit_while_containerd_is_down_is_told_to_whoever_comes(containerd: Containerd) -> None:
    """The exit is kept for as long as nobody takes events, and then told once, with its status and time."""
    containerd.run("c", "sh", "-c", GATE, detach=True)
    pid = containerd.task_pid("c")
    containerd.kill()
    (containerd.bundle("c") / "rootfs/gate").touch()
    wait_dead(pid)
    with EventService(f"{containerd.address}.ttrpc") as service:
        service.wait_for("/tasks/exit")
    (exited,) = (event.message for event in service.events)

    assert isinstance(exited, TaskExit)
    assert ("c", "c", pid, 7) == (exited.container_id, exited.id, exited.pid, exited.exit_status)
    assert exited.exited_at.seconds > 0
    containerd.restart()
    containerd.ctr("tasks", "rm", "c", check=False)
    containerd.ctr("containers", "rm", "c")
    assert [] == containerd.leftovers()


def test_second_restart(containerd: Containerd) -> None:
    """Containers outlive any number of them, orderly ones too."""
    containerd.run("c", "sleep", "1000", detach=True)
    before = containerd.tasks()
    containerd.kill()
    containerd.restart()
    containerd.stop()
    containerd.restart()

    assert before == containerd.tasks()
    assert "alive\n" == containerd.exec("c", "echo", "alive").stdout
    remove(containerd, "c")


# A shim dies.


def test_killed_shim_leaves_nothing(containerd: Containerd) -> None:
    """containerd's `delete` kills and removes all, and tells exit 137; the next start replaces the socket."""
    events = containerd.events()
    containerd.run("c", "sleep", "1000", detach=True)
    containerd.ctr("tasks", "exec", "--detach", "--exec-id", "e", "c", "sleep", "1000")
    events.wait("/tasks/exec-started", "c")
    pid = containerd.task_pid("c")
    os.kill(shim_pid(containerd, "c"), signal.SIGKILL)
    exited = events.wait("/tasks/exit", "c", timeout_s=30)
    events.wait("/tasks/delete", "c", timeout_s=30)

    assert ("c", pid, 137) == (exited.body["id"], exited.body["pid"], exited.body["exit_status"])
    assert ["/tasks/exec-started", "/tasks/exit", "/tasks/delete"] == events.topics("c")[3:]
    assert {} == containerd.tasks()
    assert_only_sockets_left(containerd, "c")
    containerd.ctr("containers", "rm", "c")
    assert "again\n" == containerd.run("c", "echo", "again").stdout
    assert [] == containerd.leftovers()


def test_killed_shim_of_a_pod_leaves_nothing(containerd: Containerd) -> None:
    """With five containers in it, each of them is killed, cleaned up, and told of."""
    names = [f"c{number}" for number in range(5)]
    options = ["--annotation", f"{SANDBOX}=pod"]
    for name in names:
        containerd.run(name, "sleep", "1000", detach=True, options=options)
    events = containerd.events()
    pids = {name: task.pid for name, task in containerd.tasks().items()}
    os.kill(shim_pid(containerd, "c0"), signal.SIGKILL)
    for name in names:
        exited = events.wait("/tasks/exit", name, timeout_s=30)
        events.wait("/tasks/delete", name, timeout_s=30)

        assert (pids[name], 137) == (exited.body["pid"], exited.body["exit_status"])
    assert {} == containerd.tasks()
    assert_only_sockets_left(containerd, "pod")
    containerd.ctr("containers", "rm", *names)
    assert "again\n" == containerd.run("c0", "echo", "again", options=options).stdout
    assert [] == containerd.leftovers()


def test_terminated_shim_leaves_nothing(containerd: Containerd) -> None:
    """SIGTERM ends a shim with containers in good order: its socket goes, and containerd's `delete` does the rest."""
    containerd.run("c", "sleep", "1000", detach=True)
    events = containerd.events()
    pid = containerd.task_pid("c")
    os.kill(shim_pid(containerd, "c"), signal.SIGTERM)
    exited = events.wait("/tasks/exit", "c", timeout_s=30)
    events.wait("/tasks/delete", "c", timeout_s=30)

    assert ("c", pid, 137) == (exited.body["id"], exited.body["pid"], exited.body["exit_status"])
    assert {} == containerd.tasks()
    assert [] == containerd.leftovers()
    containerd.ctr("containers", "rm", "c")


def test_shim_killed_while_containerd_is_down(containerd: Containerd) -> None:
    """The next containerd finds the bundle, and cleans up what both have left."""
    for name in ("a", "b"):
        containerd.run(name, "sleep", "1000", detach=True, options=["--annotation", f"{SANDBOX}=pod"])
    shim = shim_pid(containerd, "a")
    pids = [task.pid for task in containerd.tasks().values()]
    containerd.kill()
    os.kill(shim, signal.SIGKILL)
    wait_dead(shim)
    containerd.restart()

    assert {} == containerd.tasks()
    wait_dead(*pids)
    assert_only_sockets_left(containerd, "pod")
    containerd.ctr("containers", "rm", "a", "b")
    assert "again\n" == containerd.run("a", "echo", "again", options=["--annotation", f"{SANDBOX}=pod"]).stdout


def test_killed_shim_ends_an_attached_run(containerd: Containerd) -> None:
    """A client that waits for the container hears 137 and is not left hanging."""
    process = containerd.popen(*containerd.run_arguments("c", "sh", "-c", COUNT))
    assert process.stdout is not None
    assert b"0\n" == process.stdout.readline()
    os.kill(shim_pid(containerd, "c"), signal.SIGKILL)
    process.communicate(timeout=60)

    assert 0 != process.returncode
    assert_only_sockets_left(containerd, "c")
    assert "again\n" == containerd.run("c", "echo", "again").stdout


def test_shim_killed_at_any_moment(containerd: Containerd) -> None:
    """However far a container has come when its shim is killed, its client ends, and only a socket file is left."""
    names = [f"c{number}" for number in range(10)]
    for number, name in enumerate(names):
        process = containerd.popen(*containerd.run_arguments(name, "sleep", "0.2"))
        time.sleep(0.05 * number)
        for daemon in daemons(containerd):
            with contextlib.suppress(ProcessLookupError):
                os.kill(daemon, signal.SIGKILL)
        process.communicate(timeout=60)

    assert {} == containerd.tasks()
    assert_only_sockets_left(containerd, *names)
    for name in names:
        assert "again\n" == containerd.run(name, "echo", "again").stdout


def daemons(containerd: Containerd) -> list[int]:
    """Return the shim daemons that there are: all that runs this containerd's shim, and neither starts nor deletes."""
    scope = containerd.scope()
    return [
        process.pid
        for process in processes_of(scope)
        if not {"start", "delete"} & set(process.arguments)
        and any(Path(word).name in scope.shims for word in process.arguments[:2])
    ]
