"""Seconds and protobuf's timestamps."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from shim.runtime.timestamps import from_timestamp, timestamp


def test_none_is_gos_zero_time() -> None:
    """What containerd's clients print as 0001-01-01."""
    message = timestamp(None)

    assert "0001-01-01T00:00:00Z" == message.ToJsonString()
    assert from_timestamp(message) is None


@pytest.mark.parametrize(
    ("at", "seconds", "nanos"),
    [(0.0, 0, 0), (1.5, 1, 500_000_000), (1700000000.25, 1700000000, 250_000_000), (-0.25, -1, 750_000_000)],
)
def test_times_go_there_and_back(at: float, seconds: int, nanos: int) -> None:
    """Nanoseconds are never negative, as protobuf has it."""
    message = timestamp(at)

    assert Timestamp(seconds=seconds, nanos=nanos) == message
    assert at == from_timestamp(message)


def test_a_time_that_was_never_set_is_the_epoch() -> None:
    """Only Go's zero means that nothing has happened."""
    assert 0.0 == from_timestamp(Timestamp())
