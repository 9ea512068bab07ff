"""One process of a container: its state, its stdio, how it ended, and who waits for that.

Rule: `operate` serialises what clients ask of the process; state and exit change under a lock of their own that is
never held for long, so State and Wait always answer at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shim.engine.stdio import Stdio
from shim.engine.task import EXEC, INIT, Act, State, Step, advance, refusal
from shim.errors import BusyError

if TYPE_CHECKING:
    from shim.engine.binary import LoggedStreams
    from shim.engine.console import Console
    from shim.engine.container import Container
    from shim.engine.stdio import Streams
    from shim.runtime.reaper import Exit

    AnyStreams = Streams | Console | LoggedStreams


class Process:
    """The init process of `container` (its id is the container's) or an exec with a `spec` to run."""

    def __init__(
        self,
        container: Container,
        process_id: str,
        stdio: Stdio,
        spec: bytes | None = None,
        state: State = State.CREATED,
    ) -> None:
        self.container = container
        self.id = process_id
        self.stdio = stdio
        self.spec = spec
        self.is_init: bool = spec is None
        self.pid = 0
        self.streams: AnyStreams | None = None
        self._operation = threading.Lock()
        self._table = INIT if self.is_init else EXEC
        self._lock = threading.Lock()
        self._state = state
        self._exit: Exit | None = None
        self._waiters: list[Callable[[Exit | None], None]] = []
        self._is_released = False
        self._closes_stdin = False

    @property
    def state(self) -> State:
        """Where the process stands right now."""
        return self._state

    @property
    def exit(self) -> Exit | None:
        """How it ended, or None while it has not."""
        return self._exit

    @contextmanager
    def operate(self, deadline: float | None = None) -> Iterator[None]:
        """Wait until nothing else is done to the process, and keep others out.

        Raises:
            BusyError: `deadline`, a time by `time.monotonic()`, came first.
        """
        if not self._operation.acquire(timeout=-1 if deadline is None else max(0.0, deadline - time.monotonic())):
            raise BusyError(f"another operation on process {self.id} of container {self.container.id} goes on")
        try:
            yield
        finally:
            self._operation.release()

    @property
    def is_busy(self) -> bool:
        """True while an operation on the process goes on."""
        return self._operation.locked()

    def require(self, act: Act) -> None:
        """Raise what a client must hear if the process's state does not allow `act`."""
        error = refusal(act, self._state, is_init=self.is_init)
        if error is not None:
            raise error

    def move(self, step: Step) -> None:
        """Change state.

        Raises:
            ProcessStateError: The state has no such step.
        """
        with self._lock:
            self._state = advance(self._table, self._state, step)

    def settle(self, step: Step) -> None:
        """Change state after a step that took time, unless the process has exited meanwhile."""
        with self._lock:
            if step in self._table[self._state]:
                self._state = advance(self._table, self._state, step)

    def finish(self, exit_: Exit) -> None:
        """Record the exit and release who waits for it; only the first counts."""
        with self._lock:
            if self._exit is not None:
                return
            self._exit = exit_
            self._state = advance(self._table, self._state, Step.EXIT)
            waiters, self._waiters = self._waiters, []
        if self.streams is not None:
            self.streams.process_exited()
        for waiter in waiters:
            waiter(exit_)

    def release(self) -> None:
        """Let who waits go without an exit: the process will never run."""
        with self._lock:
            self._is_released = True
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter(None)

    def on_exit(self, waiter: Callable[[Exit | None], None]) -> None:
        """Call `waiter(exit)` when the process has ended, now if it has; None means that it never ran."""
        with self._lock:
            if self._exit is None and not self._is_released:
                self._waiters.append(waiter)
                return
            exit_ = self._exit
        waiter(exit_)

    def forget_waiter(self, waiter: Callable[[Exit | None], None]) -> None:
        """Do not call `waiter` any more: whom it would tell is gone."""
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def attach(self, streams: AnyStreams) -> None:
        """Give the process its stdio; a CloseIO that came before is carried out."""
        self.streams = streams
        if self._closes_stdin:
            streams.close_stdin()

    def close_stdin(self) -> None:
        """Close the shim's hold on stdin; before the process has stdio it is remembered."""
        self._closes_stdin = True
        streams = self.streams
        if streams is not None:
            streams.close_stdin()

    def close_streams(self) -> None:
        """Close stdio for good."""
        streams, self.streams = self.streams, None
        if streams is not None:
            streams.close()
