"""One container when its clean-up fails too: the first failure is told, the others are logged."""

import os
import signal
from pathlib import Path

import pytest

from shim.engine.stdio import Stdio, Streams
from shim.engine.task import State
from shim.errors import EngineError, MountError, StdioError
from shim.host import mount
from tests.engine.world import FIRST_PID, NO_STDIO, World
from tests.fakes import open_descriptors, wait_until


def fail(_words: list[str]) -> int:
    """Be a runc that fails."""
    return 1


def test_a_half_made_container_that_stays_is_logged(world: World, tmp_path: Path) -> None:
    """The client hears why Create failed."""
    (tmp_path / "root" / "ns" / "c1").mkdir(parents=True)
    world.reaper.acts = {"create": fail, "delete": fail}
    with pytest.raises(EngineError, match=r"^OCI runtime create failed: "):
        world.created()

    assert 'level=warning msg="failed to remove half-made container" id=c1' in world.log.read_text()


def test_a_root_that_stays_mounted_is_logged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above."""

    def refuse(_path: str) -> None:
        raise MountError("busy")

    monkeypatch.setattr(mount, "mount_all", lambda mounts, target, run_helper: None)
    monkeypatch.setattr(mount, "unmount_recursive", refuse)
    world.reaper.acts["create"] = fail
    with pytest.raises(EngineError, match=r"^OCI runtime create failed: "):
        world.container().create([mount.Mount("bind", "/x")], lambda: None)

    assert 'level=warning msg="failed to cleanup rootfs mount" id=c1 error=busy' in world.log.read_text()


def test_an_init_that_does_not_die_fails_its_delete(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The container can be deleted later."""
    monkeypatch.setattr("shim.engine.container._EXIT_LIMIT_S", 0.02)
    container = world.created()
    with pytest.raises(EngineError) as caught:
        container.delete(None)
    world.reaper.exit(container.init.pid, 137)
    container.delete(None)

    assert f"failed to delete task: init process {FIRST_PID + 1} did not exit" == str(caught.value)
    assert [("create", "c1"), ("exit", "c1", "137", "stopped"), ("delete", "c1")] == world.events()


def test_a_kill_that_the_system_refuses_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no sign of death."""

    def refuse(_pid: int, _signum: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    container = world.running()
    process = world.exec(container)
    monkeypatch.setattr(os, "kill", refuse)
    with pytest.raises(EngineError, match=r"^exec kill error: unknown error after kill: operation not permitted$"):
        container.kill(process, 9, is_all=False)


def test_an_exec_without_its_stdio_is_killed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs already, and nobody would know; init's exit waits for it no longer."""
    sleeper = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    container = world.running()
    container.add_exec("e1", NO_STDIO, b"{}")
    process = container.process("e1")

    def act(words: list[str]) -> int:
        Path(words[words.index("--pid-file") + 1]).write_text(str(sleeper))
        return 0

    def refuse(_streams: Streams) -> None:
        raise StdioError("no")

    world.reaper.acts["exec"] = act
    monkeypatch.setattr(Streams, "start", refuse)
    with pytest.raises(StdioError):
        container.start_exec(process)
    world.events()
    world.reaper.exit(container.init.pid, 7)

    assert (sleeper, signal.SIGKILL) == os.waitpid(sleeper, 0)
    assert State.FAILED is process.state
    assert [("exit", "c1", "7", "stopped")] == world.events()


def test_a_terminal_whose_runtime_fails_leaves_no_socket(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor any descriptor."""
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    seen: list[str] = []

    def act(words: list[str]) -> int:
        seen.append(words[words.index("--console-socket") + 1])
        return 1

    world.reaper.acts["create"] = act
    before = open_descriptors()
    with pytest.raises(EngineError):
        world.created(stdio=Stdio(terminal=True))

    assert [str(folder)] == [str(Path(path).parent.parent) for path in seen]
    assert [] == [*folder.iterdir()]
    assert wait_until(lambda: before == open_descriptors())
