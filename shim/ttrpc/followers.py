"""The threads that wait for answers while another one reads.

Rule: the link's lock is held in every call.  Those whose answers have come are let go one after the other, each by the
one before, which is a relay: woken all at once they would only queue for the interpreter's lock, and each would sleep
and be woken twice.  Whoever has been let go has to `leave`, or the relay ends with it.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from shim.ttrpc.pending import Pending


class Followers:
    """The gates of one link's threads: locks, each held by the thread that waits for it."""

    __slots__ = ("_due", "_gates", "is_relaying")

    def __init__(self) -> None:
        self._gates: dict[Any, Pending] = {}  # the oldest first
        self._due: deque[Any] = deque()  # of those whose answers have come
        self.is_relaying: bool = False

    def __bool__(self) -> bool:
        """Tell whether somebody waits whose answer has not come."""
        return bool(self._gates)

    def enter(self, pending: Pending) -> Any:
        """Return the gate to wait for, without the link's lock."""
        gate = threading.Lock()
        gate.acquire()
        pending.gates.append(gate)
        self._gates[gate] = pending
        return gate

    def leave(self, gate: Any, pending: Pending, *, is_open: bool) -> None:
        """Go on after the wait, whether the gate has been opened, or the time is over, or a signal's handler raised."""
        if self._gates.pop(gate, None) is not None:
            pending.gates.remove(gate)
        elif not is_open and gate in self._due:
            self._due.remove(gate)
        else:  # it may have been opened since
            self._pass_on()

    def answer(self, pending: Pending) -> None:
        """Let the threads go that wait for this call, each when its turn has come."""
        for gate in pending.gates:
            del self._gates[gate]
        self._due += pending.gates
        pending.gates.clear()
        if not self.is_relaying:
            self._pass_on()

    def let_go(self, pending: Pending) -> None:
        """Let the threads go that wait for this call, all of them at once."""
        for gate in pending.gates:
            del self._gates[gate]
            gate.release()
        pending.gates.clear()

    def promote(self) -> None:
        """Let the one that has waited longest look for itself: it will find that nobody reads."""
        gate = next(iter(self._gates))
        pending = self._gates.pop(gate)
        pending.gates.remove(gate)
        gate.release()

    def _pass_on(self) -> None:
        self.is_relaying = bool(self._due)
        if self._due:
            self._due.popleft().release()
