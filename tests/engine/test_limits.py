"""Calls of the runtime that hang: each ends by its limit, says so, and leaves the container as it was before."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.engine.bundle import Bundle
from shim.engine.call import ChildFds
from shim.engine.container import Container, StdioOwner
from shim.engine.limits import DEFAULT_LIMITS, Limits
from shim.engine.options import Checkpointing
from shim.engine.runc import Runc
from shim.engine.stdio import Stdio
from shim.engine.task import State
from shim.errors import BusyError, EngineTimeoutError
from shim.testing import FakeRunc
from shim.ttrpc import Code
from tests.engine.loggers import OwnReaper
from tests.engine.world import FIRST_PID, NO_STDIO, OWN_PIDS, World, in_thread
from tests.fakes import PATIENCE_S, wait_until

SHORT = Limits(*[0.3] * len(Limits._fields))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRunc]:
    """A runc on PATH; none of its calls may live in the end."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with FakeRunc(tmp_path / "bin") as fake:
        monkeypatch.setenv("PATH", fake.search_path)
        yield fake
        assert wait_until(lambda: not any(os.path.exists(f"/proc/{call.pid}") for call in fake.calls()))


@pytest.fixture
def runc(tmp_path: Path, fake: FakeRunc) -> Runc:
    """A container's runtime with short limits."""
    bundle = tmp_path / "c1"
    bundle.mkdir()
    (bundle / "config.json").write_text(OWN_PIDS)
    return Runc(OwnReaper(), "c1", str(bundle), "ns", root=str(tmp_path / "root"), limits=SHORT)


def calls(runc: Runc) -> dict[str, Callable[[], object]]:
    """Return every call of a runtime, by its subcommand."""
    pid_file = f"{runc.bundle}/x.pid"
    return {
        "create": lambda: runc.create(pid_file, ChildFds(), None),
        "start": runc.start,
        "exec": lambda: runc.exec(b"{}", pid_file, ChildFds(), None),
        "kill": lambda: runc.kill(9),
        "delete": runc.delete,
        "pause": runc.pause,
        "resume": runc.resume,
        "update": lambda: runc.update(b"{}"),
        "ps": runc.processes,
        "checkpoint": lambda: runc.checkpoint("/i", "/w", Checkpointing()),
        "restore": lambda: runc.restore("/i", "", pid_file, ChildFds(), None),
    }


@pytest.mark.parametrize("command", sorted(set(Limits._fields) - {"features"}))
def test_a_call_that_hangs_names_itself_its_limit_and_its_container(runc: Runc, fake: FakeRunc, command: str) -> None:
    """With the code that says why."""
    fake.hangs(command)
    with pytest.raises(EngineTimeoutError) as caught:
        calls(runc)[command]()

    assert str(caught.value).endswith(f"runc {command} of container c1 was not done after 0.3 s and has been killed")
    assert Code.DEADLINE_EXCEEDED is caught.value.code


def test_every_limit_is_generous() -> None:
    """None of them may come into the way of a host that is merely slow; -info has five seconds by containerd."""
    assert [name for name, limit in DEFAULT_LIMITS._asdict().items() if limit < 60] == ["features"]


@pytest.mark.parametrize("command", ["kill", "delete"])
def test_the_callers_deadline_is_a_limit_too(runc: Runc, fake: FakeRunc, command: str) -> None:
    """And is named as what it is."""
    fake.hangs(command)
    patient = runc._replace(limits=DEFAULT_LIMITS)
    deadline = time.monotonic() + 0.3
    with pytest.raises(EngineTimeoutError, match=r"was not done after 0\.\d+ s, the deadline of its caller, and has"):
        patient.kill(9, deadline=deadline) if command == "kill" else patient.delete(deadline=deadline)


def container_of(world: World, runc: Runc, stdio: Stdio = NO_STDIO) -> Container:
    """Return a container that is still to be created."""
    return Container(world.surroundings, Bundle(runc.bundle), runc, stdio, StdioOwner())


def test_a_create_that_hangs_half_way_is_rolled_back(world: World, runc: Runc, fake: FakeRunc, tmp_path: Path) -> None:
    """What it had made is removed, its init too, and the same id can be created again."""
    fake.hangs("create", at="before the answer")
    container = container_of(world, runc)
    with pytest.raises(EngineTimeoutError, match=r"^OCI runtime create failed: runc create of container c1 "):
        container.create((), lambda: None)
    pid = int(Path(runc.bundle, "init.pid").read_text())

    assert ["create", "delete"] == fake.commands()
    assert "--force" in fake.words()[-1]
    assert not (tmp_path / "root" / "ns" / "c1").exists()
    assert wait_until(lambda: not os.path.exists(f"/proc/{pid}") or b"Z" in Path(f"/proc/{pid}/stat").read_bytes())
    assert [] == world.events()

    fake.behave()
    again = container_of(world, runc)
    again.create((), lambda: None)
    runc.delete(is_forced=True)


def act_late(world: World, command: str) -> None:
    """Have a call of the world's runtime hang."""

    def act(_words: list[str]) -> int:
        raise EngineTimeoutError("late")

    world.reaper.acts[command] = act


def test_a_start_that_hangs_leaves_a_container_that_can_be_deleted(world: World) -> None:
    """By force, since nobody knows whether its init runs."""
    container = world.created()
    act_late(world, "start")
    with pytest.raises(EngineTimeoutError):
        container.start()
    state = container.init.state

    def end(_words: list[str]) -> int:
        world.reaper.exit(container.init.pid, 137)
        return 0

    world.reaper.acts["delete"] = end
    world.commands()
    container.delete(None)

    assert State.CREATED is state
    assert ["delete --force", "delete c1"] == world.commands()
    assert [("create", "c1"), ("exit", "c1", "137", "stopped"), ("delete", "c1")] == world.events()


@pytest.mark.parametrize("is_stuck", [False, True])
def test_a_pause_that_hangs_is_taken_back(world: World, is_stuck: bool) -> None:
    """A container that is called running must not be half frozen."""
    container = world.running()
    act_late(world, "pause")
    if is_stuck:
        act_late(world, "resume")
    world.commands()
    with pytest.raises(EngineTimeoutError):
        container.pause()

    assert ["pause", "resume"] == world.commands()
    assert State.RUNNING is container.init.state
    assert is_stuck == ("failed to resume after a pause that failed" in world.log.read_text())


def test_an_exec_that_hangs_releases_who_waits(world: World) -> None:
    """It has no exit event, and init's does not wait for it."""
    container = world.running()
    container.add_exec("e1", NO_STDIO, b"{}")
    process = container.process("e1")
    told: list[object] = []
    process.on_exit(told.append)
    act_late(world, "exec")
    with pytest.raises(EngineTimeoutError):
        container.start_exec(process)
    world.events()
    world.reaper.exit(container.init.pid, 7)

    assert [None] == told
    assert [("exit", "c1", "7", "stopped")] == world.events()


@pytest.mark.parametrize("act", ["delete", "kill an exec", "delete an exec"])
def test_an_operation_under_way_holds_up_others_until_their_deadline(world: World, act: str) -> None:
    """Only those on the same process: a signal for init goes through."""
    container = world.running()
    process = world.exec(container)
    busy = container.init if act == "delete" else process
    act_on: dict[str, Callable[[float], None]] = {
        "delete": container.delete,
        "kill an exec": lambda deadline: container.kill(process, 9, is_all=False, deadline=deadline),
        "delete an exec": lambda deadline: container.delete_exec(process, deadline),
    }
    with busy.operate():
        thread, errors = in_thread(lambda: act_on[act](time.monotonic() + 0.05))
        thread.join(PATIENCE_S)
        container.kill(container.init, 15, is_all=False)

    assert f"another operation on process {busy.id} of container c1 goes on" == str(errors[0])
    assert isinstance(errors[0], BusyError)
    assert Code.DEADLINE_EXCEEDED is errors[0].code


def test_processes_are_told_even_if_the_runtime_cannot_list_them(world: World) -> None:
    """A failure would cost a healthy container its life when containerd starts again."""
    container = world.running()
    process = world.exec(container)
    gone = world.exec(container, "e2")
    world.reaper.exit(gone.pid)
    act_late(world, "ps")

    assert [(FIRST_PID + 1, ""), (process.pid, "e1")] == container.processes()
    assert "failed to list processes" in world.log.read_text()
