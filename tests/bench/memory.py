"""Memory of processes: what a set of them holds, and what a launch adds at its peak.

Held is PSS: shared pages count by the share of each.  The peak comes from a memory cgroup, which counts a page once,
for the process that made it: so what a daemon shares with its `start` is no news, and nothing is missed between looks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_V1: Final = Path("/sys/fs/cgroup/memory")
_V2: Final = Path("/sys/fs/cgroup")
_SETTLE_S: Final = 10.0


class UnmeasuredError(Exception):
    """This machine cannot tell; the text says why."""


def pss_mb(pids: Iterable[int]) -> float:
    """Return what these processes hold together; one that has ended holds nothing."""
    return sum(map(_pss_kb, pids)) / 1e3


def peak_resident_mb(pid: int) -> float:
    """Return the greatest resident set that a living process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1e3


class PeakCgroup:
    """A memory cgroup that tells its highest use since it was last reset; a context manager.

    Version 1, or version 2 with Linux 6.12, which was the first to reset.
    """

    def __init__(self, name: str) -> None:
        self._folder = (_V1 if (_V1 / "memory.usage_in_bytes").exists() else _V2) / name
        self._peak_fd = -1
        self._before = 0

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir()
            is_v1 = (self._folder / "memory.max_usage_in_bytes").exists()
            self._usage = self._folder / ("memory.usage_in_bytes" if is_v1 else "memory.current")
            peak = self._folder / ("memory.max_usage_in_bytes" if is_v1 else "memory.peak")
            self._peak_fd = os.open(peak, os.O_RDWR | os.O_CLOEXEC)
            self.reset()
        except OSError as error:
            self._close()
            reason = f"{error.filename or self._folder}: {error.strerror}"
            raise UnmeasuredError(f"no memory cgroup whose peak can be reset ({reason})") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @property
    def prefix(self) -> list[str]:
        """A command that moves itself here and then becomes the command that follows it."""
        # Not a function that is called between fork and exec: the fork of a great process would count as well.
        return ["sh", "-c", f'echo $$ >{self._folder}/cgroup.procs && exec "$0" "$@"']

    def reset(self) -> None:
        """Forget the highest use, and take the present one as what was there before."""
        os.pwrite(self._peak_fd, b"0", 0)
        self._before = int(self._usage.read_text())

    def added_mb(self) -> float:
        """Return how far the use has risen above what was there before."""
        return max(0, int(os.pread(self._peak_fd, 64, 0)) - self._before) / 1e6

    def settle(self) -> None:
        """Wait until as many processes are here for a moment, so that what starts and ends behind is over."""
        deadline = time.monotonic() + _SETTLE_S
        seen = [""]
        while time.monotonic() < deadline and (len(seen) < 5 or len(set(seen[-5:])) > 1):
            time.sleep(0.02)
            seen.append((self._folder / "cgroup.procs").read_text())

    def _close(self) -> None:
        if self._peak_fd >= 0:
            os.close(self._peak_fd)
            self._peak_fd = -1
        deadline = time.monotonic() + _SETTLE_S
        while self._folder.exists():
            with contextlib.suppress(OSError):
                self._folder.rmdir()
                return
            # A daemon that no call could end: none of another run is in this cgroup.
            with contextlib.suppress(OSError):
                for pid in (self._folder / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self._folder} is still in use")
            time.sleep(0.02)


def _pss_kb(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    # That of a process that is about to end is empty.
    return next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
