"""One container, without a runtime: what each operation asks of runc, and what a failure leaves behind."""

import os
import threading
import time
from pathlib import Path

import pytest

from shim.engine.stdio import Stdio
from shim.engine.task import State
from shim.errors import (
    AlreadyExistsError,
    BundleError,
    EngineError,
    ExecNotFoundError,
    FailedPreconditionError,
    MountError,
    NotFoundError,
    ProcessStateError,
    StdioError,
)
from shim.host import mount
from tests.engine.world import FIRST_PID, NO_STDIO, World, in_thread
from tests.fakes import PATIENCE_S, open_descriptors, wait_until


def fail(_words: list[str]) -> int:
    """Be a runc that fails."""
    return 1


def fifos(folder: Path) -> Stdio:
    """Make a client's fifos, whose readers are there at once."""
    for name in ("in", "out", "err"):
        os.mkfifo(folder / name)
    return Stdio(str(folder / "in"), str(folder / "out"), str(folder / "err"))


def test_create_enters_the_container_before_it_is_announced(world: World) -> None:
    """So that who hears of it can ask for it."""
    container = world.container()
    told: list[list[tuple[str, ...]]] = []
    container.create((), lambda: told.append(world.events()))

    assert [[]] == told
    assert [("create", "c1")] == world.events()
    assert ["create"] == world.commands()
    assert FIRST_PID + 1 == container.init.pid


def test_create_without_mounts_makes_no_folder(world: World) -> None:
    """The root file system is where it was."""
    container = world.created()

    assert not os.path.exists(container.bundle.rootfs)


@pytest.mark.parametrize("is_made", [False, True])
def test_a_failed_create_undoes_what_it_did(world: World, tmp_path: Path, is_made: bool) -> None:
    """Mounts and descriptors; and the container, if the runtime got that far."""
    stdio = fifos(tmp_path)
    readers = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for path in (stdio.stdout, stdio.stderr)]
    before = open_descriptors()
    container = world.container(stdio=stdio)
    state = tmp_path / "root" / "ns" / "c1"

    def act(_words: list[str]) -> int:
        if is_made:
            state.mkdir(parents=True)
        return 1

    world.reaper.acts["create"] = act
    with pytest.raises(EngineError, match="OCI runtime create failed"):
        container.create((), lambda: None)

    assert ["create", *["delete --force"] * is_made] == world.commands()
    assert [] == world.events()
    assert wait_until(lambda: before == open_descriptors())
    for reader in readers:
        os.close(reader)


def test_a_mount_that_fails_stops_create_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is tidied all the same; the runtime never hears of it."""
    told: list[str] = []

    def refuse(mounts: object, target: str) -> None:
        raise MountError("failed to mount rootfs component: no")

    monkeypatch.setattr(mount, "mount_all", refuse)
    monkeypatch.setattr(mount, "unmount_recursive", told.append)
    container = world.container()
    with pytest.raises(MountError, match="failed to mount rootfs component: no"):
        container.create([mount.Mount("bind", "/x")], lambda: None)

    assert [container.bundle.rootfs] == told
    assert [] == world.commands() + world.events()


def test_a_create_without_a_pid_fails(world: World) -> None:
    """The runtime said yes, but where is the container?"""
    container = world.container()

    def act(words: list[str]) -> int:
        os.unlink(words[words.index("--pid-file") + 1])
        return 0

    world.reaper.acts["create"] = act
    with pytest.raises(BundleError, match="failed to retrieve OCI runtime container pid: open "):
        container.create((), lambda: None)

    assert [] == world.events()


def test_stdio_that_cannot_be_opened_fails_create_before_the_runtime(world: World, tmp_path: Path) -> None:
    """With the name of what is missing."""
    container = world.container(stdio=Stdio(stdin=str(tmp_path / "none")))
    before = open_descriptors()
    with pytest.raises(StdioError, match=rf"^failed to open stdin fifo {tmp_path}/none: no such file or directory$"):
        container.create((), lambda: None)

    assert [] == world.commands() + world.events()
    assert wait_until(lambda: before == open_descriptors())


def test_delete_of_a_stopped_container(world: World) -> None:
    """One call of runc, and the event."""
    container = world.running()
    world.reaper.exit(container.init.pid, 7)
    world.commands()
    world.events()
    container.delete(None)

    assert ["delete c1"] == world.commands()
    assert [("delete", "c1")] == world.events()
    assert State.DELETED is container.init.state
    with pytest.raises(NotFoundError, match=r"^cannot delete a deleted process: not found$"):
        container.delete(None)


def test_delete_of_a_created_container_waits_for_its_exit(world: World) -> None:
    """runc kills its init; exit comes before delete, with a status."""
    container = world.created()
    world.events()
    calls: list[int] = []

    def act(_words: list[str]) -> int:
        if not calls:
            threading.Timer(0.02, lambda: world.reaper.exit(container.init.pid, 137)).start()
        calls.append(1)
        return 0

    world.reaper.acts["delete"] = act
    container.delete(None)

    assert [("exit", "c1", "137", "stopped"), ("delete", "c1")] == world.events()


@pytest.mark.parametrize("state", ["running", "paused"])
def test_delete_of_a_living_container_is_refused(world: World, state: str) -> None:
    """Nothing is called, nothing changes."""
    container = world.running()
    if state == "paused":
        container.pause()
    world.commands()
    with pytest.raises(ProcessStateError, match=rf"^cannot delete a {state} process$"):
        container.delete(None)

    assert [] == world.commands()
    assert state == container.init.state.value


def test_a_failed_delete_tries_every_step_and_may_be_repeated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first failure is told; the container stays deletable, and its stdio is closed."""
    container = world.running()
    world.reaper.exit(container.init.pid, 7)
    world.events()
    tried: list[str] = []

    def refuse(path: str) -> None:
        tried.append(path)
        raise MountError("busy")

    world.reaper.acts["delete"] = fail
    monkeypatch.setattr(mount, "unmount_recursive", refuse)
    with pytest.raises(EngineError, match=r"^failed to delete task: "):
        container.delete(None)
    world.reaper.acts.clear()
    with pytest.raises(MountError, match=r"^failed rootfs umount: busy$"):
        container.delete(None)
    monkeypatch.setattr(mount, "unmount_recursive", lambda path: None)
    assert [] == world.events()
    container.delete(None)

    assert [container.bundle.rootfs] * 2 == tried
    assert [("delete", "c1")] == world.events()


def test_delete_releases_who_waits_for_an_exec_that_never_ran(world: World) -> None:
    """And closes its stdio."""
    container = world.running()
    container.add_exec("e1", NO_STDIO, b"{}")
    told: list[object] = []
    container.process("e1").on_exit(told.append)
    world.reaper.exit(container.init.pid, 7)
    container.delete(None)

    assert [None] == told


def test_pause_and_resume(world: World) -> None:
    """With an event each, after it was done."""
    container = world.running()
    world.commands()
    world.events()
    container.pause()
    states = [container.init.state]
    container.resume()

    assert ["pause", "resume"] == world.commands()
    assert [("paused", "c1"), ("resumed", "c1")] == world.events()
    assert [State.PAUSED, State.RUNNING] == [*states, container.init.state]


def test_state_says_pausing_while_it_is(world: World) -> None:
    """Without waiting for the runtime."""
    container = world.running()
    seen: list[State] = []

    def act(_words: list[str]) -> int:
        seen.append(container.init.state)
        return 0

    world.reaper.acts["pause"] = act
    container.pause()

    assert [State.PAUSING] == seen


@pytest.mark.parametrize(("command", "before"), [("pause", State.RUNNING), ("resume", State.PAUSED)])
def test_a_failed_pause_or_resume_changes_nothing(world: World, command: str, before: State) -> None:
    """And is no event."""
    container = world.running()
    if command == "resume":
        container.pause()
    world.events()
    world.reaper.acts[command] = fail
    with pytest.raises(EngineError, match=rf"^OCI runtime {command} failed: "):
        getattr(container, command)()

    assert before is container.init.state
    assert [] == world.events()


def test_update_hands_the_resources_on(world: World) -> None:
    """Only while there is something to limit."""
    container = world.running()
    world.commands()
    container.update(b"{}")
    world.reaper.exit(container.init.pid, 7)
    with pytest.raises(ProcessStateError, match=r"^cannot update a stopped container$"):
        container.update(b"{}")

    assert ["update"] == world.commands()


def test_kill_of_init_is_the_runtimes(world: World) -> None:
    """In every state but deleted."""
    container = world.created()
    world.commands()
    container.kill(container.init, 15, is_all=False)
    container.kill(container.init, 9, is_all=True)
    world.reaper.exit(container.init.pid, 7)
    container.kill(container.init, 0, is_all=False)
    assert ["kill c1", "kill --all", "kill c1"] == world.commands()
    container.delete(None)
    with pytest.raises(NotFoundError, match=r"^cannot kill a deleted process: not found$"):
        container.kill(container.init, 9, is_all=False)


def test_kill_of_a_stopped_init_is_not_found(world: World) -> None:
    """By what the runtime says."""
    container = world.running()
    world.reaper.exit(container.init.pid, 7)
    world.reaper.acts["kill"] = fail
    world.reaper.output = "container not running"
    with pytest.raises(NotFoundError, match=r"^process already finished: not found$"):
        container.kill(container.init, 9, is_all=False)


def test_kill_of_an_exec_needs_no_runtime(world: World) -> None:
    """A signal to its pid, once it runs and until it has ended."""
    container = world.running()
    container.add_exec("e0", NO_STDIO, b"{}")
    process = world.exec(container)
    sleeper = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    process.pid = sleeper
    world.commands()
    with pytest.raises(FailedPreconditionError, match=r"^process not created: failed precondition$"):
        container.kill(container.process("e0"), 9, is_all=False)
    container.kill(process, 9, is_all=False)

    assert (sleeper, 9) == os.waitpid(sleeper, 0)
    with pytest.raises(NotFoundError, match=r"^process already finished: not found$"):
        container.kill(process, 9, is_all=False)  # it is gone, the reaper has not told yet
    process.pid = FIRST_PID + 2
    world.reaper.exit(process.pid, 137)
    with pytest.raises(NotFoundError, match=r"^process already finished: not found$"):
        container.kill(process, 9, is_all=False)
    assert [] == world.commands()


def test_an_exec_is_known_by_its_id(world: World) -> None:
    """The empty one is init's; a taken one cannot be taken again."""
    container = world.running()
    container.add_exec("e1", NO_STDIO, b"{}")

    assert container.init is container.process("")
    assert "e1" == container.process("e1").id
    with pytest.raises(AlreadyExistsError, match=r"^id e1: already exists$"):
        container.add_exec("e1", NO_STDIO, b"{}")
    with pytest.raises(ExecNotFoundError, match=r"^process does not exist e2: not found$"):
        container.process("e2")
    assert [("exec-added", "e1")] == world.events()[2:]


def test_execs_added_at_once_under_one_id_are_one(world: World) -> None:
    """The others hear that it is taken."""
    container = world.running()
    barrier = threading.Barrier(6)
    refused: list[BaseException] = []

    def add() -> None:
        barrier.wait()
        container.add_exec("e1", NO_STDIO, b"{}")

    threads = [in_thread(add) for _ in range(6)]
    for thread, errors in threads:
        thread.join()
        refused += errors

    assert [AlreadyExistsError] * 5 == [type(error) for error in refused]
    assert 1 == world.events().count(("exec-added", "e1"))


def test_an_exec_that_cannot_start_is_released_and_can_be_deleted(world: World) -> None:
    """Its waiters go, its pid file and descriptors too; it is not started twice, and its id is free again."""
    container = world.running()
    container.add_exec("e1", NO_STDIO, b"{}")
    process = container.process("e1")
    told: list[object] = []
    process.on_exit(told.append)
    world.reaper.acts["exec"] = fail
    with pytest.raises(EngineError, match=r"^OCI runtime exec failed: "):
        container.start_exec(process)
    with pytest.raises(ProcessStateError, match=r"^cannot start a stopped process$"):
        container.start_exec(process)
    process.on_exit(told.append)
    container.delete_exec(process, None)
    container.add_exec("e1", NO_STDIO, b"{}")

    assert [None, None] == told
    assert State.DELETED is process.state
    assert [("exec-added", "e1")] * 2 == world.events()[2:]


def test_an_exec_whose_stdio_is_missing_runs_no_runtime(world: World, tmp_path: Path) -> None:
    """And holds init's exit up no longer."""
    container = world.running()
    container.add_exec("e1", Stdio(stdin=str(tmp_path / "none")), b"{}")
    world.commands()
    with pytest.raises(StdioError):
        container.start_exec(container.process("e1"))
    world.reaper.exit(container.init.pid, 7)

    assert [] == world.commands()
    assert ("exit", "c1", "7", "stopped") == world.events()[-1]


def test_delete_of_an_exec_removes_its_pid_file(world: World) -> None:
    """No event: clients would take it for the container's."""
    container = world.running()
    process = world.exec(container)
    pid_file = Path(container.bundle.file("e1.pid"))
    with pytest.raises(ProcessStateError, match=r"^cannot delete a running process$"):
        container.delete_exec(process, None)
    world.reaper.exit(process.pid, 3)
    world.events()
    assert pid_file.exists()
    container.delete_exec(process, None)

    assert not pid_file.exists()
    assert [] == world.events() + container.execs()
    with pytest.raises(NotFoundError, match=r"^cannot delete a deleted process: not found$"):
        container.delete_exec(process, None)


def test_state_and_kill_of_others_wait_for_no_runtime(world: World) -> None:
    """While one exec is being started, init can be asked, killed, and another exec deleted."""
    container = world.running()
    other = world.exec(container, "e2")
    world.reaper.exit(other.pid, 3)
    gate = threading.Event()
    world.reaper.acts["exec"] = lambda _words: 0 if gate.wait(PATIENCE_S) else 1
    thread, errors = in_thread(lambda: world.exec(container))
    assert wait_until(lambda: world.reaper.calls[-1][0] == "exec" and len(container.execs()) == 2)
    start = time.monotonic()
    states = [container.init.state, container.process("e1").state]
    container.kill(container.init, 0, is_all=False)
    container.delete_exec(other, None)
    took = time.monotonic() - start
    gate.set()
    thread.join()

    assert [] == errors
    assert took < 5
    assert [State.RUNNING, State.STARTING] == states


def test_processes_are_named_where_they_are_execs(world: World) -> None:
    """Without a cgroup the runtime is asked; a stopped container has none."""
    container = world.running()
    process = world.exec(container)
    world.reaper.output = f"[{container.init.pid},{process.pid},5]"
    listed = container.processes()
    world.reaper.exit(process.pid, 3)
    world.reaper.exit(container.init.pid, 7)

    assert [(container.init.pid, ""), (process.pid, "e1"), (5, "")] == listed
    assert [] == container.processes()


def test_metrics_of_a_container_without_a_cgroup_are_not_found(world: World) -> None:
    """As in Go's shim."""
    with pytest.raises(NotFoundError, match=r"^cgroup does not exist: not found$"):
        world.running().metrics()


def test_output_is_drained_before_delete_and_no_longer_than_allowed(world: World, tmp_path: Path) -> None:
    """A background process may keep the pipe open for ever; the caller's deadline counts."""
    stdio = fifos(tmp_path)
    readers = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for path in (stdio.stdout, stdio.stderr)]
    container = world.container(stdio=stdio)
    kept: list[int] = []
    spawn = world.reaper.spawn

    def keep(argv: list[str], **rest: object) -> object:
        stdout = rest.get("stdout")
        if argv[7] == "create" and isinstance(stdout, int):
            kept.append(os.dup(stdout))
        return spawn(argv, **rest)  # type: ignore[arg-type]

    world.reaper.spawn = keep  # type: ignore[method-assign, assignment]
    container.create((), lambda: None)
    container.start()
    world.reaper.exit(container.init.pid, 7)
    start = time.monotonic()
    container.delete(time.monotonic() + 0.6)
    took = time.monotonic() - start
    for fd in [*kept, *readers]:
        os.close(fd)

    assert 0.05 < took < 5
    assert 'msg="failed to drain init process io" id=c1 process=c1' in world.log.read_text()


def test_an_exec_that_waits_for_a_reader_does_not_hold_up_inits_exit(world: World, tmp_path: Path) -> None:
    """The exit is told at once, and the exec finds that it comes too late."""
    os.mkfifo(tmp_path / "out")
    container = world.running()
    container.add_exec("e1", Stdio(stdout=str(tmp_path / "out")), b"{}")
    process = container.process("e1")
    thread, errors = in_thread(lambda: container.start_exec(process))
    assert wait_until(lambda: process.state is State.STARTING)
    world.events()
    world.reaper.exit(container.init.pid, 7)
    told = world.events()
    reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    thread.join(PATIENCE_S)
    os.close(reader)

    assert [("exit", "c1", "7", "stopped")] == told
    assert ["container c1 init process is not running: failed precondition"] == [str(error) for error in errors]
    assert isinstance(errors[0], FailedPreconditionError)
    assert State.FAILED is process.state
    assert ["create", "start"] == world.commands()
