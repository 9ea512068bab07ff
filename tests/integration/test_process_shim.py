"""The example whose containers are plain processes, under containerd; frozen too, as anybody's script can be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from shim.testing.containerd import Containerd
from shim.testing.events import EventLog
from shim.testing.leftovers import read_process
from shim.testing.releases import Release
from tests.fakes import ROOT
from tests.integration.client import wait_until

SCRIPT: Final = ROOT / "examples/process_shim.py"
PROGRAM: Final = "containerd-shim-process-v1"
# Freezing takes half a minute, once.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def program(flavour: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as a program that containerd finds by its name."""
    kind = getattr(flavour, "kind", "")
    if kind != "unfrozen":
        build = str(ROOT / "build/spec/build.py")
        command = [sys.executable, build, "process", "--script", str(SCRIPT), "--form", kind]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return ROOT / "dist" / PROGRAM
    program = tmp_path_factory.mktemp("process") / PROGRAM
    program.write_text(
        f"#!{sys.executable}\nimport runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    program.chmod(0o755)
    return program


@pytest.fixture(scope="module")
def containerd(release: Release, program: Path) -> Iterator[Containerd]:
    """A containerd for these tests; in the end nothing may be left."""
    with Containerd(release, [program.parent], runtime="io.containerd.process.v1") as containerd:
        containerd.import_image()
        yield containerd
    assert [] == containerd.left_behind


@pytest.fixture(scope="module")
def events(containerd: Containerd) -> EventLog:
    """All events from the first test on."""
    return containerd.events()


def is_gone(pid: int) -> bool:
    """Say whether a process has ended."""
    return read_process(pid) is None


@pytest.mark.parametrize("code", [0, 7, 255])
def test_ctr_run_gets_output_and_exit_code(containerd: Containerd, name: str, code: int) -> None:
    """Both streams, all of it, and the code."""
    script = f"echo out; echo err >&2; seq 20000; exit {code}"
    done = containerd.run(name, "sh", "-c", script, check=False)

    assert (code, "err\n") == (done.returncode, done.stderr)
    assert "".join(f"{line}\n" for line in ["out", *range(1, 20001)]) == done.stdout


def test_ctr_run_gives_input_to_its_end(containerd: Containerd, name: str) -> None:
    """So that `cat` ends."""
    assert "one\ntwo\n" == containerd.run(name, "cat", input="one\ntwo\n").stdout


def test_a_program_that_there_is_not_ends_with_127(containerd: Containerd, name: str) -> None:
    """As a shell has it; stderr says why."""
    done = containerd.run(name, "no-such-program", check=False)

    assert 127 == done.returncode
    assert "no-such-program" in done.stderr


def test_a_detached_container_lives_its_whole_life(containerd: Containerd, events: EventLog, name: str) -> None:
    """Exec, kill and delete; each event in its turn."""
    containerd.run(name, "sleep", "1000", detach=True, options=["--null-io"])
    pid = containerd.task_pid(name)
    shim = containerd.shim_pid(name)
    done = containerd.exec(name, "sh", "-c", "echo from exec; exit 3", exec_id="e1", check=False)
    containerd.ctr("tasks", "kill", "--signal", "SIGTERM", name)
    containerd.wait_status(name, "STOPPED")
    deleted = containerd.ctr("tasks", "rm", name)
    containerd.ctr("containers", "rm", name)

    assert (3, "from exec\n") == (done.returncode, done.stdout)
    assert "exit code 143" in deleted.stderr
    events.wait("/tasks/delete", name)
    topics = [topic.removeprefix("/tasks/") for topic in events.topics(name)]
    assert ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"] == topics
    exits = [event.body for event in events.all(name) if event.topic == "/tasks/exit"]
    assert [("e1", 3), (name, 143)] == [(body["id"], body["exit_status"]) for body in exits]
    assert is_gone(pid)
    wait_until(lambda: is_gone(shim), "the shim ends")


def test_what_a_container_leaves_running_ends_with_it(containerd: Containerd, name: str) -> None:
    """Its own children, its execs, and theirs; there is no pid namespace to do that."""
    containerd.run(name, "sh", "-c", "sleep 1000 & exec sleep 1001", detach=True, options=["--null-io"])
    containerd.exec(name, "sh", "-c", "sleep 1002 & exec sleep 1003", exec_id="e1", options=["--detach"])
    init, shim = containerd.task_pid(name), containerd.shim_pid(name)
    wait_until(lambda: len(session_of(shim)) == 4, "four processes")
    pids = session_of(shim)
    containerd.ctr("tasks", "kill", "--signal", "SIGKILL", name)
    containerd.wait_status(name, "STOPPED")

    assert init in pids
    wait_until(lambda: all(is_gone(pid) for pid in pids), "all of them end")
    containerd.ctr("tasks", "rm", "--force", name, check=False)
    containerd.ctr("containers", "rm", name)


def test_a_shim_that_is_killed_leaves_no_process(containerd: Containerd, events: EventLog, name: str) -> None:
    """containerd runs its `delete`, which ends init, the exec, and what they have started."""
    containerd.run(name, "sh", "-c", "sleep 1000 & exec sleep 1001", detach=True, options=["--null-io"])
    containerd.exec(name, "sh", "-c", "sleep 1002 & exec sleep 1003", exec_id="e1", options=["--detach"])
    init, shim = containerd.task_pid(name), containerd.shim_pid(name)
    wait_until(lambda: len(session_of(shim)) == 4, "four processes")
    pids = session_of(shim)
    os.kill(shim, signal.SIGKILL)
    wait_until(lambda: all(is_gone(pid) for pid in pids), "all of them end")
    event = events.wait("/tasks/exit", name)

    assert (init, 137) == (event.body["pid"], event.body["exit_status"])
    containerd.ctr("containers", "rm", name)
    assert "again\n" == containerd.run(name, "echo", "again").stdout  # and takes the dead one's socket over


def session_of(shim: int) -> list[int]:
    """Return the live processes below a shim that are not itself: of each session that it began."""
    children = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    found = []
    for pid in children:
        process = read_process(pid)
        if process is not None and process.parent == shim:
            found.append(pid)
    sessions = set(found)
    return [pid for pid in children if read_process(pid) is not None and sid(pid) in sessions]


def sid(pid: int) -> int:
    """Return a process's session, 0 for one that has gone."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0
