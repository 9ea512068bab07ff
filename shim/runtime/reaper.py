"""Reaping: every child's exit, found once, told to whom it concerns, never lost.

Rule: the only place that waits for children.  No lock is held while a child becomes its program, which may take long;
an exit that may be such a child's is kept until its spawn has returned.  Exits of processes that were not spawned here
(containers' own, adopted as subreaper) go to the open windows and to the one listener; exits of unknown pids are
discarded.  The monitor hears of all of them.
"""

from __future__ import annotations

import os
import select
import signal
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
        self._spawning: list[process.Spawning] = []
        self._kept: list[Exit] = []  # reaped, and perhaps those of children whose spawn has not returned

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
        under_way = process.Spawning()
        spawned: process.Spawned | None = None
        with self._lock:
            self._spawning.append(under_way)
        try:
            spawned = process.spawn(
                file,
                argv,
                environment,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=pass_fds,
                new_session=new_session,
                folder=folder,
                under_way=under_way,
            )
        finally:
            self._enter(child, under_way, spawned)
        return child

    def _enter(self, child: Child, under_way: process.Spawning, spawned: process.Spawned | None) -> None:
        """Put a child into the books, or forget one that never was, and have the loop tell of exits kept for it."""
        with self._lock:
            self._spawning.remove(under_way)
            if spawned is not None:
                child.pid = spawned.pid
                self._children[child.pid] = child
            else:
                self._kept = [exit_ for exit_ in self._kept if exit_.pid != under_way.pid]
            has_kept = bool(self._kept)
        if has_kept:
            os.kill(os.getpid(), signal.SIGCHLD)
        if spawned is not None and spawned.pidfd >= 0:
            os.close(spawned.pidfd)  # a pid is safe here: it is reaped and signalled under one lock

    def kill(self, child: Child, signum: int) -> None:
        """Send a signal to a child that has not been reaped; never to another process that got its pid since."""
        with self._lock:
            if self._children.get(child.pid) is child and not self._is_kept(child.pid):
                os.kill(child.pid, signum)

    def kill_adopted(self, pid: int, signum: int, has_ended: Callable[[], bool]) -> None:
        """Send a signal to a process that was not spawned here, unless it has been reaped: its pid may be another's.

        `has_ended()` says whether the listener, or a window, has heard of its end.

        Raises:
            OSError: The system refuses; ProcessLookupError when it has ended.
        """
        with self._lock:
            if pid == self._untold or self._is_kept(pid) or has_ended():
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
                exit_ = self._next()
                if exit_ is None:
                    return
                self._untold = exit_.pid
                child = self._children.pop(exit_.pid, None)
                if child is None:
                    for window in self._windows:
                        window.exits[exit_.pid] = exit_
            if self.on_exit is not None:
                self.tell(self.on_exit, exit_)
            for callback in child.finish(exit_) if child is not None else [self.listener]:
                self.tell(callback, exit_)

    def _next(self) -> Exit | None:
        """Return an exit to tell of, one that has been kept before those that are new."""
        for exit_ in self._kept:
            if not self._may_be_spawning(exit_.pid):
                self._kept.remove(exit_)
                return exit_
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if pid == 0:
                return None
            exit_ = Exit(pid, _code(status), time.time())
            if pid in self._children or not self._may_be_spawning(pid):
                return exit_
            self._kept.append(exit_)

    def _may_be_spawning(self, pid: int) -> bool:
        return any(each.pid in (pid, -1) for each in self._spawning)

    def _is_kept(self, pid: int) -> bool:
        return any(exit_.pid == pid for exit_ in self._kept)

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
        spawned = process.spawn(
            file, argv, environment, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=pass_fds, folder=folder
        )
        return ForegroundChild(spawned)


class ForegroundChild:
    """A child of a process without an event loop."""

    def __init__(self, spawned: process.Spawned) -> None:
        self.pid = spawned.pid
        self.exit: Exit | None = None
        self._pidfd = spawned.pidfd

    def kill(self, signum: int) -> None:
        """Send a signal, if the process has not ended."""
        if self.exit is None:
            os.kill(self.pid, signum)

    def wait(self, timeout_s: float | None = None) -> Exit | None:
        """Return the exit, or None when `timeout_s` passed first."""
        if self.exit is None and (timeout_s is None or self._ends_within(timeout_s)):
            _, status = os.waitpid(self.pid, 0)
            self.exit = Exit(self.pid, _code(status), time.time())
            if self._pidfd >= 0:
                os.close(self._pidfd)
        return self.exit

    def _ends_within(self, timeout_s: float) -> bool:
        if self._pidfd >= 0:
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            return bool(poller.poll(timeout_s * 1000))
        deadline = time.monotonic() + timeout_s
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.005)
        return True


def _find(name: str) -> str:
    file = name if "/" in name else process.find_executable(name)
    if file is None:
        raise FileNotFoundError(2, "executable file not found in $PATH", name)
    return file


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code
