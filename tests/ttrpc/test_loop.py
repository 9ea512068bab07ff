"""The event loop: timers, calls from other threads, descriptors, signals, and faults that end nothing."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from shim.ttrpc.loop import FAILED, READABLE, WRITABLE, Loop
from tests.fakes import open_descriptors


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop that the test's own thread runs; what it is handed, the test ends."""
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe, (read end, write end)."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_timers_run_in_order_of_their_time(loop: Loop) -> None:
    """Not in that of their making; cancelled ones never."""
    told: list[str] = []
    loop.call_later(0.03, lambda: told.append("third"))
    loop.call_later(0.01, lambda: told.append("cancelled")).cancel()
    loop.call_later(0.0, lambda: told.append("first"))
    loop.call_later(0.02, lambda: told.append("second"))
    loop.call_later(0.04, loop.stop)
    loop.run()

    assert ["first", "second", "third"] == told


def test_a_timer_is_never_early(loop: Loop) -> None:
    """A deadline answered before its time would be a lie."""
    start = time.monotonic()
    loop.call_later(0.05, loop.stop)
    loop.run()

    assert time.monotonic() - start >= 0.05


def test_a_timer_may_make_and_cancel_others(loop: Loop) -> None:
    """While it runs."""
    told: list[str] = []
    doomed = loop.call_later(0.02, lambda: told.append("doomed"))

    def first() -> None:
        doomed.cancel()
        loop.call_later(0.0, lambda: told.append("made"))
        loop.call_later(0.04, loop.stop)

    loop.call_later(0.0, first)
    loop.run()

    assert ["made"] == told


def test_a_timer_far_away_does_no_harm(loop: Loop) -> None:
    """A client may send any deadline; epoll takes 24 days at most."""
    for delay_s in (1e7, 9.3e9, 1e300):
        loop.call_later(delay_s, lambda: None)
    threading.Timer(0.02, loop.stop).start()
    loop.run()


def test_call_soon_from_many_threads_loses_nothing(loop: Loop) -> None:
    """Each thread's calls stay in order, and all run on the loop's thread."""
    told: list[tuple[int, int]] = []
    where: set[int] = set()

    def tell(thread: int, number: int) -> None:
        told.append((thread, number))
        where.add(threading.get_ident())
        if len(told) == 8 * 500:
            loop.stop()

    def call(thread: int) -> None:
        for number in range(500):
            loop.call_soon(lambda number=number: tell(thread, number))  # type: ignore[misc]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    loop.run()
    for thread in threads:
        thread.join()

    assert {threading.get_ident()} == where
    assert [[*range(500)]] * 8 == [[number for owner, number in told if owner == thread] for thread in range(8)]


def test_call_soon_from_a_callback_runs_in_the_next_round(loop: Loop) -> None:
    """So that a chain of them starves nobody."""
    told: list[str] = []

    def chain(left: int) -> None:
        told.append("chain")
        if left:
            loop.call_soon(lambda: chain(left - 1))
        else:
            loop.stop()

    loop.call_soon(lambda: chain(3))
    loop.call_later(0.0, lambda: told.append("timer"))
    loop.run()

    assert ["chain", "timer", "chain", "chain", "chain"] == told


def test_stop_before_run_ends_it_at_once(loop: Loop) -> None:
    """A shutdown may come that early."""
    loop.stop()
    loop.run()


def test_descriptors_are_watched_as_asked(loop: Loop, pipe: tuple[int, int]) -> None:
    """Readable, writable, changed, and no more."""
    read_end, write_end = pipe
    told: list[object] = []

    def readable(events: int) -> None:
        told.append((events, os.read(read_end, 10)))
        loop.unregister(read_end)
        loop.unregister(read_end)
        loop.call_later(0.01, loop.stop)

    def writable(events: int) -> None:
        told.append(events)
        loop.modify(write_end, 0)
        os.write(write_end, b"x")

    loop.register(read_end, READABLE, readable)
    loop.register(write_end, WRITABLE, writable)
    loop.run()
    loop.unregister(write_end)

    assert [WRITABLE, (READABLE, b"x")] == told


def test_a_broken_descriptor_is_reported_unasked(loop: Loop, pipe: tuple[int, int]) -> None:
    """Even to who watches for nothing."""
    read_end, write_end = pipe
    told: list[int] = []

    def failed(events: int) -> None:
        told.append(events)
        loop.unregister(write_end)
        loop.stop()

    loop.register(write_end, 0, failed)
    spare = os.dup(read_end)
    os.close(read_end)
    os.close(spare)
    loop.run()
    os.dup2(os.open(os.devnull, os.O_RDONLY), read_end)

    assert told[0] & FAILED


def test_a_callback_that_raises_is_reported_and_the_rest_goes_on(pipe: tuple[int, int]) -> None:
    """Whatever kind of callback it is."""
    errors: list[str] = []
    told: list[str] = []
    loop = Loop(on_error=lambda error: errors.append(str(error)))

    def fail(text: str) -> None:
        raise ValueError(text)

    def ready(_events: int) -> None:
        loop.unregister(pipe[1])
        fail("descriptor")

    loop.register(pipe[1], WRITABLE, ready)
    loop.call_soon(lambda: fail("soon"))
    loop.call_soon(lambda: told.append("soon"))
    loop.call_later(0.0, lambda: fail("timer"))
    loop.call_later(0.01, lambda: told.append("timer"))
    loop.call_later(0.02, loop.stop)
    loop.run()
    loop.close()

    assert ["descriptor", "soon", "timer"] == sorted(errors)
    assert ["soon", "timer"] == told


def test_without_a_handler_errors_end_the_loop(loop: Loop) -> None:
    """The default, for who wants to see them."""
    loop.call_soon(lambda: os.close(-1))

    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.run()


def test_signals_run_on_the_loop() -> None:
    """The handler itself does nothing; several at once are one call; the rest of the wake-ups still count."""
    loop = Loop()
    told: list[str] = []
    before = signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGUSR2)
    try:
        loop.on_signal(signal.SIGUSR1, lambda: told.append("one"))
        loop.on_signal(signal.SIGUSR2, lambda: told.append("two"))
        for signum in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), signum)
        loop.call_soon(lambda: told.append("soon"))

        assert [] == told
        loop.call_later(0.02, lambda: os.kill(os.getpid(), signal.SIGUSR2))
        loop.call_later(0.04, loop.stop)
        loop.run()
    finally:
        loop.close()
        signal.signal(signal.SIGUSR1, before[0])
        signal.signal(signal.SIGUSR2, before[1])

    assert ["one", "soon", "two", "two"] == sorted(told)
    assert -1 == signal.set_wakeup_fd(-1)


def test_close_gives_every_descriptor_back() -> None:
    """A daemon forked from a process with a loop must not carry it along."""
    before = open_descriptors()
    loop = Loop()
    loop.call_soon(lambda: None)
    loop.close()

    assert before == open_descriptors()


def test_a_loop_with_rare_events_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks for the next one only while that pays."""
    loop = Loop()
    looks = 0
    look = loop._look

    def counted() -> object:
        nonlocal looks
        looks += 1
        return look()

    monkeypatch.setattr(loop, "_look", counted)
    left = 500

    def tick() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_later(0.0002, tick)
        else:
            loop.stop()

    loop.call_later(0, tick)
    loop.run()
    loop.close()

    assert 0 == left
    assert 0 < looks < 500 * 5
