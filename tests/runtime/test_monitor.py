"""Exits for whoever asks: by pid, by exec, of everything; early ones kept, others' left alone."""

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from shim.runtime.monitor import ExecSubject, ExitEvent, Monitor, Subscription
from shim.runtime.reaper import Child, Exit, Reaper
from tests.fakes import PATIENCE_S, wait_until


class Stage:
    """A reaper that is told what ended, and its monitor."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.reaper = Reaper(on_error=self.errors.append)
        self.monitor = Monitor(self.reaper)

    def exit(self, pid: int, status: int = 0) -> Exit:
        """Let a process end, as the reaper tells it."""
        exit_ = Exit(pid, status, time.time())
        if self.reaper.on_exit is not None:
            self.reaper.on_exit(exit_)
        return exit_


@pytest.fixture
def stage() -> Stage:
    """A monitor that nobody has asked yet."""
    return Stage()


def drain(subscription: Subscription) -> list[ExitEvent]:
    """Take all that has come."""
    events = []
    while (event := subscription.next(0.0)) is not None:
        events.append(event)
    return events


def test_a_subscription_hears_of_its_pid_alone(stage: Stage) -> None:
    """Others' exits are not its business."""
    with stage.monitor.subscribe(7) as subscription:
        stage.exit(8)
        expected = stage.exit(7, 3)
        stage.monitor.notify(ExecSubject("c", "7"), 0)

        assert [ExitEvent(7, expected)] == drain(subscription)


def test_a_subscription_to_everything_hears_of_all_in_order(stage: Stage) -> None:
    """Pids and execs alike."""
    with stage.monitor.subscribe() as subscription:
        first, second = stage.exit(7), stage.exit(8)
        stage.monitor.notify(ExecSubject("c", "e"), 5)
        events = drain(subscription)

    assert [7, 8, ExecSubject("c", "e")] == [event.subject for event in events]
    assert [first, second] == [event.exit for event in events[:2]]
    assert (0, 5) == (events[2].exit.pid, events[2].exit.status)
    assert abs(events[2].exit.at - time.time()) < 60


def test_an_exec_has_its_own_exits(stage: Stage) -> None:
    """Not those of another exec, container, or of the container's init."""
    subject = ExecSubject("c", "e")
    with stage.monitor.subscribe(subject) as subscription:
        for other in (ExecSubject("c"), ExecSubject("c", "f"), ExecSubject("d", "e")):
            stage.monitor.notify(other, 1)
        stage.monitor.notify(subject, 2)

        assert [(subject, 2)] == [(event.subject, event.exit.status) for event in drain(subscription)]


def test_an_exit_may_be_notified_by_its_pid(stage: Stage) -> None:
    """Of a process that somebody else has waited for."""
    with stage.monitor.subscribe(7) as subscription:
        stage.monitor.notify(7, 9)
        exit_ = subscription.wait(7, 0.0)

    assert exit_ is not None
    assert (7, 9) == exit_[:2]


def test_an_exit_from_before_its_pid_was_known_is_kept(stage: Stage) -> None:
    """And those met on the way stay for others to ask for, in order."""
    with stage.monitor.subscribe() as subscription:
        exits = [stage.exit(pid, pid) for pid in (5, 6, 7, 6)]

        assert exits[2] == subscription.wait(7, 0.0)
        assert exits[1] == subscription.wait(6, 0.0)
        assert [exits[0], exits[3]] == [event.exit for event in drain(subscription)]
        assert subscription.wait(7, 0.0) is None


def test_subscriptions_take_nothing_from_each_other(stage: Stage) -> None:
    """Each has every exit since it was made."""
    first = stage.monitor.subscribe()
    stage.exit(1)
    second = stage.monitor.subscribe()
    stage.exit(2)

    assert [1, 2] == [event.subject for event in drain(first)]
    assert [2] == [event.subject for event in drain(second)]


def test_a_closed_subscription_hears_nothing(stage: Stage) -> None:
    """Closing twice is fine; what came before can still be had."""
    subscription = stage.monitor.subscribe()
    stage.exit(1)
    subscription.close()
    subscription.close()
    stage.exit(2)

    assert [1] == [event.subject for event in drain(subscription)]
    assert subscription.next() is None
    assert subscription.wait(2) is None


@pytest.mark.parametrize("ask", [lambda each: each.next(), lambda each: each.wait(7)], ids=["next", "wait"])
def test_a_close_lets_go_who_waits(stage: Stage, ask: Callable[[Subscription], object]) -> None:
    """Their exit will never come."""
    subscription = stage.monitor.subscribe()
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(ask(subscription)))
    thread.start()
    subscription.close()
    thread.join(PATIENCE_S)

    assert [None] == answers


def test_waiting_gives_up_in_time(stage: Stage) -> None:
    """The exit is not lost by that."""
    with stage.monitor.subscribe(7) as subscription:
        start = time.monotonic()
        waited = subscription.next(0.02), subscription.wait(7, 0.02)
        took_s = time.monotonic() - start
        expected = stage.exit(7)

        assert (None, None) == waited
        assert took_s >= 0.04
        assert expected == subscription.wait(7, 0.0)


def test_callbacks_hear_of_everything(stage: Stage) -> None:
    """One may subscribe, close, and add others, as no lock is held; what one raises is reported, and stops nothing."""
    told: list[object] = []

    def first(event: ExitEvent) -> None:
        told.append(event.subject)
        stage.monitor.subscribe(1).close()
        if event.subject == 1:
            stage.monitor.on_exit(lambda event: told.append(("late", event.subject)))
            raise ZeroDivisionError("a bug")

    stage.monitor.on_exit(first)
    stage.monitor.on_exit(lambda event: told.append(("second", event.subject)))
    stage.exit(1)
    stage.exit(2)

    assert [1, ("second", 1), 2, ("second", 2), ("late", 2)] == told
    assert ["a bug"] == [str(error) for error in stage.errors]


def test_many_threads_each_get_their_own_exit(stage: Stage) -> None:
    """Out of one subscription that all of them share."""
    found: list[tuple[int, int]] = []
    with stage.monitor.subscribe() as subscription:

        def wait(pid: int) -> None:
            exit_ = subscription.wait(pid, PATIENCE_S)
            assert exit_ is not None
            found.append((pid, exit_.status))

        def end(pids: range) -> None:
            for pid in pids:
                stage.exit(pid, pid % 256)

        threads = [threading.Thread(target=wait, args=(pid,)) for pid in range(40)]
        threads += [threading.Thread(target=end, args=(range(start, 40, 4),)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        left = drain(subscription)

    assert [(pid, pid) for pid in range(40)] == sorted(found)
    assert [] == left


def test_subscribing_while_others_end_misses_nothing(stage: Stage) -> None:
    """Whoever subscribes before the exit has it."""
    missed: list[int] = []

    def work(start: int) -> None:
        for pid in range(start, start + 50):
            with stage.monitor.subscribe(pid) as subscription:
                stage.exit(pid)
                if subscription.wait(pid, 0.0) is None:
                    missed.append(pid)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 400, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [] == missed


def test_a_child_tells_its_end_whenever_it_is_asked() -> None:
    """Callbacks from before and after; each once, with the exit, and `wait` knows it by then."""
    child = Child()
    exit_ = Exit(7, 3, 1.0)
    told: list[object] = []
    child.on_exit(lambda got: told.append((got, child.wait(0.0))))
    child.on_exit(lambda got: child.on_exit(told.append))
    for callback in child.finish(exit_):
        callback(exit_)
    child.on_exit(told.append)

    assert [(exit_, exit_), exit_, exit_] == told


def test_no_callback_of_a_child_is_lost_to_its_end() -> None:
    """However the two race."""
    for _ in range(30):
        child = Child()
        exit_ = Exit(7, 0, 1.0)
        told: list[Exit] = []
        gate = threading.Barrier(5)

        def add(child: Child, told: list[Exit], gate: threading.Barrier) -> None:
            gate.wait()
            for _ in range(20):
                child.on_exit(told.append)

        threads = [threading.Thread(target=add, args=(child, told, gate)) for _ in range(4)]
        for thread in threads:
            thread.start()
        gate.wait()
        for callback in child.finish(exit_):
            callback(exit_)
        for thread in threads:
            thread.join()

        assert [exit_] * 80 == told


def end_children_whose_callbacks_fail() -> tuple[list[int], int]:
    """Reap three children that end with one signal, while everybody who hears of it has a bug."""
    errors: list[Exception] = []
    told: list[int] = []
    reaper = Reaper(on_error=errors.append)
    monitor = Monitor(reaper)
    monitor.on_exit(lambda event: 1 / 0)
    children = [reaper.spawn(["sh", "-c", f"exit {status}"]) for status in (4, 5, 6)]
    for child in children:
        child.on_exit(lambda exit_: 1 / 0)
        child.on_exit(lambda exit_: told.append(exit_.status))

    def all_ended() -> bool:
        reaper.reap()
        return all(child.wait(0.0) for child in children)

    assert wait_until(all_ended)
    orphan = os.posix_spawn("/bin/true", ["true"], {})

    def listen(exit_: Exit) -> None:
        told.append(int(exit_.pid == orphan))
        raise ZeroDivisionError

    reaper.listener = listen

    def orphan_ended() -> bool:
        reaper.reap()
        return 1 in told

    assert wait_until(orphan_ended)
    return sorted(told), len(errors)


def test_a_bug_in_a_callback_costs_nobody_an_exit() -> None:
    """Not the others of the same child, not other children, not the zombie."""
    read_end, write_end = os.pipe()
    pid = os.fork()  # a reaper takes every child of its process
    if not pid:
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.write(write_end, str(end_children_whose_callbacks_fail()).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end) as answer:
        text = answer.read()
    os.waitpid(pid, 0)

    # Two for each child, the monitor's and its own, two for the orphan.
    assert str(([1, 4, 5, 6], 8)) == text
