"""Notices of processes killed for lack of memory, shaped for an epoll loop.

Rule: no threads and no loop here. A watch is a descriptor that gets readable (EPOLLIN) when there may be news, and
`read` tells how much; a cgroup that is gone is quiet. Close a watch when its container has stopped, after `final_read`.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final, TypeAlias

from shim.errors import CgroupError
from shim.host import libc
from shim.host.cgroup import Cgroup
from shim.host.cgroup_files import read_keyed, write_text
from shim.host.cgroup_v2 import UnifiedCgroup

_DRAIN_SIZE: Final = 4096


class _Watch:
    """A descriptor, closed once."""

    def __init__(self, fd: int) -> None:
        self.fd: int = fd
        self.is_gone: bool = False

    def close(self) -> None:
        """Stop watching; a second time does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class LegacyOomWatch(_Watch):
    """Version 1: the kernel counts notices in an eventfd, and rings once more when the cgroup is removed."""

    def __init__(self, folder: str) -> None:
        super().__init__(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        self._folder = folder
        self._known = read_keyed(folder, "memory.oom_control").get("oom_kill", 0)
        try:
            control = os.open(f"{folder}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                write_text(folder, "cgroup.event_control", f"{self.fd} {control}")
            finally:
                os.close(control)
        except OSError:
            self.close()
            raise

    def read(self) -> int:
        """Return the number of notices since the last time, and 0 if the cgroup is gone (then `is_gone` is set)."""
        try:
            count = 0 if self.fd < 0 else os.eventfd_read(self.fd)
        except BlockingIOError:
            return 0
        if not os.path.exists(f"{self._folder}/memory.oom_control"):
            self.is_gone = True
            return 0
        self._known += count
        return count

    def final_read(self) -> int:
        """Return the number of kills not told yet; there is no notice of those that the whole host's lack brings."""
        count = self.read()
        kills = read_keyed(self._folder, "memory.oom_control").get("oom_kill", 0)
        missed = max(0, kills - self._known)
        self._known += missed
        return count + missed


class UnifiedOomWatch(_Watch):
    """Version 2: inotify says that a file has changed, and the count in memory.events says whether that was a kill."""

    def __init__(self, folder: str) -> None:
        super().__init__(libc.inotify_open())
        self._folder = folder
        # From 0, not from what is there now: a kill between create and here counts too.
        self._known = 0
        try:
            libc.inotify_watch(self.fd, f"{folder}/memory.events", libc.IN_MODIFY)
            libc.inotify_watch(self.fd, f"{folder}/cgroup.events", libc.IN_MODIFY)
        except OSError:
            self.close()
            raise

    def read(self) -> int:
        """Return the number of kills since the last time, and 0 if the cgroup is gone (then `is_gone` is set)."""
        with contextlib.suppress(BlockingIOError):
            while self.fd >= 0 and os.read(self.fd, _DRAIN_SIZE):
                pass
        return self.final_read()

    def final_read(self) -> int:
        """Return the number of kills not told yet, whether or not the descriptor was readable."""
        events = read_keyed(self._folder, "memory.events")
        self.is_gone: bool = not events
        # `oom_kill`, not `oom`: the latter counts allocations that failed without a kill too.
        kills = max(0, events.get("oom_kill", 0) - self._known)
        self._known += kills
        return kills


OomWatch: TypeAlias = LegacyOomWatch | UnifiedOomWatch


def open_watch(cgroup: Cgroup) -> OomWatch:
    """Watch a container's cgroup.

    Raises:
        CgroupError: It is gone, or has no memory controller.
    """
    try:
        if isinstance(cgroup, UnifiedCgroup):
            return UnifiedOomWatch(cgroup.folder)
        return LegacyOomWatch(cgroup.folders["memory"])
    except KeyError:
        raise CgroupError("failed to watch for out of memory: no memory cgroup") from None
    except OSError as error:
        raise CgroupError(f"failed to watch for out of memory: {str(error.strerror).lower()}") from error
