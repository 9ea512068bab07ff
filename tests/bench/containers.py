"""Containers of one side after the other in one private containerd: run, started, counted, removed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from typing import Final

from shim.testing.containerd import Containerd
from shim.testing.leftovers import processes_of, runs_shim
from tests.bench.launch import POD
from tests.bench.memory import pss_mb
from tests.bench.setting import Side

_TIMEOUT_S: Final = 120.0
# A start process may still be about to end, a collector to give memory back.
_SETTLE_S: Final = 1.0


class Containers:
    """All containers that are made here."""

    def __init__(self, containerd: Containerd) -> None:
        self.containerd = containerd
        self._serial = 0

    def name(self) -> str:
        """Return a container id that nobody has had."""
        self._serial += 1
        return f"bench{self._serial}"

    def life_ms(self, side: Side) -> float:
        """Return how long `ctr run --rm … true` takes."""
        return self.lives_ms(side, 1)

    def lives_ms(self, side: Side, count: int) -> float:
        """Return how long so many of them take that start at the same time."""
        self.containerd.import_image()
        commands = [self.containerd.run_arguments(self.name(), "true", runtime=side.runtime) for _ in range(count)]
        began = time.perf_counter()
        clients = [self.containerd.popen(*command) for command in commands]
        _finish(clients)
        return (time.perf_counter() - began) * 1e3

    def detached(self, side: Side, *, pod: str = "", namespace: str | None = None) -> str:
        """Start a container that stays, in the shim of a pod if one is named, and return its id."""
        name = self.name()
        options = ["--null-io"]
        if pod:
            options += ["--annotation", f"{POD}={pod}"]
        self.containerd.import_image(namespace=namespace)
        args = self.containerd.run_arguments(name, "sleep", "3600", detach=True, options=options, runtime=side.runtime)
        self.containerd.ctr(*args, namespace=namespace)
        return name

    def remove(self, names: Sequence[str], namespace: str | None = None) -> None:
        """Kill and remove containers."""
        if names:
            self.containerd.ctr(
                "tasks", "rm", "--force", *names, check=False, timeout_s=_TIMEOUT_S, namespace=namespace
            )
            self.containerd.ctr("containers", "rm", *names, timeout_s=_TIMEOUT_S, namespace=namespace)

    def settled_pss_mb(self, side: Side) -> float:
        """Return the memory of all that runs the side's executable, once nothing changes any more."""
        time.sleep(_SETTLE_S)
        found = processes_of(self.containerd.scope())
        pids = {process.pid for process in found if runs_shim(process, (side.shim.name,))}
        if not pids:
            raise RuntimeError(f"no process runs {side.shim.name}")
        return pss_mb(pids)


def _finish(clients: Sequence[subprocess.Popen[bytes]]) -> None:
    outputs = [client.communicate(timeout=_TIMEOUT_S) for client in clients]
    for client, (_, stderr) in zip(clients, outputs, strict=True):
        if client.returncode:
            raise RuntimeError(f"ctr ended with {client.returncode}: {stderr!r}")
