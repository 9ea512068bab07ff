"""Threads for handlers that block.

Rule: grows on demand and shrinks when idle, and never makes a job wait for another one: calls that depend on each other
would deadlock on a bounded pool (ttrpc's trap with `Wait`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

Job = Callable[[], None]


class WorkerPool:
    """Runs each job at once, on an idle thread if there is one, else on a new one."""

    def __init__(self, on_error: Callable[[Exception], None], *, idle_s: float = 10.0) -> None:
        self._on_error = on_error
        self._idle_s = idle_s
        self._condition = threading.Condition(threading.Lock())
        self._jobs: deque[Job] = deque()
        self._idle = 0
        self._threads = 0

    @property
    def threads(self) -> int:
        """How many threads there are, busy or idle."""
        return self._threads

    def submit(self, job: Job) -> None:
        """Run `job()` on a thread of the pool; safe from any thread."""
        with self._condition:
            self._jobs.append(job)
            if self._idle >= len(self._jobs):
                self._condition.notify()
                return
            self._threads += 1
        threading.Thread(target=self._work, name="worker", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._condition:
                if not self._jobs:
                    self._idle += 1
                    self._condition.wait(self._idle_s)
                    self._idle -= 1
                if not self._jobs:
                    self._threads -= 1
                    return
                job = self._jobs.popleft()
            try:
                job()
            except Exception as error:
                self._on_error(error)
            del job  # an idle thread must not keep its last call alive
