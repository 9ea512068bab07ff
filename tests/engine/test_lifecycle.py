"""The order of events, whatever the order in which processes are started, end, and are reaped."""

import random
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shim.engine.container import Container
from shim.engine.task import State
from shim.errors import BusyError, EngineError, FailedPreconditionError
from shim.runtime.reaper import Exit
from tests.engine.world import FIRST_PID, OWN_PIDS, SHARED_PIDS, World, in_thread
from tests.fakes import PATIENCE_S

CREATED, STARTED = ("create", "c1"), ("start", "c1")
EXITED = ("exit", "c1", "7", "stopped")


def dies_during(world: World, command: str, pid: int, status: int = 7) -> None:
    """Have a process reaped while runc runs."""

    def act(_words: list[str]) -> int:
        world.reaper.exit(pid, status)
        return 0

    world.reaper.acts[command] = act


def test_a_life_in_order(world: World) -> None:
    """Create, start, exit, delete; State and Wait know of the exit no later than the event."""
    container = world.running()
    told: list[Exit | None] = []
    container.init.on_exit(told.append)
    world.reaper.exit(container.init.pid, 7)
    container.init.on_exit(told.append)
    container.delete(None)

    assert [CREATED, STARTED, EXITED, ("delete", "c1")] == world.events()
    assert [Exit(container.init.pid, 7, 1007.0)] * 2 == told
    assert container.init.pid > FIRST_PID


def test_an_init_that_ends_while_it_is_created(world: World) -> None:
    """Exit after create, without a start; the container can be deleted."""
    dies_during(world, "create", FIRST_PID + 1)
    container = world.created()

    assert [CREATED, EXITED] == world.events()
    assert State.STOPPED is container.init.state
    container.delete(None)
    assert [("delete", "c1")] == world.events()


def test_an_init_that_ends_while_it_is_started(world: World) -> None:
    """Start is told before exit."""
    container = world.created()
    dies_during(world, "start", container.init.pid)
    container.start()

    assert [CREATED, STARTED, EXITED] == world.events()


def test_an_init_reaped_just_as_its_start_begins(world: World) -> None:
    """The reaper took it from the kernel before the start began and tells of it after: it is neither lost nor early."""
    container = world.created()
    late = world.reaper.seen(container.init.pid, 7)

    def act(_words: list[str]) -> int:
        world.reaper.listener(late)
        return 0

    world.reaper.acts["start"] = act
    container.start()

    assert [CREATED, STARTED, EXITED] == world.events()


def test_an_init_that_was_killed_before_its_start(world: World) -> None:
    """Its exit is told, and the start refused."""
    container = world.created()
    world.reaper.exit(container.init.pid, 7)
    with pytest.raises(Exception, match="cannot start a stopped process"):
        container.start()

    assert [CREATED, EXITED] == world.events()


@pytest.mark.parametrize("is_dead", [False, True])
def test_a_failed_start_leaves_a_created_container(world: World, is_dead: bool) -> None:
    """Unless its init died in the meantime: then there is an exit without a start."""
    container = world.created()

    def fail(_words: list[str]) -> int:
        if is_dead:
            world.reaper.exit(container.init.pid, 7)
        return 1

    world.reaper.acts["start"] = fail
    with pytest.raises(EngineError, match="OCI runtime start failed"):
        container.start()

    assert [CREATED, *[EXITED] * is_dead] == world.events()
    assert (State.STOPPED if is_dead else State.CREATED) is container.init.state
    if not is_dead:
        world.reaper.acts.clear()
        container.start()
        world.reaper.exit(container.init.pid, 7)
        assert [STARTED, EXITED] == world.events()


def test_a_failed_create_tells_nothing(world: World) -> None:
    """Nobody heard of the container, so nobody hears of its end."""
    container = world.container()
    world.reaper.acts["create"] = lambda _words: 1
    with pytest.raises(EngineError, match="OCI runtime create failed"):
        container.create((), lambda: None)
    world.reaper.exit(FIRST_PID + 1)

    assert [] == world.events()


def test_an_exec_in_order(world: World) -> None:
    """Added, started, exit; then init may end."""
    container = world.running()
    process = world.exec(container)
    world.reaper.exit(process.pid, 3)
    world.reaper.exit(container.init.pid, 7)

    assert [
        *[CREATED, STARTED, ("exec-added", "e1"), ("start", "e1"), ("exit", "e1", "3", "stopped"), EXITED]
    ] == world.events()


def test_an_exec_that_ends_while_it_is_started(world: World) -> None:
    """Started is told before exit."""
    container = world.running()
    dies_during(world, "exec", FIRST_PID + 2, 3)
    world.exec(container)

    assert [("exec-added", "e1"), ("start", "e1"), ("exit", "e1", "3", "stopped")] == world.events()[2:]


def test_an_inits_exit_waits_for_its_execs(world: World) -> None:
    """Even if it was reaped first; no other exec may start after it."""
    container = world.running()
    first, second = world.exec(container), world.exec(container, "e2")
    container.add_exec("e3", first.stdio, b"{}")
    world.events()
    world.reaper.exit(container.init.pid, 7)
    state = container.init.state
    world.reaper.exit(first.pid, 3)
    with pytest.raises(
        FailedPreconditionError, match=r"^container c1 init process is not running: failed precondition$"
    ):
        container.start_exec(container.process("e3"))
    before = world.events()
    world.reaper.exit(second.pid, 4)

    assert State.RUNNING is state
    assert [("exit", "e1", "3", "stopped")] == before
    assert [("exit", "e2", "4", "stopped"), EXITED] == world.events()


@pytest.mark.parametrize("fails", [False, True])
def test_an_inits_exit_waits_for_an_exec_that_is_being_started(world: World, fails: bool) -> None:
    """It counts from before the runtime runs until its exit, or the failure, has been told."""
    container = world.running()
    seen: list[list[tuple[str, ...]]] = []

    def act(_words: list[str]) -> int:
        world.reaper.exit(container.init.pid, 7)
        seen.append(world.events())
        return 1 if fails else 0

    world.reaper.acts["exec"] = act
    if fails:
        with pytest.raises(EngineError):
            world.exec(container)
        assert [EXITED] == world.events()
    else:
        process = world.exec(container)
        assert [("start", "e1")] == world.events()
        world.reaper.exit(process.pid, 3)
        assert [("exit", "e1", "3", "stopped"), EXITED] == world.events()
    assert [[CREATED, STARTED, ("exec-added", "e1")]] == seen


def test_shared_pids_are_killed_before_the_exit_is_told(world: World) -> None:
    """Not by the reaper's thread; the execs that die of it are told first."""
    container = world.running(spec=SHARED_PIDS)
    process = world.exec(container)
    world.events()
    world.commands()
    world.reaper.exit(container.init.pid, 7)
    assert [] == world.events() + world.commands()

    dies_during(world, "kill", process.pid, 137)
    world.run_jobs()

    assert ["kill --all"] == world.commands()
    assert [("exit", "e1", "137", "stopped"), EXITED] == world.events()
    assert [] == world.jobs


def test_signals_wait_for_the_kill_of_shared_pids(world: World) -> None:
    """For a moment the runtime holds the container frozen, where another call of it would fail, and the pod's stop."""
    container = world.running(spec=SHARED_PIDS)
    world.commands()
    late: list[tuple[threading.Thread, list[BaseException]]] = []

    def signal_meanwhile(_words: list[str]) -> int:
        world.reaper.acts.pop("kill")
        with pytest.raises(BusyError, match="another signal is being sent to container c1"):
            container.kill(container.init, 9, is_all=False, deadline=time.monotonic())
        late.append(in_thread(lambda: container.kill(container.init, 9, is_all=False)))
        return 0

    world.reaper.acts["kill"] = signal_meanwhile
    world.reaper.exit(container.init.pid, 7)
    world.run_jobs()
    thread, errors = late[0]
    thread.join(PATIENCE_S)

    assert [] == errors
    assert ["kill --all", "kill c1"] == world.commands()


def test_execs_that_survive_the_kill_are_waited_for(world: World) -> None:
    """Their reaping may take a moment longer."""
    container = world.running(spec=SHARED_PIDS)
    process = world.exec(container)
    world.events()
    world.reaper.exit(container.init.pid, 7)
    world.run_jobs()
    between = world.events()
    world.reaper.exit(process.pid, 137)

    assert [] == between
    assert [("exit", "e1", "137", "stopped"), EXITED] == world.events()


@pytest.mark.parametrize("output", ["container not running", "boom"])
def test_a_kill_that_fails_holds_nothing_up(world: World, output: str) -> None:
    """With nothing left to kill there is nothing to say; other failures are logged."""
    container = world.running(spec=SHARED_PIDS)
    world.events()
    world.reaper.acts["kill"] = lambda _words: 1
    world.reaper.output = output
    world.reaper.exit(container.init.pid, 7)
    world.run_jobs()

    assert [EXITED] == world.events()
    assert (output == "boom") is ("failed to kill init's children" in world.log.read_text())


@pytest.mark.parametrize("spec", [SHARED_PIDS, "", '{"linux": {"namespaces": [{"type": "pid", "path": "/x"}]}}'])
def test_pids_count_as_shared_when_in_doubt(world: World, spec: str) -> None:
    """A spec that cannot be read included."""
    container = world.running(spec=spec)
    world.commands()
    world.reaper.exit(container.init.pid, 7)
    world.run_jobs()

    assert ["kill --all"] == world.commands()


def test_own_pids_need_no_kill(world: World) -> None:
    """The kernel does it."""
    container = world.running()
    world.commands()
    world.reaper.exit(container.init.pid, 7)

    assert [] == world.commands() + world.jobs
    assert [CREATED, STARTED, EXITED] == world.events()


def test_a_paused_container_is_thawed_at_its_inits_end(world: World) -> None:
    """Else its other processes could not die."""
    container = world.running()
    container.pause()
    world.commands()
    world.reaper.exit(container.init.pid, 7)
    world.run_jobs()

    assert ["resume"] == world.commands()
    assert [CREATED, STARTED, ("paused", "c1"), EXITED] == world.events()


def test_two_containers_do_not_wait_for_each_other(world: World) -> None:
    """An exec of one holds up the exit of its own init alone."""
    first, second = world.running("c1"), world.running("c2")
    world.exec(first)
    world.events()
    world.reaper.exit(first.init.pid, 7)
    world.reaper.exit(second.init.pid, 7)

    assert [("exit", "c2", "7", "stopped")] == world.events()


def test_unknown_pids_are_nobodys(world: World) -> None:
    """Grandchildren that ended here, and pids that were told already."""
    container = world.running()
    world.events()
    world.reaper.exit(FIRST_PID + 99)
    world.reaper.exit(container.init.pid, 7)
    world.reaper.exit(container.init.pid, 8)

    assert [EXITED] == world.events()


def test_a_wait_that_came_before_anything_is_released_with_the_exit(world: World) -> None:
    """Any number of them, each once, before or with the event."""
    container = world.created()
    told: list[object] = []
    for _ in range(3):
        container.init.on_exit(lambda exit_: told.append((exit_ and exit_.status, len(world.sink.events))))
    forgotten: Callable[[Exit | None], None] = told.append
    container.init.on_exit(forgotten)
    container.init.forget_waiter(forgotten)
    container.init.forget_waiter(forgotten)
    container.start()
    world.reaper.exit(container.init.pid, 7)

    assert [(7, 2)] * 3 == told


def check_order(events: list[tuple[str, ...]]) -> None:
    """Assert what clients rely on, for one container and its execs."""
    names = [event[:2] for event in events]
    assert len(names) == len(set(names))
    for name in {event[1] for event in events if event[0] == "exec-added"}:
        own = [event[0] for event in events if event[1] == name]
        assert own in (["exec-added"], ["exec-added", "start"], ["exec-added", "start", "exit"])
    if ("exit", "c1") in names:
        after = names[names.index(("exit", "c1")) + 1 :]
        assert [] == [name for name in after if name[0] in ("start", "exit")]
    own = [event[0] for event in events if event[1] == "c1"]
    assert own == ["create", "start", "exit", "delete"][: len(own)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    ends=st.permutations(range(4)),
    during=st.dictionaries(st.integers(1, 3), st.integers(0, 3), max_size=2),
    is_shared=st.booleans(),
)
def test_any_order_of_ends_gives_the_order_that_clients_rely_on(
    world: World, ends: list[int], during: dict[int, int], is_shared: bool
) -> None:
    """Init is number 0; others are execs, while whose start a process may end."""
    world.sink.events.clear()
    container = world.container(f"{time.monotonic_ns()}", SHARED_PIDS if is_shared else OWN_PIDS)
    container.id = container.init.id = "c1"
    container.create((), lambda: None)
    container.start()
    pids = {0: container.init.pid}

    def act(words: list[str]) -> int:
        name = int(words[words.index("--pid-file") + 1].rpartition("/e")[2].removesuffix(".pid"))
        with open(words[words.index("--pid-file") + 1]) as file:
            pids[name] = int(file.read())
        if during.get(name) in pids:
            world.reaper.exit(pids[during[name]], 1)
        return 0

    world.reaper.acts["exec"] = act
    for name in (1, 2, 3):
        container.add_exec(f"e{name}", container.init.stdio, b"{}")
        try:
            container.start_exec(container.process(f"e{name}"))
        except FailedPreconditionError:
            continue
    for name in ends:
        if name in pids:
            world.reaper.exit(pids[name], 2)
    world.run_jobs()
    events = world.events()
    check_order(events)
    started = [event[1] for event in events if event[0] == "start"]

    assert sorted(started) == sorted(event[1] for event in events if event[0] == "exit")
    container.delete(None)
    assert [("delete", "c1")] == world.events()


def test_starts_and_ends_in_many_threads_keep_the_order(world: World) -> None:
    """Execs come and go while init dies somewhere in between."""
    container = world.running()
    stop = threading.Event()
    alive: list[int] = []

    def work(number: int) -> None:
        for step in range(20):
            name = f"e{number}.{step}"
            container.add_exec(name, container.init.stdio, b"{}")
            process = container.process(name)
            try:
                container.start_exec(process)
            except FailedPreconditionError:
                return
            alive.append(process.pid)

    def reap() -> None:
        while not stop.is_set() or alive:
            if alive:
                world.reaper.exit(alive.pop(random.randrange(len(alive))))  # noqa: S311

    lock = threading.Lock()
    spawn = world.reaper.spawn

    def spawn_one(argv: list[str], **rest: object) -> object:
        with lock:  # the fake counts pids
            return spawn(argv, **rest)  # type: ignore[arg-type]

    world.reaper.spawn = spawn_one  # type: ignore[method-assign, assignment]
    reaping, reaped = in_thread(reap)
    workers = [in_thread(lambda number=number: work(number)) for number in range(4)]  # type: ignore[misc]
    alive.append(container.init.pid)
    for thread, _ in workers:
        thread.join()
    stop.set()
    reaping.join()

    assert [] == [error for _, errors in [*workers, (None, reaped)] for error in errors]
    events = world.events()
    check_order(events)
    assert "exit" == events[-1][0]


def test_containers_are_told_apart_by_more_than_pid(world: World) -> None:
    """A pid that was used again belongs to its new process."""
    first = world.running("c1")
    world.reaper.exit(first.init.pid, 7)
    second: Container = world.container("c2")
    world.reaper._pid = FIRST_PID  # the next one is the first one's again
    second.create((), lambda: None)
    second.start()
    world.events()
    world.reaper.exit(second.init.pid, 5)

    assert [("exit", "c2", "5", "stopped")] == world.events()
    assert first.init.pid == second.init.pid
    assert first.init.exit is not None
    assert 7 == first.init.exit.status
