"""What has come on one stream and has not been taken yet.

Rule: messages leave in the order in which they came, before the end; the end stays, whatever is asked after it (Go's
clients block there). Bounded: the owner looks at `is_full`, and stops reading or gives the stream up.
No sockets, threads or clocks here.
"""

from __future__ import annotations

from collections import deque
from typing import Final

# So much may wait in one stream: as many messages as Go 1.2.9 holds, or as many bytes as one message may have.
MAX_MESSAGES: Final = 64
MAX_BYTES: Final = 4 << 20


class Inbox:
    """The queue of one stream."""

    __slots__ = ("_is_ended", "_messages", "_size", "error")

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._size = 0
        self._is_ended = False
        self.error: Exception | None = None

    @property
    def is_ended(self) -> bool:
        """True once nothing more can come; messages may still be there."""
        return self._is_ended

    @property
    def is_ready(self) -> bool:
        """True when `take` has something to say."""
        return bool(self._messages) or self._is_ended

    @property
    def is_full(self) -> bool:
        """True when the owner should not let more come."""
        return len(self._messages) >= MAX_MESSAGES or self._size >= MAX_BYTES

    def put(self, payload: bytes) -> None:
        """Add a message; after the end it is dropped."""
        if not self._is_ended:
            self._messages.append(payload)
            self._size += len(payload)

    def end(self, error: Exception | None = None) -> None:
        """Say that nothing more comes, and why; the first reason stays."""
        if not self._is_ended:
            self._is_ended = True
            self.error = error

    def drop(self) -> None:
        """Forget the messages that are there."""
        self._messages.clear()
        self._size = 0

    def take(self) -> bytes | None:
        """Return the next message, or None at the end, or raise what the stream ended with; only when `is_ready`."""
        if self._messages:
            payload = self._messages.popleft()
            self._size -= len(payload)
            return payload
        if self.error is not None:
            raise self.error.with_traceback(None)  # each raise would add to the last one's, and keep its frames
        return None
