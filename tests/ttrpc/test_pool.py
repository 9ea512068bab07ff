"""The pool of threads: no job waits for another."""

import threading
import weakref
from collections.abc import Callable

from shim.ttrpc.pool import WorkerPool
from tests.fakes import PATIENCE_S, wait_until


def raise_it(error: BaseException) -> Callable[[], None]:
    """Return a job that fails."""

    def job() -> None:
        raise error

    return job


def test_jobs_that_wait_for_a_later_one_do_not_deadlock() -> None:
    """200 of them, and the one that frees them comes last."""
    errors: list[Exception] = []
    pool = WorkerPool(errors.append, idle_s=0.05)
    gate, done = threading.Event(), threading.Semaphore(0)

    def wait() -> None:
        assert gate.wait(PATIENCE_S)
        done.release()

    for _ in range(200):
        pool.submit(wait)
    assert 200 == pool.threads
    pool.submit(gate.set)

    assert all(done.acquire(timeout=PATIENCE_S) for _ in range(200))
    assert wait_until(lambda: pool.threads == 0)
    assert [] == errors


def test_idle_threads_are_used_again() -> None:
    """One job after the other needs one thread."""
    pool = WorkerPool(lambda error: None, idle_s=5.0)
    names: list[int] = []
    for _ in range(20):
        done = threading.Event()
        pool.submit(lambda: names.append(threading.get_ident()))
        pool.submit(done.set)
        assert done.wait(PATIENCE_S)
        assert wait_until(lambda: len(pool._idle) == pool.threads)

    assert pool.threads <= 2
    assert 20 == len(names)


def test_idle_threads_end_after_their_time() -> None:
    """A burst leaves nothing behind, and the pool works on."""
    pool = WorkerPool(lambda error: None, idle_s=0.01)
    for _ in range(3):
        done = threading.Event()
        for _ in range(10):
            pool.submit(lambda: None)
        pool.submit(done.set)

        assert done.wait(PATIENCE_S)
        assert wait_until(lambda: pool.threads == 0)


def test_a_job_that_raises_is_reported_and_its_thread_lives() -> None:
    """The error goes to whoever made the pool."""
    errors: list[Exception] = []
    pool = WorkerPool(errors.append)
    error, done = ValueError("x"), threading.Event()
    pool.submit(raise_it(error))
    pool.submit(done.set)

    assert done.wait(PATIENCE_S)
    assert wait_until(lambda: errors == [error])
    assert 1 <= pool.threads <= 2


def test_jobs_from_many_threads_all_run_once() -> None:
    """Submitting races with growing, idling and ending."""
    pool = WorkerPool(lambda error: None, idle_s=0.001)
    counts = [0] * 4
    lock = threading.Lock()

    def count(number: int) -> None:
        with lock:
            counts[number] += 1

    def submit(number: int) -> None:
        for _ in range(300):
            pool.submit(lambda: count(number))

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wait_until(lambda: [300] * 4 == counts)
    assert wait_until(lambda: pool.threads == 0)


def test_a_job_is_forgotten_once_done() -> None:
    """An idle thread must not keep its last call, and what that holds, alive."""

    class Held:
        """What a job holds."""

    held = Held()
    seen = weakref.ref(held)
    pool = WorkerPool(lambda error: None)
    pool.submit(lambda held=held: None)  # type: ignore[misc]
    del held

    assert wait_until(lambda: seen() is None)
