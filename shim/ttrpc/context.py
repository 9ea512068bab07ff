"""What a handler may know of its call beyond the request, and how it puts its answer off.

Rule: knows no transport.  Contexts belong to one call; a Deferred may be finished from any thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from google.protobuf.message import Message


class Credentials(NamedTuple):
    """The process on the other end of a unix socket, as of its connect call (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


class CallContext:
    """What a handler may know about its call beyond the request.

    `method` is `service/Method`; `deadline` a `time.monotonic()` value or None; `metadata` holds (key, value) pairs in
    order of arrival; `peer` is None where the system does not tell who called.
    """

    deadline: float | None = None
    _is_cancelled = False
    _callbacks: list[Callable[[], object]] | None = None

    def __init__(
        self,
        method: str,
        timeout_ns: int = 0,
        metadata: tuple[tuple[str, str], ...] = (),
        peer: Credentials | None = None,
    ) -> None:
        self.method = method
        self.metadata = metadata
        self.peer = peer
        if timeout_ns:
            self.deadline = time.monotonic() + timeout_ns / 1e9

    @property
    def is_cancelled(self) -> bool:
        """True once nobody waits for more: answered, past the deadline, or the peer went away."""
        return self._is_cancelled

    def cancel(self) -> None:
        """Say that the answer is no longer wanted; the handler keeps running."""
        self._is_cancelled = True
        callbacks = self._callbacks
        if callbacks is None:
            return
        self._callbacks = None
        failure: Exception | None = None
        for callback in callbacks:
            try:
                callback()
            except Exception as error:  # the others have to hear of it all the same
                failure = error
        if failure is not None:
            raise failure

    def on_cancel(self, callback: Callable[[], object]) -> None:
        """Call `callback()` when the call is over, whichever way; at once if it is.  It must not block."""
        if self.is_cancelled:
            callback()
            return
        if self._callbacks is None:
            self._callbacks = []
        self._callbacks.append(callback)
        if self.is_cancelled:  # meanwhile, in another thread
            self.cancel()  # type: ignore[unreachable]

    def remaining(self) -> float | None:
        """Return the seconds until the deadline (never below 0), or None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def values(self, key: str) -> list[str]:
        """Return all metadata values of a key, which is compared without regard to case."""
        wanted = key.lower()
        return [value for name, value in self.metadata if name.lower() == wanted]


class Deferred:
    """An answer that comes later and holds no thread while it is awaited.

    The first of `resolve` and `fail` counts, later ones are ignored; both may be called from any thread.
    `on_abandoned()` is called when nobody waits any more: the deadline has passed or the peer is gone.
    A graceful end of the server does not wait for it unless `holds_up`: a container may run for ever.
    """

    __slots__ = ("_callbacks", "_error", "_lock", "_response", "is_done", "on_abandoned")

    holds_up = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[Deferred], None]] = []
        self._response: Message | None = None
        self._error: BaseException | None = None
        self.is_done: bool = False
        self.on_abandoned: Callable[[], None] | None = None

    def resolve(self, response: Message) -> None:
        """Answer with a message."""
        self._finish(response, None)

    def fail(self, error: BaseException) -> None:
        """Answer with the status of an exception."""
        self._finish(None, error)

    def _finish(self, response: Message | None, error: BaseException | None) -> None:
        with self._lock:
            if self.is_done:
                return
            self._response, self._error, self.is_done = response, error, True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def abandon(self) -> None:
        """Say that nobody waits for the answer any more; what is answered after that is dropped."""
        with self._lock:
            if self.is_done:
                return
            self.is_done = True
            self._callbacks.clear()
        if self.on_abandoned is not None:
            self.on_abandoned()

    def on_done(self, callback: Callable[[Deferred], None]) -> None:
        """Call `callback(self)` once done: now if it is, else in the thread that finishes it."""
        with self._lock:
            if not self.is_done:
                self._callbacks.append(callback)
                return
        callback(self)

    @property
    def error(self) -> BaseException | None:
        """What the call failed with, or None; only once done."""
        return self._error

    def result(self) -> Message | None:
        """Return the response, or raise what the call failed with; only once done."""
        if self._error is not None:
            raise self._error
        return self._response
