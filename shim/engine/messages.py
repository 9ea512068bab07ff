"""What the task service and the sandbox service both make of messages, and of what goes into them.

Rule: no decision, only one form for another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from shim.host.mount import Mount
from shim.runtime.timestamps import timestamp

if TYPE_CHECKING:
    from shim.api import types_pb2
    from shim.runtime.reaper import Exit


def mounts_of(messages: Iterable[types_pb2.Mount]) -> list[Mount]:
    """Return the mounts of a request."""
    return [Mount(each.type, each.source, each.target, tuple(each.options)) for each in messages]


def exit_fields(exit_: Exit | None) -> dict[str, Any]:
    """Return the two fields by which answers tell how a process ended; None is one that has not."""
    return {
        "exit_status": exit_.status if exit_ is not None else 0,
        "exited_at": timestamp(exit_.at if exit_ is not None else None),
    }
