"""Waiting for something to become true, which is the only way in which tests here wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# Far above what anything here takes on a busy machine,
# below the usual limit of a test.
PATIENCE_S: Final = 15.0
_PAUSE_S: Final = 0.002


def wait_until(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> bool:
    """Wait for a condition to hold; False when it did not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_S)
    return True
