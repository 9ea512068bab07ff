"""Times in messages: seconds since the epoch and `google.protobuf.Timestamp`.

Rule: Go's zero time is what containerd's clients take for "has not happened"; None stands for it here.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

_ZERO_SECONDS: Final = -62135596800


def timestamp(at: float | None) -> Timestamp:
    """Return seconds since the epoch as a message; None is Go's zero time."""
    if at is None:
        return Timestamp(seconds=_ZERO_SECONDS)
    # Each part by itself: all of today's nanoseconds are more than a float holds.
    return Timestamp(seconds=int(at // 1), nanos=int(at % 1 * 1e9))


def from_timestamp(message: Timestamp) -> float | None:
    """Return what a message says in seconds since the epoch; None for Go's zero time."""
    if message.seconds == _ZERO_SECONDS:
        return None
    return message.seconds + message.nanos / 1e9
