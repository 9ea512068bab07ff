"""The watch for kills for lack of memory, from a container's creation to its exit.

Rule: a kill is told before the exit that it caused, hence the last look when the watch ends.  Spec: contract 10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shim.host import oom
from shim.ttrpc.loop import READABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.host.cgroup import Cgroup
    from shim.ttrpc.loop import EventLoop


class MemoryWatch:
    """Calls `tell()` once for each kill in a cgroup."""

    def __init__(self, loop: EventLoop, tell: Callable[[], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._watch: oom.OomWatch | None = None

    def start(self, cgroup: Cgroup) -> None:
        """Watch a cgroup.  Raises CgroupError or OSError if that cannot be."""
        watch = self._watch = oom.open_watch(cgroup)
        self._loop.call_soon(lambda: self._register(watch))

    def _register(self, watch: oom.OomWatch) -> None:
        if self._watch is watch:
            self._loop.register(watch.fd, READABLE, lambda _events: self._told(watch.read()))

    def _told(self, kills: int) -> None:
        for _ in range(kills):
            self._tell()

    def stop(self) -> None:
        """End with a last look; without a watch do nothing."""
        watch, self._watch = self._watch, None
        if watch is None:
            return
        self._told(watch.final_read())

        def close() -> None:
            self._loop.unregister(watch.fd)
            watch.close()

        self._loop.call_soon(close)
