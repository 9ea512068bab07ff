"""A container and its cgroup: kills for memory, numbers, and processes; the cgroup is a folder of plain files."""

from pathlib import Path

import pytest

from shim.api import cgroups_v2_pb2
from shim.errors import CgroupError
from shim.host import cgroup, oom
from shim.host.cgroup_v2 import UnifiedCgroup
from tests.engine.caller import Caller
from tests.engine.world import FIRST_PID, World
from tests.fakes import LoopThread, open_descriptors, wait_until

EXITED = ("exit", "c1", "137", "stopped")


def set_kills(folder: Path, kills: int) -> None:
    """Write what the kernel would."""
    (folder / "memory.events").write_text(f"low 0\nhigh 0\nmax 0\noom 9\noom_kill {kills}\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup in which every container is found."""
    folder = tmp_path / "cgroup"
    folder.mkdir()
    (folder / "cgroup.events").write_text("populated 1\n")
    (folder / "memory.current").write_text("4096\n")
    (folder / "pids.current").write_text("3\n")
    set_kills(folder, 0)
    monkeypatch.setattr(cgroup, "find", lambda pid: UnifiedCgroup(str(folder)))
    return folder


def test_a_kill_for_memory_is_told(world: World, folder: Path, thread: LoopThread) -> None:
    """One event for each, while the container lives on."""
    container = world.running()
    thread.settle()
    set_kills(folder, 2)

    assert wait_until(lambda: world.sink.events.count(("oom", "c1")) == 2)
    set_kills(folder, 2)
    world.reaper.exit(container.init.pid, 137)
    assert [("create", "c1"), ("start", "c1"), ("oom", "c1"), ("oom", "c1"), EXITED] == world.events()


def test_a_kill_for_memory_is_told_before_the_exit_that_it_caused(world: World, folder: Path) -> None:
    """The file is read once more at the end; once, however the loop comes to it."""
    container = world.running()
    world.events()
    set_kills(folder, 1)
    world.reaper.exit(container.init.pid, 137)

    assert sorted([("oom", "c1"), EXITED], reverse=True) == world.events()


def test_nothing_is_watched_after_the_exit(world: World, folder: Path, thread: LoopThread) -> None:
    """The cgroup may become somebody else's; no descriptor stays."""
    before = open_descriptors()
    container = world.running()
    thread.settle()
    watched = len(open_descriptors()) - len(before)
    world.reaper.exit(container.init.pid, 137)
    thread.settle()
    world.events()
    set_kills(folder, 5)
    thread.settle()

    assert 1 == watched
    assert before == open_descriptors()
    assert [] == world.events()


def test_an_early_exit_is_never_watched(world: World, folder: Path, thread: LoopThread) -> None:
    """It may come before the loop has begun to."""
    before = open_descriptors()

    def act(_words: list[str]) -> int:
        world.reaper.exit(FIRST_PID + 1, 137)
        return 0

    world.reaper.acts["create"] = act
    world.created()
    thread.settle()

    assert before == open_descriptors()
    assert [("create", "c1"), EXITED] == world.events()


def test_a_cgroup_that_cannot_be_watched_still_has_numbers(
    world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log tells who debugs."""

    def refuse(_cgroup: object) -> oom.OomWatch:
        raise CgroupError("failed to watch for out of memory: no")

    monkeypatch.setattr(oom, "open_watch", refuse)
    container = world.running()

    assert container.metrics()
    assert "not watching for out-of-memory kills" in world.log.read_text()


def test_processes_are_the_cgroups(world: World, folder: Path) -> None:
    """No runtime is asked."""
    container = world.running()
    process = world.exec(container)
    (folder / "cgroup.procs").write_text(f"{container.init.pid}\n{process.pid}\n7\n")
    world.commands()

    assert [(7, ""), (container.init.pid, ""), (process.pid, "e1")] == sorted(container.processes())
    assert [] == world.commands()
    world.reaper.exit(process.pid)
    world.reaper.exit(container.init.pid)


def test_stats_are_containerds_message_for_the_cgroups_version(caller: Caller, folder: Path) -> None:
    """Packed under its bare name."""
    pid = caller.run()
    stats = caller.call("stats", id="c1").stats
    metrics = cgroups_v2_pb2.Metrics.FromString(stats.value)

    caller.daemon.reaper.exit(pid)

    assert "io.containerd.cgroups.v2.Metrics" == stats.type_url
    assert (4096, 3) == (metrics.memory.usage, metrics.pids.current)
