"""Reaping: every child's exit, found once, told to whom it concerns, never lost.

Rule: the only place that waits for children.  A spawn registers its pid under the lock that the reap loop takes, so
no exit can slip between.  Exits of processes that nobody spawned (containers' own, adopted as subreaper) go to the
open windows and to the one listener; what nobody knows is consumed in silence.  The monitor hears of all of them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeVar

from shim.host import process
from shim.runtime import tracing

T = TypeVar("T")


class Exit(NamedTuple):
    """How a process ended: its exit code, or 128 + signal; `at` is seconds since the epoch."""

    pid: int
    status: int
    at: float


_CHILDREN: Final = threading.Lock()
"""Guards every child's exit and who is to be told of it; never held for long."""


class Child:
    """A process that this shim spawned; its exit arrives from the reaper."""

    __slots__ = ("_callbacks", "_done", "_exit", "_reaper", "pid")

    def __init__(self, reaper: Reaper | None = None) -> None:
        self.pid: int = 0
        self._callbacks: list[Callable[[Exit], object]] = []
        self._reaper = reaper
        self._exit: Exit | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def finish(self, exit_: Exit) -> list[Callable[[Exit], object]]:
        """Wake whoever waits, and return who is to be called; the reaper calls it, once."""
        with _CHILDREN:
            self._exit = exit_
            callbacks, self._callbacks = self._callbacks, []
        self._done.release()
        return callbacks

    def on_exit(self, callback: Callable[[Exit], object]) -> None:
        """Call `callback(exit)` when it has ended: now if it has, else on the event loop, which it must not block."""
        with _CHILDREN:
            if self._exit is None:
                self._callbacks.append(callback)
                return
        callback(self._exit)

    def kill(self, signum: int) -> None:
        """Send a signal, if the process has not ended."""
        if self._reaper is not None:
            self._reaper.kill(self, signum)

    def wait(self, timeout_s: float | None = None) -> Exit | None:
        """Return the exit, or None when `timeout_s` passed first."""
        if self._done.acquire(timeout=-1 if timeout_s is None else timeout_s):
            self._done.release()
        return self._exit


class Window:
    """All exits seen since the window was opened, by pid: for a process that may end before its pid is known."""

    __slots__ = ("_reaper", "exits")

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self.exits: dict[int, Exit] = {}

    def close(self) -> None:
        """Stop collecting; closing twice is fine."""
        self._reaper.close_window(self)


def _show(error: Exception) -> None:
    sys.excepthook(type(error), error, error.__traceback__)


class Reaper:
    """Collects exits on SIGCHLD.  `listener` hears those of processes that were not spawned here, `on_exit` all.

    What these or a child's callbacks raise goes to `on_error`, and keeps no exit from anybody else.  `spawn` and
    `open_window` are safe from any thread; `reap` belongs to the loop that gets the signal.
    """

    def __init__(
        self,
        listener: Callable[[Exit], object] = lambda _exit: None,
        on_error: Callable[[Exception], None] = _show,
    ) -> None:
        self.listener = listener
        self.on_error = on_error
        self.on_exit: Callable[[Exit], object] | None = None
        self._lock = threading.Lock()
        self._children: dict[int, Child] = {}
        self._windows: set[Window] = set()
        self._untold = 0  # the pid that has been reaped and is being told of

    def spawn(
        self,
        argv: list[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        pass_fds: Mapping[int, int] | None = None,
        new_session: bool = False,
        folder: str | None = None,
    ) -> Child:
        """Start a program found on PATH; descriptors left None are /dev/null, the rest is as in `process.spawn`.

        Raises:
            OSError: It cannot be started; FileNotFoundError when it is not on PATH.
        """
        file = _find(argv[0])
        child = Child(self)
        environment = tracing.traced_environment(process.child_env()) if env is None else env
        with self._lock:
            child.pid = process.spawn(
                file,
                argv,
                environment,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=pass_fds,
                new_session=new_session,
                folder=folder,
            )
            self._children[child.pid] = child
        return child

    def kill(self, child: Child, signum: int) -> None:
        """Send a signal to a child that has not been reaped; never to another process that got its pid since."""
        with self._lock:
            if self._children.get(child.pid) is child:
                os.kill(child.pid, signum)

    def kill_adopted(self, pid: int, signum: int, has_ended: Callable[[], bool]) -> None:
        """Send a signal to a process that was not spawned here, unless it has been reaped: its pid may be another's.

        `has_ended()` says whether the listener, or a window, has heard of its end.

        Raises:
            OSError: The system refuses; ProcessLookupError when it has ended.
        """
        with self._lock:
            if pid == self._untold or has_ended():
                raise ProcessLookupError(3, "No such process")
            os.kill(pid, signum)

    def open_window(self) -> Window:
        """Start collecting all exits; close it in every path."""
        window = Window(self)
        with self._lock:
            self._windows.add(window)
        return window

    def close_window(self, window: Window) -> None:
        """Stop collecting for a window."""
        with self._lock:
            self._windows.discard(window)

    def reap(self) -> None:
        """Collect every exit there is; several may have come with one signal."""
        while True:
            with self._lock:
                self._untold = 0
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    return
                if pid == 0:
                    return
                exit_ = Exit(pid, _code(status), time.time())
                self._untold = pid
                child = self._children.pop(pid, None)
                if child is None:
                    for window in self._windows:
                        window.exits[pid] = exit_
            if self.on_exit is not None:
                self.tell(self.on_exit, exit_)
            for callback in child.finish(exit_) if child is not None else [self.listener]:
                self.tell(callback, exit_)

    def tell(self, callback: Callable[[T], object], exit_: T) -> None:
        """Call `callback(exit_)`; what it raises is reported and stops nothing."""
        try:
            callback(exit_)
        except Exception as error:
            self.on_error(error)


class ForegroundReaper:
    """Spawns for a process without an event loop (`delete`, `-info`): each child is waited for by its own pid."""

    def spawn(
        self,
        argv: list[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        pass_fds: Mapping[int, int] | None = None,
        folder: str | None = None,
    ) -> ForegroundChild:
        """Start a program found on PATH; as `Reaper.spawn`."""
        file = _find(argv[0])
        environment = process.child_env() if env is None else env
        pid = process.spawn(
            file, argv, environment, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=pass_fds, folder=folder
        )
        return ForegroundChild(pid)


class ForegroundChild:
    """A child of a process without an event loop."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exit: Exit | None = None

    def kill(self, signum: int) -> None:
        """Send a signal, if the process has not ended."""
        if self.exit is None:
            os.kill(self.pid, signum)

    def wait(self, timeout_s: float | None = None) -> Exit | None:
        """Return the exit, or None when `timeout_s` passed first."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self.exit is None:
            pid, status = os.waitpid(self.pid, 0 if deadline is None else os.WNOHANG)
            if pid:
                self.exit = Exit(pid, _code(status), time.time())
            elif deadline is not None:
                if time.monotonic() >= deadline:
                    return None
                time.sleep(0.005)
        return self.exit


def _find(name: str) -> str:
    file = name if "/" in name else process.find_executable(name)
    if file is None:
        raise FileNotFoundError(2, "executable file not found in $PATH", name)
    return file


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code
