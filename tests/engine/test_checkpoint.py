"""Checkpoints of one container, without a runtime: the folders, CRIU's log, and what a failure leaves."""

import os
import stat
from pathlib import Path

import pytest

from shim.engine.checkpoint import Checkpoint
from shim.engine.options import Checkpointing
from shim.engine.stdio import Stdio
from shim.engine.task import State
from shim.errors import BundleError, EngineError, ProcessStateError
from tests.engine.world import FIRST_PID, World
from tests.fakes import open_descriptors, wait_until

STARTED = ("start", "c1")


def work_of(words: list[str]) -> Path:
    """Return CRIU's working folder in a call of the runtime."""
    return Path(words[words.index("--work-path") + 1])


def make_work(words: list[str]) -> int:
    """Be a runc that succeeds: it makes this folder, but none above it."""
    work_of(words).mkdir()
    return 0


def fail_with_log(words: list[str]) -> int:
    """Be a runc whose CRIU fails: it leaves a log, and more."""
    work = work_of(words)
    (work / "deep").mkdir(parents=True)
    (work / "deep" / "file").touch()
    (work / "deep" / "link").symlink_to("/etc")
    (work / "dump.log").write_text("why")
    return 1


def test_a_checkpoint_is_announced_and_its_work_removed(world: World) -> None:
    """The container runs on."""
    container = world.running()
    world.events()
    world.reaper.acts["checkpoint"] = make_work
    container.write_checkpoint("/image", Checkpointing())

    assert [("checkpointed", "c1", "/image")] == world.events()
    assert State.RUNNING is container.init.state
    assert f"{container.bundle.path}/work/criu-work" == str(work_of(world.reaper.calls[-1]))
    assert not os.path.exists(container.bundle.file("work/criu-work"))


def test_a_failed_checkpoint_says_where_crius_log_is(world: World) -> None:
    """With the first line of what the runtime said; all else of the work is gone, and the container runs on."""
    container = world.running()
    world.events()
    world.reaper.acts["checkpoint"] = fail_with_log
    world.reaper.output = "criu failed: type DUMP errno 0\nlog file: /x\n"
    with pytest.raises(EngineError) as caught:
        container.write_checkpoint("/image", Checkpointing())
    log = Path(container.bundle.file("criu-dump.log"))

    text = "runc did not terminate successfully: exit status 1: criu failed: type DUMP errno 0"
    assert f"{text} path= {log}" == str(caught.value)
    assert "why" == log.read_text()
    assert 0o644 == stat.S_IMODE(log.stat().st_mode) | 0o044
    assert not os.path.exists(container.bundle.file("work/criu-work"))
    assert [] == world.events()
    assert State.RUNNING is container.init.state


def test_a_working_folder_that_the_client_named_stays(world: World, tmp_path: Path) -> None:
    """It belongs to the client."""
    container = world.running()
    world.reaper.acts["checkpoint"] = fail_with_log
    with pytest.raises(EngineError):
        container.write_checkpoint("/image", Checkpointing(work_path=str(tmp_path / "w")))

    assert {"deep", "dump.log"} == {path.name for path in (tmp_path / "w").iterdir()}


def test_without_crius_log_the_error_is_the_runtimes(world: World) -> None:
    """As when there is no CRIU at all; the shim's log says that there was nothing to keep."""
    container = world.running()
    world.reaper.acts["checkpoint"] = lambda _words: 1
    world.reaper.output = 'exec: "criu": executable file not found in $PATH\n'
    with pytest.raises(EngineError, match='exec: "criu": executable file not found'):
        container.write_checkpoint("/image", Checkpointing())

    assert "failed to copy dump.log to criu-dump.log" in world.log.read_text()


def test_a_bundle_without_room_for_work_says_so(world: World) -> None:
    """Before the runtime is asked."""
    container = world.running()
    Path(container.bundle.file("work")).symlink_to("/proc/none/such")
    with pytest.raises(EngineError, match=r"^failed to make .*/c1/work: .* path= .*/criu-dump\.log$"):
        container.write_checkpoint("/image", Checkpointing())

    assert ["create", "start"] == world.commands()


def test_a_container_that_does_not_run_is_not_checkpointed(world: World) -> None:
    """Nor asks the runtime."""
    container = world.created()
    with pytest.raises(ProcessStateError, match=r"^cannot checkpoint a task in created state$"):
        container.write_checkpoint("/image", Checkpointing())

    assert ["create"] == world.commands()


def test_a_container_from_a_checkpoint_is_made_at_its_start(world: World) -> None:
    """Create runs nothing; the exit that comes during the restore is told after the start."""
    container = world.container(checkpoint=Checkpoint("/image"))
    container.create((), lambda: None)
    created = world.commands(), world.events(), container.init.pid
    pid = FIRST_PID + 1

    def act(_words: list[str]) -> int:
        world.reaper.exit(pid, 7)
        return 0

    world.reaper.acts["restore"] = act
    container.start()

    assert ([], [("create", "c1")], 0) == created
    assert ["restore"] == world.commands()
    assert pid == container.init.pid
    assert [STARTED, ("exit", "c1", "7", "stopped")] == world.events()


def test_a_restore_that_fails_half_way_removes_what_it_made(world: World, tmp_path: Path) -> None:
    """Of the container and of its stdio; a second start may succeed."""
    os.mkfifo(tmp_path / "out")
    reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    container = world.container(checkpoint=Checkpoint("/image"), stdio=Stdio(stdout=str(tmp_path / "out")))
    container.create((), lambda: None)
    (tmp_path / "root" / "ns" / "c1").mkdir(parents=True)
    before = open_descriptors()
    world.events()

    def act(words: list[str]) -> int:
        Path(words[words.index("--pid-file") + 1]).write_text("x")
        return 0

    world.reaper.acts["restore"] = act
    with pytest.raises(BundleError, match="failed to retrieve OCI runtime container pid"):
        container.start()
    commands, state, pid = world.commands(), container.init.state, container.init.pid
    closed = wait_until(lambda: before == open_descriptors())
    world.reaper.acts.clear()
    container.start()

    assert (["restore", "delete --force"], State.CHECKPOINTED, 0) == (commands, state, pid)
    assert closed
    assert State.RUNNING is container.init.state
    assert [STARTED] == world.events()
    os.close(reader)
    container.init.close_streams()


def test_input_that_ended_before_a_restore_is_remembered(world: World, tmp_path: Path) -> None:
    """CloseIO may come before there is any stdin."""
    os.mkfifo(tmp_path / "in")
    container = world.container(checkpoint=Checkpoint("/image"), stdio=Stdio(stdin=str(tmp_path / "in")))
    container.create((), lambda: None)
    container.init.close_stdin()
    container.start()

    # Without the shim's own hold there is no writer, so the copy ends and its descriptors go.
    assert wait_until(lambda: not [1 for fd in open_descriptors() if _is(fd, tmp_path / "in")])
    assert ["restore"] == world.commands()
    container.init.close_streams()


def _is(fd: int, path: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == str(path)
    except OSError:
        return False
