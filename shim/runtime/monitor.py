"""The monitor: tells of exits, of one process, of one exec, or of all, to whoever asks.

Rule: a subscription has every exit since it was made, in order, so a process that ends before its pid is known is not
missed.  Exits come from the reaper, or from `notify` for processes that are not this system's (inside a VM).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

from shim.runtime.reaper import Exit, Reaper


class ExecSubject(NamedTuple):
    """A process that has no pid here: the exec `exec_id` of a container, or its init for ''."""

    container_id: str
    exec_id: str = ""


Topic = int | ExecSubject | None
"""What to hear of: a pid, an exec, or everything (None)."""


class ExitEvent(NamedTuple):
    """What ended, a pid or an exec, and how."""

    subject: int | ExecSubject
    exit: Exit


class Subscription:
    """Exits that are waited for; `close` it, or use it in a `with`."""

    def __init__(self, monitor: Monitor, topic: Topic) -> None:
        self.topic = topic
        self._monitor = monitor
        self._events: deque[ExitEvent] = deque()
        self._come = threading.Condition()
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hear of no more exits, and let those who wait for one go; closing twice is fine."""
        self._monitor.unsubscribe(self)
        with self._come:
            self._is_closed = True
            self._come.notify_all()

    def put(self, event: ExitEvent) -> None:
        """Add an exit; the monitor does."""
        with self._come:
            self._events.append(event)
            self._come.notify_all()

    def next(self, timeout_s: float | None = None) -> ExitEvent | None:
        """Return the next exit, in order; None when none came for `timeout_s` seconds, or will after a `close`."""
        with self._come:
            self._come.wait_for(lambda: self._events or self._is_closed, timeout_s)
            return self._events.popleft() if self._events else None

    def wait(self, subject: int | ExecSubject, timeout_s: float | None = None) -> Exit | None:
        """Return how `subject` ended, also if that was before this call; None when `timeout_s` passed first.

        A `close` ends it too.  Exits of others that are met on the way stay for `next` and `wait`.
        """
        with self._come:
            self._come.wait_for(lambda: self._find(subject) or self._is_closed, timeout_s)
            event = self._find(subject)
            if event is None:
                return None
            self._events.remove(event)
            return event.exit

    def _find(self, subject: int | ExecSubject) -> ExitEvent | None:
        return next((event for event in self._events if event.subject == subject), None)


class Monitor:
    """Spreads exits; every method is safe from any thread."""

    def __init__(self, reaper: Reaper) -> None:
        self._lock = threading.Lock()
        self._subscriptions: list[Subscription] = []
        self._callbacks: list[Callable[[ExitEvent], object]] = []
        self._reaper = reaper

    def subscribe(self, topic: Topic = None) -> Subscription:
        """Hear of exits from now on: of a pid, of an exec, or (None) of all."""
        subscription = Subscription(self, topic)
        with self._lock:
            self._subscriptions.append(subscription)
            self._reaper.on_exit = self._reaped
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription; ending it twice is fine."""
        with self._lock:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)

    def on_exit(self, callback: Callable[[ExitEvent], object]) -> None:
        """Call `callback(event)` for every exit from now on: on the event loop, which it must not block.

        For those of `notify` it is called in the thread that notifies.
        """
        with self._lock:
            self._callbacks.append(callback)
            self._reaper.on_exit = self._reaped

    def notify(self, subject: int | ExecSubject, status: int) -> None:
        """Tell of an exit that this system does not see: a process in a VM has ended with `status`."""
        pid = subject if isinstance(subject, int) else 0
        self._tell(ExitEvent(subject, Exit(pid, status, time.time())))

    def _reaped(self, exit_: Exit) -> None:
        self._tell(ExitEvent(exit_.pid, exit_))

    def _tell(self, event: ExitEvent) -> None:
        with self._lock:
            told = [each for each in self._subscriptions if each.topic is None or each.topic == event.subject]
            callbacks = list(self._callbacks)
        for subscription in told:
            subscription.put(event)
        for callback in callbacks:
            self._reaper.tell(callback, event)
