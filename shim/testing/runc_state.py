"""What the fake runc keeps of a container: facts as files in ROOT/ID, and processes known by pid and start time.

Rule: as `runc_program`: imported for every call of the fake, so nothing that can wait.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_PAUSE_S = 0.002


class Container:
    """The state of one container, in a folder."""

    def __init__(self, root: str, name: str) -> None:
        self.path: str = os.path.join(root, name)

    @property
    def exists(self) -> bool:
        """Say whether it has been created and not deleted."""
        return os.path.isdir(self.path)

    def read(self, name: str) -> str:
        """Return a fact, or ''."""
        try:
            with open(os.path.join(self.path, name)) as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def write(self, name: str, text: str) -> None:
        """Note a fact."""
        with open(os.path.join(self.path, name), "w") as file:
            file.write(text)

    def has(self, name: str) -> bool:
        """Say whether a fact has been noted."""
        return os.path.lexists(os.path.join(self.path, name))

    def drop(self, name: str) -> None:
        """Forget a fact."""
        try:
            os.unlink(os.path.join(self.path, name))
        except FileNotFoundError:
            pass

    @property
    def init(self) -> str:
        """The init process as `mark` wrote it."""
        return self.read("init")

    @property
    def status(self) -> str:
        """created, running, paused or stopped, as `runc state` says."""
        if not is_alive(self.init):
            return "stopped"
        if self.has("paused"):
            return "paused"
        return "created" if self.has("exec.fifo") else "running"

    def processes(self) -> list[int]:
        """Return the pids of all that live, init first."""
        return [int(line.split()[0]) for line in [self.init, *self.read("execs").splitlines()] if is_alive(line)]


def stat_of(pid: str) -> list[str]:
    """Return a process's fields from its state on, or nothing if it has gone."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def mark(pid: int) -> str:
    """Return a text that means this process and no later one with its pid."""
    fields = stat_of(str(pid))
    return f"{pid} {fields[19] if fields else ''}"


def is_alive(marked: str) -> bool:
    """Say whether a marked process lives; a zombie does not."""
    pid, _, started = marked.strip().partition(" ")
    fields = stat_of(pid) if pid else []
    return bool(fields) and fields[0] not in "ZX" and fields[19] == started


def wait(condition: Callable[[], bool], here: str) -> None:
    """Wait for a condition, or end with the test's folder."""
    while not condition():
        if not os.path.isdir(here):
            os._exit(70)
        time.sleep(_PAUSE_S)
