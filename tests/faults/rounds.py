"""One round of fault injection: a container's life with an accident in it, and what may not be left of that."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from shim.testing.containerd import Containerd
from tests.faults.runtime import Accident, Scene

# How long containerd and the shim may take to come to terms with what has happened.
_PATIENCE_S: Final = 60.0


class Rounds:
    """Rounds under one containerd, which is started again when it was the victim."""

    def __init__(self, containerd: Containerd) -> None:
        self._containerd = containerd
        self._scene = Scene(containerd.bin)
        self._count = 0
        self._known: set[str] = set()

    def play(self, accident: Accident) -> list[str]:
        """Live through an accident, and return a line for each thing that is wrong afterwards."""
        self._count += 1
        container = f"fault-{self._count}"
        containerd = self._containerd
        self._scene.plan(accident, containerd.pid)
        self._live(container)
        happened = self._scene.has_happened()
        if accident.victim == "containerd" and happened:
            _wait_for(lambda: not containerd.is_running)
            containerd.restart()
        wrong = [] if happened else [f"{accident}: it did not happen"]
        wrong += self._remove(container)
        # Of another name: containerd 1.6 remembers the task of a killed shim for as long as it lives, Go's shim's too.
        again = containerd.run(f"{container}-again", "echo", "again", check=False)
        if (again.returncode, again.stdout) != (0, "again\n"):
            wrong.append(f"{accident}: no other container can be run: {again.stderr.strip()}")
            wrong += self._remove(f"{container}-again")
        left = [line for line in containerd.leftovers() if line not in self._known]
        self._known |= set(left)  # told once
        return wrong + [f"{accident}: left behind: {line}" for line in left]

    def _live(self, container: str) -> None:
        """Create, start, exec, kill, delete; every step may fail."""
        ctr = self._containerd.ctr
        log = f"binary://{self._scene.logger}"
        self._containerd.run(
            container, "sleep", "1000", detach=True, options=["--log-uri", log], check=False, timeout_s=_PATIENCE_S
        )
        self._containerd.exec(container, "true", exec_id="e", check=False)
        ctr("tasks", "kill", "--signal", "SIGKILL", container, check=False)
        _wait_for(lambda: "RUNNING" not in self._state(container))
        ctr("tasks", "rm", container, check=False)

    def _state(self, container: str) -> str:
        lines = self._containerd.ctr("tasks", "ls", check=False).stdout.splitlines()
        return next((line for line in lines if line.split()[:1] == [container]), "")

    def _remove(self, container: str) -> list[str]:
        """Remove task and container, as an operator would: by force, and again if need be."""
        ctr = self._containerd.ctr
        said: list[str] = []

        def is_gone() -> bool:
            ctr("tasks", "rm", "--force", container, check=False)
            done = ctr("containers", "rm", container, check=False)
            said[:] = [done.stderr.strip()]
            return container not in ctr("containers", "ls", "-q").stdout.split() and not self._state(container)

        return [] if _wait_for(is_gone) else [f"containerd cannot remove {container}: {said[0]}"]


def _wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
