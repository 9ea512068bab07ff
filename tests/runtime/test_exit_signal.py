"""The latch that ends a shim: set once, told to all, from any thread."""

import asyncio
import threading

import pytest

from shim import aio
from shim.runtime.exit_signal import ExitSignal
from tests.fakes import PATIENCE_S, wait_until


def test_a_signal_before_a_wait_is_kept() -> None:
    """And stays, however often it is asked for."""
    latch = ExitSignal()
    before = latch.is_set, latch.wait(0.0)
    latch.signal()
    latch.signal()

    assert (False, False) == before
    assert [True] * 3 == [latch.is_set, latch.wait(), latch.wait(0.0)]


def test_every_thread_that_waits_is_woken() -> None:
    """By one signal."""
    latch = ExitSignal()
    woken: list[bool] = []
    threads = [threading.Thread(target=lambda: woken.append(latch.wait(PATIENCE_S))) for _ in range(8)]
    for thread in threads:
        thread.start()
    latch.signal()
    for thread in threads:
        thread.join()

    assert [True] * 8 == woken


def test_callbacks_are_called_once_each() -> None:
    """Those from before by who signals, later ones at once; one may add another, as no lock is held."""
    latch = ExitSignal()
    told: list[str] = []

    def first() -> None:
        told.append("first")
        latch.on_signal(lambda: told.append("of first"))
        latch.signal()

    latch.on_signal(first)
    latch.on_signal(lambda: told.append("second"))
    nothing = list(told)
    latch.signal()
    latch.signal()
    latch.on_signal(lambda: told.append("late"))

    assert [] == nothing
    assert ["first", "of first", "second", "late"] == told


def test_a_callback_that_fails_keeps_nobody_else_from_hearing() -> None:
    """The daemon itself is one of them: it must end all the same."""
    latch = ExitSignal()
    told: list[str] = []
    latch.on_signal(lambda: 1 / 0)
    latch.on_signal(lambda: told.append("daemon"))

    with pytest.raises(ZeroDivisionError):
        latch.signal()
    assert ["daemon"] == told
    assert latch.is_set


def test_no_callback_is_lost_when_many_threads_signal_and_add() -> None:
    """Each is called exactly once."""
    for _ in range(20):
        latch = ExitSignal()
        told: list[int] = []
        gate = threading.Barrier(6)

        def add(latch: ExitSignal, told: list[int], gate: threading.Barrier, start: int) -> None:
            gate.wait()
            for number in range(start, start + 50):
                latch.on_signal(lambda number=number: told.append(number))  # type: ignore[misc]

        def signal(latch: ExitSignal, gate: threading.Barrier) -> None:
            gate.wait()
            latch.signal()

        threads = [threading.Thread(target=add, args=(latch, told, gate, n * 50)) for n in range(4)]
        threads += [threading.Thread(target=signal, args=(latch, gate)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert [*range(200)] == sorted(told)


def test_the_asyncio_latch_is_set_the_moment_it_is_signalled() -> None:
    """Whether or not somebody waits already; everybody is woken, and late ones do not wait."""

    async def story() -> list[object]:
        latch = aio.ExitSignal()
        waiting = [asyncio.create_task(latch.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        before = latch.is_set
        latch.signal()
        after = latch.is_set
        await asyncio.wait_for(asyncio.gather(*waiting, latch.wait()), PATIENCE_S)
        return [before, after]

    assert [False, True] == asyncio.run(story())


def test_the_asyncio_latch_may_be_signalled_before_there_is_a_loop() -> None:
    """A shim's constructor may do that."""
    latch = aio.ExitSignal()
    latch.signal()

    asyncio.run(asyncio.wait_for(latch.wait(), PATIENCE_S))
    assert latch.is_set


def test_a_signal_of_another_thread_wakes_the_loop() -> None:
    """Also at the very moment when the wait begins."""

    async def race() -> None:
        latch = aio.ExitSignal()
        gate = threading.Barrier(2)

        def signal() -> None:
            gate.wait()
            latch.signal()

        thread = threading.Thread(target=signal)
        thread.start()
        gate.wait()
        await asyncio.wait_for(latch.wait(), PATIENCE_S)
        thread.join()

    for _ in range(50):
        asyncio.run(race())


def test_a_given_up_wait_leaves_nothing_behind() -> None:
    """Who polls with a timeout for days must not fill the memory; the latch works on."""

    async def story() -> tuple[int, bool]:
        latch = aio.ExitSignal()
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(latch.wait(), 0.0001)
        kept = len(latch._latch._callbacks)
        thread = threading.Thread(target=latch.signal)
        thread.start()
        await asyncio.wait_for(latch.wait(), PATIENCE_S)
        thread.join()
        return kept, latch.is_set

    assert (1, True) == asyncio.run(story())


def test_a_signal_after_the_loop_has_ended_is_no_error() -> None:
    """A thread of the shim may be late."""
    latch = aio.ExitSignal()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(latch.wait(), 0.001)

    asyncio.run(give_up())
    thread = threading.Thread(target=latch.signal)
    thread.start()
    thread.join()

    assert wait_until(lambda: latch.is_set)
