"""The latch that says that a shim shall end."""

from __future__ import annotations

import threading
from collections.abc import Callable


class ExitSignal:
    """Set once, by `signal`, and never reset; every method is safe from any thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []

    @property
    def is_set(self) -> bool:
        """True once `signal` has been called."""
        return self._event.is_set()

    def signal(self) -> None:
        """Say that the shim shall end; repeating it is fine.

        Every callback is called; what the last of those that failed raised is raised then.
        """
        with self._lock:
            self._event.set()
            callbacks, self._callbacks = self._callbacks, []
        failure: Exception | None = None
        for callback in callbacks:
            try:
                callback()
            except Exception as error:  # the others, the daemon's own among them, have to hear of it all the same
                failure = error
        if failure is not None:
            raise failure

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the signal, at most `timeout_s` seconds; say whether it came."""
        return self._event.wait(timeout_s)

    def on_signal(self, callback: Callable[[], object]) -> None:
        """Call `callback()` in the thread that signals; at once if that has been."""
        with self._lock:
            if not self._event.is_set():
                self._callbacks.append(callback)
                return
        callback()
