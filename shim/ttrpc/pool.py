"""Threads for handlers that block.

Rule: grows on demand and shrinks when idle, and never makes a job wait for another one: calls that depend on each other
would deadlock on a bounded pool (ttrpc's trap with `Wait`).  At most one thread is on its way at a time, and before it
runs a job it sends for the next if more jobs wait; so many short jobs are run by few threads, and no job behind a long
one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

Job = Callable[[], None]


class WorkerPool:
    """Runs each job as soon as a thread is there: one that has just finished another, an idle one, or a new one.

    An idle thread ends after `idle_s` seconds.
    """

    def __init__(self, on_error: Callable[[Exception], None], *, idle_s: float = 10.0) -> None:
        self._on_error = on_error
        self.idle_s: float = idle_s
        self._lock = threading.Lock()
        self._jobs: deque[Job] = deque()
        self._idle: list[Any] = []  # the gates, locks, where threads wait; the latest is last and goes first
        self._is_coming = False  # a thread has been sent for and has not looked at the jobs yet
        self._threads = 0

    @property
    def threads(self) -> int:
        """How many threads there are, busy or idle."""
        return self._threads

    def submit(self, job: Job) -> None:
        """Run `job()` on a thread of the pool; safe from any thread.

        Raises:
            RuntimeError: No thread can be started, and none is there.
        """
        with self._lock:
            self._jobs.append(job)
            if self._is_coming:
                return
        try:
            self._send_for_one()
        except RuntimeError:
            with self._lock:
                if self._threads or job not in self._jobs:
                    return  # one that is busy will come to it
                self._jobs.remove(job)
            raise

    def _send_for_one(self) -> None:
        """Wake a thread, or start one."""
        with self._lock:
            if self._is_coming or not self._jobs:
                return
            self._is_coming = True
            gate = self._idle.pop() if self._idle else None
            if gate is None:
                self._threads += 1
        if gate is not None:
            gate.release()
            return
        try:
            threading.Thread(target=self._work, name="worker", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._is_coming = False
                self._threads -= 1
            raise

    def _work(self) -> None:
        gate = threading.Lock()
        gate.acquire()
        is_coming = True
        while True:
            with self._lock:
                if is_coming:
                    is_coming = self._is_coming = False
                job = self._jobs.popleft() if self._jobs else None
                if job is None:
                    self._idle.append(gate)
                is_more = bool(self._jobs) and not self._is_coming
            if job is None:
                if not self._wait(gate):
                    return
                is_coming = True
                continue
            try:
                if is_more:
                    self._send_for_one()
            except RuntimeError as error:  # no more threads can be had: those that are there do it
                self._on_error(error)
            try:
                job()
            except Exception as error:
                self._on_error(error)
            del job  # an idle thread must not keep its last call alive

    def _wait(self, gate: Any) -> bool:
        """Wait to be sent for; False when it has been long enough."""
        if gate.acquire(timeout=self.idle_s):
            return True
        with self._lock:
            if gate in self._idle:
                self._idle.remove(gate)
                self._threads -= 1
                return False
        gate.acquire()  # sent for at this moment
        return True
