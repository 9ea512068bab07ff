"""The event loop of a blocking-style server: descriptors, timers, signals, and calls from other threads.

Rule: one thread runs it; callbacks never block.  Every method but `call_soon` and `stop` belongs to that thread.
Before it sleeps it looks for what comes at once, as Go's scheduler does, while that pays.
An exception in a callback is handed to `on_error` and the loop goes on: one fault must not end a daemon.
"""

from __future__ import annotations

import heapq
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from shim.ttrpc.spin import Spin

READABLE: Final = 1  # EPOLLIN and POLLIN
WRITABLE: Final = 4  # EPOLLOUT and POLLOUT
FAILED: Final = 8 | 16  # ERR and HUP, reported without being asked for

_LONGEST_S: Final = 3600.0  # epoll takes 24 days at most, and a peer may send any deadline

Callback = Callable[[], object]


class Timer(Protocol):
    """A call that was put off."""

    def cancel(self) -> None:
        """Forget the call."""


class EventLoop(Protocol):
    """What a server needs of the loop it lives on; `Loop` is one, asyncio's another (shim.ttrpc.aio)."""

    def register(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(ready)` whenever one of `events` holds for `fd`."""

    def modify(self, fd: int, events: int) -> None:
        """Change what a registered descriptor is watched for."""

    def unregister(self, fd: int) -> None:
        """Stop watching."""

    def call_later(self, delay_s: float, callback: Callback) -> Timer:
        """Call `callback()` on the loop after `delay_s` seconds."""

    def call_soon(self, callback: Callback) -> None:
        """Call `callback()` on the loop's thread; safe from any thread."""


class LoopTimer:
    """A call that was put off; `cancel` makes it never happen."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callback) -> None:
        self.when: float = when
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Forget the call."""
        self.callback = None

    def __lt__(self, other: LoopTimer) -> bool:
        return self.when < other.when


def _raise(error: Exception) -> None:
    raise error


class Loop:
    """An epoll loop (poll where the system has no epoll)."""

    def __init__(self, on_error: Callable[[Exception], None] = _raise) -> None:
        self.on_error = on_error
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._poller = self._epoll or select.poll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[LoopTimer] = []
        self._soon: deque[Callback] = deque()
        self._is_woken = False
        self._is_stopped = False
        self._signals: dict[int, Callback] = {}
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self.register(self._wake_read, READABLE, self._woken)

    def close(self) -> None:
        """Give back the loop's own descriptors; registered ones stay their owners'."""
        if self._signals:
            signal.set_wakeup_fd(-1)
        if self._epoll is not None:
            self._epoll.close()
        wake_write, self._wake_write = self._wake_write, -1
        os.close(self._wake_read)
        os.close(wake_write)

    def register(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(ready)` whenever one of `events` (or FAILED) holds for `fd`."""
        self._poller.register(fd, events)
        self._callbacks[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        """Change what a registered descriptor is watched for; 0 leaves only FAILED."""
        self._poller.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Stop watching; an unknown descriptor is fine."""
        if self._callbacks.pop(fd, None) is not None:
            self._poller.unregister(fd)

    def call_later(self, delay_s: float, callback: Callback) -> LoopTimer:
        """Call `callback()` on the loop after `delay_s` seconds."""
        timer = LoopTimer(time.monotonic() + delay_s, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def call_soon(self, callback: Callback) -> None:
        """Call `callback()` on the loop's thread; safe from any thread, and from signal handlers: it takes no lock."""
        self._soon.append(callback)
        if not self._is_woken:
            self._is_woken = True
            self._wake()

    def on_signal(self, signum: int, callback: Callback) -> None:
        """Call `callback()` on the loop after a signal arrived; the handler itself only wakes the loop.

        Only in the main thread, which is where Python delivers signals.
        """
        self._signals[signum] = callback
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signum, _noted)

    def stop(self) -> None:
        """Make `run` return after the callbacks at hand; safe from any thread."""
        self._is_stopped = True
        self._wake()

    def run(self) -> None:
        """Run until `stop`."""
        poll = self._poller.poll
        callbacks = self._callbacks
        timers = self._timers
        is_epoll = self._epoll is not None
        find = Spin().find
        look = self._look
        while not self._is_stopped:
            timeout = self._timeout_s() if timers else -1.0
            ready = find(look) if timeout else None
            if ready is None:
                ready = poll(timeout) if is_epoll else poll(None if timeout < 0 else timeout * 1000)
            for fd, events in ready:
                callback = callbacks.get(fd)
                if callback is not None:
                    try:
                        callback(events)
                    except Exception as error:
                        self.on_error(error)
            if timers:
                self._run_timers()

    def _look(self) -> list[tuple[int, int]] | None:
        return self._poller.poll(0) or None

    def _timeout_s(self) -> float:
        timers = self._timers
        while timers and timers[0].callback is None:
            heapq.heappop(timers)
        return min(_LONGEST_S, max(0.0, timers[0].when - time.monotonic())) if timers else -1.0

    def _run_timers(self) -> None:
        timers = self._timers
        while timers and (timers[0].callback is None or timers[0].when <= time.monotonic()):
            callback = heapq.heappop(timers).callback
            if callback is not None:
                self._guard(callback)

    def _guard(self, callback: Callback) -> None:
        try:
            callback()
        except Exception as error:
            self.on_error(error)

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            pass  # the pipe is full of wake-ups already
        except OSError:
            if self._wake_write >= 0:
                raise
            # Closed: a handler that ends after its server.  The number may be somebody else's descriptor by now.

    def _woken(self, _events: int) -> None:
        try:
            received = os.read(self._wake_read, 4096)
        except BlockingIOError:
            received = b""
        for signum in set(received):
            callback = self._signals.get(signum)
            if callback is not None:
                self._guard(callback)
        self._is_woken = False  # before the queue is looked at: who comes later wakes again
        for _ in range(len(self._soon)):  # no more than these: other descriptors have their turn
            self._guard(self._soon.popleft())
        if self._soon:
            self._is_woken = True
            self._wake()


def _noted(_signum: int, _frame: object) -> None:
    """Do nothing: the interpreter has written the signal's number to the wake-up descriptor."""
