"""What docs/guide.md, and README.md of it, tell people to write and to type works: its files are run as shims.

Where the guide writes to the system, the test writes to a folder of its own.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

import shim
from shim.api import cgroups_v1_pb2, cgroups_v2_pb2, task_v3_pb2
from shim.testing.containerd import Containerd
from shim.testing.leftovers import read_process
from shim.testing.releases import Release
from tests.docs.blocks import texts, write_files
from tests.fakes import ROOT, python_path
from tests.integration.byhand import Hand
from tests.integration.client import TaskClient, wait_until

GUIDE: Final = "docs/guide.md"
SYSTEM_FOLDER: Final = "/usr/local/bin"
RUNTIME: Final = "io.containerd.hello.v1"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the guide's files."""
    write_files(GUIDE, tmp_path)
    return tmp_path


def write_program(folder: Path, script: str, runtime: str = "") -> Path:
    """Write the executable that runs a script of the guide."""
    path = folder / f"containerd-shim-{runtime or Path(script).stem}-v1"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={python_path()} exec {sys.executable} {folder / script} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def hand(folder: Path) -> Iterator[Callable[[str], Hand]]:
    """Return what gives a hand for a script of the guide; in the end nothing may be left of what it started."""
    hands: list[Hand] = []

    def give(script: str) -> Hand:
        hands.append(Hand(write_program(folder, script)))
        return hands[-1]

    yield give
    assert [] == [line for each in hands for line in each.close()]


def type_in(block: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Type a block into a shell, in the project, with `folder` in place of the system's and of the guide's files."""
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "PYTHONPATH": python_path(), **environment}
    script = "set -e\n" + block.replace(SYSTEM_FOLDER, str(folder)).replace("$PWD/hello.py", str(folder / "hello.py"))
    script = script.replace(" hello.py", f" {folder / 'hello.py'}")
    return subprocess.run(["sh", "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_the_walk_by_hand(folder: Path) -> None:
    """Each command prints what the guide says, but for the daemon's pid; the log tells of it."""
    started, connected = texts(GUIDE, "By hand", "console")
    shown = shim.socket_address("/run/containerd/containerd.sock", "default", "1234")
    container = secrets.token_hex(6)
    address = shim.socket_address("/run/containerd/containerd.sock", "default", container)
    touch, start, printed = started.splitlines()

    assert ("$ touch log", shown) == (touch, printed)
    (folder / "log").touch()
    command = shlex.split(start.replace("1234", container).removeprefix("$ python "))
    environment = {**os.environ, "PYTHONPATH": python_path()}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )

    assert (0, "", address) == (done.returncode, done.stderr, done.stdout)
    typed, _, printed = connected.replace(shown, address).partition("\n")
    done = subprocess.run(
        [sys.executable, *typed.removeprefix("$ python ").split()],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert (0, "") == (done.returncode, done.stderr)
    (pid,) = re.findall(r"shim_pid: (\d+)", done.stdout)
    assert printed == done.stdout.replace(pid, "4242")
    wait_until(lambda: read_process(int(pid)) is None, "the daemon ends")
    assert not Path(address.removeprefix("unix://")).exists()
    assert "serving api on socket" in (folder / "log").read_text()


def try_under(release: Release, folder: Path, block: str) -> None:
    """Run the block's `ctr run` under a containerd that finds what has been installed; then one that is killed."""
    with Containerd(release, [folder], runtime=RUNTIME) as containerd:
        containerd.import_image()
        address = {"CONTAINERD_ADDRESS": containerd.address, "CONTAINERD_NAMESPACE": containerd.namespace}
        done = type_in(block, folder, **address)

        assert ("hello from a shim\n", "") == (done.stdout, done.stderr)
        assert 3 == containerd.run("fails", "sh", "-c", "exit 3", check=False).returncode
        containerd.run("long", "sleep", "1000", detach=True)
        containerd.ctr("tasks", "kill", "-s", "KILL", "long")
        containerd.wait_status("long", "STOPPED")
        assert "exit code 137" in containerd.ctr("tasks", "rm", "long").stderr
        containerd.ctr("containers", "rm", "long")
    assert [] == containerd.left_behind


def test_the_whole_shim_runs_under_containerd(release: Release, folder: Path) -> None:
    """By the script that the guide installs while one writes it."""
    install, run = texts(GUIDE, "Under containerd", "sh")
    done = type_in(install, folder)

    assert (0, "") == (done.returncode, done.stderr)
    try_under(release, folder, run)


def test_the_frozen_shim_runs_under_containerd(release: Release, folder: Path) -> None:
    """As README.md has it, which freezes it by the command that the guide gives."""
    (block,) = texts("README.md", "Write a shim", "sh")
    (freeze,) = texts(GUIDE, "As one file", "sh")
    *typed, run = block.splitlines(keepends=True)

    assert freeze == "".join(typed)
    done = type_in(freeze, folder)
    try:
        assert 0 == done.returncode, done.stderr
        try_under(release, folder, run)
    finally:
        (ROOT / "dist/containerd-shim-hello-v1").unlink(missing_ok=True)


def end_daemon(hand: Hand) -> None:
    """End the daemon of a shim that does not know Shutdown."""
    (daemon,) = [process for process in hand.processes() if "-id" in process.arguments]
    os.kill(daemon.pid, signal.SIGTERM)
    wait_until(lambda: read_process(daemon.pid) is None, "the daemon ends")


def test_what_is_preloaded_is_there_when_it_serves(hand: Callable[[str], Hand]) -> None:
    """lazy.py imports decimal for its daemon alone."""
    by_hand = hand("lazy.py")

    assert "0.10" == by_hand.serve("lazy").connect().version
    end_daemon(by_hand)


def create(hand: Hand, container: str, *words: str) -> TaskClient:
    """Start a daemon, and create a container of it."""
    hand.bundle(container, spec=hand.spec(container, *words))
    client = hand.serve(container)
    client.create(hand.create_request(container))
    return client


def test_events_log_and_description_tell_of_a_life(hand: Callable[[str], Hand]) -> None:
    """telling.py: events in order, a line by either way of logging, and SIGUSR1's lines as the guide shows them."""
    by_hand = hand("telling.py")
    client = create(by_hand, "told", "sleep", "1000")
    pid = client.start()
    os.kill(client.connect().shim_pid, signal.SIGUSR1)
    dump = by_hand.wait_log("told", "=== END")
    client.kill(9)

    assert 137 == client.wait().exit_status
    assert 137 == client.delete().exit_status
    by_hand.events.wait_for("/tasks/exit")
    assert ["/tasks/create", "/tasks/start", "/tasks/exit"] == by_hand.events.topics("told")
    log = dump + by_hand.wait_log("told", "msg=ended")
    assert re.search(rf"level=info msg=starting id=told pid={pid} logger=telling runtime=\S+\n", log)
    assert re.search(r"level=info msg=ended id=told status=137 runtime=\S+\n", log)
    assert f"container told: pid {pid}\n" in dump
    (shown,) = texts(GUIDE, "Events, log and description", "text")
    first, *_, waiting, _, _, last = shown.splitlines()
    lines = dump.splitlines()
    assert {first, last} <= set(lines)
    assert [line for line in lines if line.startswith(waiting.rstrip("0"))]  # events may be on their way still


CALLER: Final = """
import shim
from processes import run, run_unknown
from shim import api


class Caller(shim.Shim, shim.Task):
    def connect(self, context, request, /):
        status = run(self.daemon, "sh", "-c", "exit 7")
        killed = run(self.daemon, "sh", "-c", "kill -9 $$")
        end = run_unknown(self.daemon, lambda: self.daemon.reaper.spawn(["sh", "-c", "exit 8"]).pid)
        return api.ConnectResponse(version=f"{status} {killed} {end.status}")


shim.run("io.containerd.caller.v1", Caller)
"""


def test_processes_end_with_their_own_status(hand: Callable[[str], Hand], folder: Path) -> None:
    """By processes.py: spawned, killed, and one whose pid is known too late."""
    (folder / "caller.py").write_text(CALLER)
    by_hand = hand("caller.py")

    assert "7 137 8" == by_hand.serve("caller").connect().version
    end_daemon(by_hand)


def test_a_root_file_system_is_mounted_and_unmounted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By rootfs.py, from a request as containerd sends it."""
    monkeypatch.syspath_prepend(str(folder))
    module = __import__("rootfs")
    target = folder / "mounted"
    target.mkdir()
    request = task_v3_pb2.CreateTaskRequest()
    request.rootfs.add(type="tmpfs", source="tmpfs", options=["size=1m", "nosuid"])
    request.rootfs.add(type="bind", source=str(folder), target="inner", options=["rbind", "ro"])
    (target / "inner").mkdir()
    first = task_v3_pb2.CreateTaskRequest(rootfs=request.rootfs[:1])
    try:
        module.mount_rootfs(first, str(target))
        (target / "inner").mkdir()
        module.mount_rootfs(task_v3_pb2.CreateTaskRequest(rootfs=request.rootfs[1:]), str(target))

        assert (target / "inner/rootfs.py").is_file()
    finally:
        module.unmount_rootfs(str(target))
    assert not (target / "inner/rootfs.py").exists()


def test_stats_are_those_of_the_cgroup(containerd: Containerd, running: str, folder: Path) -> None:
    """By rootfs.py, of a container that runs."""
    module = __import__("runpy").run_path(str(folder / "rootfs.py"))
    packed = module["stats"](containerd.task_pid(running)).stats
    metrics_v1, metrics_v2 = cgroups_v1_pb2.Metrics(), cgroups_v2_pb2.Metrics()
    if packed.type_url == "io.containerd.cgroups.v2.Metrics":
        metrics_v2.ParseFromString(packed.value)
    else:
        assert "io.containerd.cgroups.v1.Metrics" == packed.type_url
        metrics_v1.ParseFromString(packed.value)

    assert metrics_v1.memory.usage.usage or metrics_v2.memory.usage


def test_the_sleeper_wakes(hand: Callable[[str], Hand]) -> None:
    """sleeper.py: Wait is answered by Kill, and Shutdown ends it."""
    client = hand("sleeper.py").serve("nap")
    client.kill(9)

    assert 137 == client.wait().exit_status
    client.shutdown()


def test_timed_tells_how_long_a_create_took(release: Release, folder: Path) -> None:
    """timed.py runs containers as pyrunc does, and its line is in containerd's log."""
    write_program(folder, "timed.py")
    with Containerd(release, [folder], runtime="io.containerd.timed.v1") as containerd:
        done = containerd.run("timed", "echo", "hello")

        assert "hello\n" == done.stdout
        wait_until(lambda: re.search(r"msg=created id=timed seconds=\d", containerd.log), "the line is there")
    assert [] == containerd.left_behind
