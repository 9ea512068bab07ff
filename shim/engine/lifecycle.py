"""The order of events: the one place that says started, exited and deleted to containerd.

Rules, per container: create, start, exit of init, delete; exec-added, exec-started, exit of the exec; all execs' exits
before init's, even if init was reaped first; no exec starts after that; one exit for each process that was announced.
The lock here is never held while a runtime runs.  Spec: contract 6.19 and 6.20.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from shim.engine.task import Step
from shim.errors import FailedPreconditionError

if TYPE_CHECKING:
    from shim.engine.container import Container
    from shim.engine.process import Process
    from shim.runtime.reaper import Exit, Reaper, Window


class EventSink(Protocol):
    """Who tells containerd; each method queues one event and returns at once."""

    def created(self, container: Container) -> None:
        """The container's init waits to be started."""

    def started(self, process: Process) -> None:
        """The process runs."""

    def exited(self, process: Process) -> None:
        """The process has ended; its exit is recorded."""

    def deleted(self, container: Container) -> None:
        """The container is gone."""

    def exec_added(self, process: Process) -> None:
        """An exec has been registered."""

    def paused(self, container: Container) -> None:
        """The container is frozen."""

    def resumed(self, container: Container) -> None:
        """The container runs again."""

    def checkpointed(self, container: Container, path: str) -> None:
        """The container has been written to a folder."""

    def oom(self, container: Container) -> None:
        """The kernel killed a process of the container for memory."""


class Lifecycle:
    """Knows which processes run, by pid, and decides when an exit is told."""

    def __init__(self, reaper: Reaper, sink: EventSink, submit: Callable[[Callable[[], None]], None]) -> None:
        self.sink = sink
        self._reaper = reaper
        self._submit = submit
        self._lock = threading.Lock()
        self._running: dict[int, Process] = {}
        self._starting: dict[int, Window] = {}
        reaper.listener = self._reaped

    def require_init(self, container: Container) -> None:
        """Raise FailedPreconditionError if the container's init has ended: no exec can start then."""
        if container.init_has_exited:
            text = f"container {container.id} init process is not running: failed precondition"
            raise FailedPreconditionError(text)

    def launch(self, process: Process) -> Launch:
        """Return a context in which a runtime brings `process` to life; see `Launch`.

        Raises:
            FailedPreconditionError: The process is an exec and the container's init has ended.
        """
        with self._lock:
            container = process.container
            if not process.is_init:
                self.require_init(container)
                container.execs_alive += 1
            elif process.pid:
                # Its exit counts as early from here on: start must be told first.
                self._running.pop(process.pid, None)
            window = self._reaper.open_window()
            if process.pid:
                self._starting[process.pid] = window
        return Launch(self, process, window)

    def launched(self, process: Process, window: Window, announce: Callable[[], None] | None) -> None:
        """Announce a process whose pid is now known, and deal with its exit if that came already."""
        with self._lock:
            self._starting.pop(process.pid, None)
            if announce is not None:
                announce()
            exit_ = window.exits.get(process.pid)
            if exit_ is None:
                self._running[process.pid] = process
            else:
                self._ended(process, exit_)

    def launch_failed(self, process: Process, window: Window) -> None:
        """Take back what `launch` did; an init that was created lives on, or has ended meanwhile."""
        with self._lock:
            if not process.is_init:
                self._exec_ended(process.container)
            elif process.pid:
                self._starting.pop(process.pid, None)
                exit_ = window.exits.get(process.pid)
                if exit_ is not None:
                    self._ended(process, exit_)
                elif not process.container.init_has_exited:
                    self._running[process.pid] = process

    def _reaped(self, exit_: Exit) -> None:
        with self._lock:
            process = self._running.pop(exit_.pid, None)
            if process is not None:
                self._ended(process, exit_)
            elif exit_.pid in self._starting:
                # Reaped before the window was opened, told of after the process was taken out of those that run.
                self._starting[exit_.pid].exits.setdefault(exit_.pid, exit_)

    def _ended(self, process: Process, exit_: Exit) -> None:
        """Tell an exit, or put it off; the lock is held."""
        container = process.container
        if not process.is_init:
            self._finish(process, exit_)
            self._exec_ended(container)
            return
        container.init_has_exited = True
        if container.needs_cleanup_at_exit:
            container.postponed_exit = exit_
            container.is_cleaning_up = True
            self._submit(lambda: self._clean_up(container))
        elif container.execs_alive:
            container.postponed_exit = exit_
        else:
            self._finish(process, exit_)

    def _clean_up(self, container: Container) -> None:
        try:
            container.clean_up_at_exit()
        finally:
            with self._lock:
                container.is_cleaning_up = False
                self._finish_postponed(container)

    def _exec_ended(self, container: Container) -> None:
        container.execs_alive -= 1
        self._finish_postponed(container)

    def _finish_postponed(self, container: Container) -> None:
        exit_ = container.postponed_exit
        if exit_ is not None and not container.execs_alive and not container.is_cleaning_up:
            container.postponed_exit = None
            self._finish(container.init, exit_)

    def _finish(self, process: Process, exit_: Exit) -> None:
        if process.is_init:
            process.container.memory.stop()
        process.finish(exit_)
        self.sink.exited(process)


class Launch:
    """While a runtime starts a process: collects exits, since the process may end before its pid is known.

    Leaving without `done` means that it failed.
    """

    def __init__(self, lifecycle: Lifecycle, process: Process, window: Window) -> None:
        self._lifecycle = lifecycle
        self._process = process
        self._window = window
        self._is_done = False

    def __enter__(self) -> Launch:
        return self

    def done(self, announce: Callable[[], None]) -> None:
        """The process has its pid: move it on, announce it, and tell its exit if it has ended already."""
        self._is_done = True
        self._lifecycle.launched(self._process, self._window, announce)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._window.close()
        if not self._is_done:
            self._process.settle(Step.START_FAILED)
            self._lifecycle.launch_failed(self._process, self._window)
