"""Traps of locks, exits and events that no other test names: contract 16, numbers 15 to 35."""

import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from shim.errors import NotFoundError, StdioError
from tests.engine import test_container_memory as memory
from tests.engine.served import Served
from tests.engine.world import NO_STDIO, World, in_thread
from tests.fakes import PATIENCE_S, LoopThread, open_descriptors, wait_until

SLEEP = "exec sleep 60"

folder = memory.folder


def test_trap_20_state_while_another_container_is_created(served: Served) -> None:
    """However long the runtime takes for one, the others are asked, signalled and deleted meanwhile."""
    served.run("trap20", SLEEP)
    gate = served.runc.hangs("create", once=True)
    slow = served.bundle("trap20-slow")
    (slow / "config.json").write_text('{"process": {"args": ["sleep", "60"]}}')
    thread, created = served.later("Create", id="trap20-slow", bundle=str(slow), options=served.options())
    gate.wait_reached()
    state = served.call("State", id="trap20")
    served.call("Kill", id="trap20", signal=9)
    status = served.call("Wait", id="trap20").exit_status
    served.call("Delete", id="trap20")
    unknown = served.fails("State", id="trap20-slow")
    before = [*created]
    gate.release()
    thread.join(PATIENCE_S)
    served.call("Delete", id="trap20-slow")

    assert state.pid > 0
    assert 137 == status
    assert (5, "container not created: not found") == unknown
    assert ([], 1) == (before, len(created))


def test_trap_21_an_event_after_the_end_harms_nobody(own: Served) -> None:
    """Execs that end while the daemon goes down, and those that end after its last event, stop nothing."""
    own.run("c1", SLEEP)
    pids = [own.exec("c1", f"e{number}", SLEEP) for number in range(8)]
    own.process.terminate()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)

    assert 0 == own.process.wait(PATIENCE_S)
    assert "level=error" not in "".join(
        line for line in own.log.read_text().splitlines(keepends=True) if "cgroup" not in line
    )
    assert [] == own.containerd.faults


def test_trap_26_an_exec_that_was_reaped_gets_no_signal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even in the moment before its end is known: its pid may be another process's already."""
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _signum: sent.append(pid))
    container = world.running()
    process = world.exec(container)
    container.kill(process, 15, is_all=False)
    monkeypatch.setattr(world.reaper, "_untold", process.pid)
    with pytest.raises(NotFoundError, match=r"^process already finished: not found$"):
        container.kill(process, 9, is_all=False)

    assert [process.pid] == sent


def test_trap_26_an_exec_that_cannot_be_served_and_has_ended_gets_no_signal(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stdio failed, which is what the client hears; that it ended meanwhile is no second failure."""
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _signum: sent.append(pid))
    container = world.running()
    container.add_exec("e1", NO_STDIO, b"{}")
    process = container.process("e1")

    def refuse(_streams: object) -> None:
        world.reaper.exit(process.pid, 3)
        raise StdioError("no stdio")

    monkeypatch.setattr("shim.engine.stdio.Streams.start", refuse)
    with pytest.raises(StdioError, match="no stdio"):
        container.start_exec(process)

    assert [] == sent


def test_trap_29_kill_of_a_container_that_the_engine_forgot_is_not_found(served: Served) -> None:
    """Somebody ran the runtime's `delete --force`: clients take the answer for success and delete the container."""
    pid = served.run("trap29", SLEEP)
    shutil.rmtree(served.root / "ns" / "trap29")
    told = served.fails("Kill", id="trap29", signal=9)
    os.kill(pid, signal.SIGKILL)
    answer = served.call("Wait", id="trap29")
    deleted = served.call("Delete", id="trap29")

    assert (5, "no such container: not found") == told
    assert (137, 137) == (answer.exit_status, deleted.exit_status)


def test_trap_30_a_kill_for_memory_before_the_start_is_told(world: World, folder: Path, thread: LoopThread) -> None:
    """The watch begins with the creation: hooks and init itself may be killed before Start."""
    container = world.created()
    thread.settle()
    memory.set_kills(folder, 1)

    assert wait_until(lambda: world.sink.events.count(("oom", "c1")) == 1)
    world.reaper.exit(container.init.pid, 137)
    assert [("create", "c1"), ("oom", "c1"), ("exit", "c1", "137", "stopped")] == world.events()


def test_trap_30_a_kill_for_memory_is_told_before_the_exit_even_if_nobody_was_woken(
    world: World, folder: Path, thread: LoopThread
) -> None:
    """The exit may be seen before the loop comes to the watch: it is read once more, and no kill is told twice."""
    container = world.running()
    thread.settle()
    gate = threading.Event()
    thread.loop.call_soon(lambda: gate.wait(PATIENCE_S) and None)
    memory.set_kills(folder, 1)
    world.reaper.exit(container.init.pid, 137)
    events = world.events()
    gate.set()
    thread.settle()

    assert [("oom", "c1"), ("exit", "c1", "137", "stopped")] == events[2:]
    assert [] == world.events()


def test_trap_31_the_watch_of_a_container_that_never_ran_ends_at_its_delete(
    world: World, folder: Path, thread: LoopThread
) -> None:
    """Nothing of it stays open, however often containers are created and deleted."""
    before = open_descriptors()
    for number in range(3):
        container = world.created(f"c{number}")
        deletion, errors = in_thread(lambda container=container: container.delete(None))  # type: ignore[misc]
        world.reaper.exit(container.init.pid, 137)
        deletion.join(PATIENCE_S)
        assert [] == errors
    thread.settle()

    assert before == open_descriptors()


def test_trap_16_a_reaper_that_waits_for_no_runtime(world: World) -> None:
    """Exits of one container are told while the runtime is at work for another, and for itself."""
    first = world.running("c1")
    gate = threading.Event()
    world.reaper.acts["create"] = lambda _words: 0 if gate.wait(PATIENCE_S) else 1
    creating, errors = in_thread(lambda: world.created("c2"))
    assert wait_until(lambda: world.reaper.calls[-1][0] == "create" and world.reaper.windows == 1)
    reaping, reaped = in_thread(lambda: world.reaper.exit(first.init.pid, 7))
    reaping.join(PATIENCE_S)
    events = world.events()
    gate.set()
    creating.join(PATIENCE_S)

    assert [] == errors + reaped
    assert ("exit", "c1", "7", "stopped") == events[-1]
    assert [("create", "c2")] == world.events()
