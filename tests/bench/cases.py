"""What is measured: each case takes one sample of one side, in containers of the same containerd.

A case returns its figures by metric; METRICS names them for people. Times are in ms unless the name says otherwise.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shim.runtime.zygote_protocol import SWITCH_VARIABLE
from shim.testing.containerd import RUNTIME, Containerd
from shim.testing.leftovers import processes, runs_shim
from tests.bench.launch import Launcher

_GIB: Final = 1 << 30
_BURST: Final = 12
_GREAT_BURST: Final = 30
_MANY: Final = 100

METRICS: Final[Mapping[str, str]] = {
    "start": "start until exit, ms",
    "connect": "start until the first RPC is answered, ms",
    "start-plain": "start until exit, ours without the fast path, ms",
    "version": "-v, ms",
    "delete": "delete with nothing to delete, ms",
    "run": "ctr run --rm ... true, ms",
    "exec": "ctr tasks exec ... true, ms",
    "burst": f"{_BURST} ctr run --detach at once, ms",
    "great-burst": f"{_GREAT_BURST} ctr run --detach at once, ms",
    "stdout": "1 GiB of stdout through ctr run --rm, s",
    "pss-1": "PSS of all shim processes, 1 container, MB",
    f"pss-{_MANY}": f"PSS of all shim processes, {_MANY} containers, MB",
}

# What ours shall be of Go's, as the design has it.
TARGETS: Final[Mapping[str, float]] = {
    "start": 0.6,
    "connect": 0.6,
    "version": 1.0,
    "run": 0.9,
    "pss-1": 1.0,
    f"pss-{_MANY}": 0.8,
}


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two shims."""

    name: str
    runtime: str
    shim: Path


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement: its metrics, how often it is made (in full, quick), and how."""

    metrics: tuple[str, ...]
    runs: int
    quick_runs: int
    warm_up: int
    measure: Callable[[Side], Mapping[str, float]]


class Bench:
    """The cases, bound to one containerd."""

    def __init__(self, containerd: Containerd, zygotes: Path) -> None:
        self._containerd = containerd
        self._zygotes = zygotes
        version = "v2" if containerd.release.major < 2 else "v3"  # Go's shim serves only the one of its time
        self._launcher = Launcher(containerd, f"containerd.task.{version}.Task", zygotes / "by-hand")
        self._serial = 0
        self._exec_targets: dict[str, str] = {}

    def cases(self) -> list[Case]:
        """Return all cases, the quick ones first."""
        return [
            Case(("start", "connect"), 40, 10, 3, self.launch),
            Case(("start-plain",), 20, 5, 1, self.launch_plainly),
            Case(("version",), 40, 10, 2, self.version),
            Case(("delete",), 20, 5, 1, self.delete),
            Case(("run",), 20, 5, 2, self.run),
            Case(("exec",), 20, 5, 2, self.exec),
            Case(("burst",), 7, 2, 0, lambda side: {"burst": self.burst(side, _BURST)}),
            Case(("great-burst",), 5, 1, 0, lambda side: {"great-burst": self.burst(side, _GREAT_BURST)}),
            Case(("stdout",), 5, 1, 1, self.stdout),
            Case(("pss-1", f"pss-{_MANY}"), 3, 1, 0, self.pss),
        ]

    def version(self, side: Side) -> Mapping[str, float]:
        """`-v`: the least that a launch can do."""
        return {"version": self._launcher.version(side.shim)}

    def launch(self, side: Side) -> Mapping[str, float]:
        """`start`, as containerd does it."""
        launch = self._launcher.launch(side.shim)
        return {"start": launch.start_ms, "connect": launch.answered_ms}

    def launch_plainly(self, side: Side) -> Mapping[str, float]:
        """`start` where there is no zygote: what the first one after a reboot takes."""
        return {"start-plain": self._launcher.launch(side.shim, {SWITCH_VARIABLE: "off"}).start_ms}

    def delete(self, side: Side) -> Mapping[str, float]:
        """`delete`, as containerd does it after every task."""
        return {"delete": self._launcher.delete(side.shim)}

    def run(self, side: Side) -> Mapping[str, float]:
        """A whole container life, as a user sees it."""
        args = self._containerd.run_arguments(self._name(), "true", runtime=side.runtime)
        began = time.perf_counter()
        self._containerd.ctr(*args)
        return {"run": _ms_since(began)}

    def exec(self, side: Side) -> Mapping[str, float]:
        """A process in a container that is already there."""
        if side.name not in self._exec_targets:
            self._exec_targets[side.name] = self._name()
            self._detached(side, self._exec_targets[side.name])
        began = time.perf_counter()
        self._containerd.exec(self._exec_targets[side.name], "true")
        return {"exec": _ms_since(began)}

    def burst(self, side: Side, count: int) -> float:
        """Many starts at the same time."""
        names = [self._name() for _ in range(count)]
        began = time.perf_counter()
        clients = [self._containerd.popen(*self._detached_arguments(side, name)) for name in names]
        outputs = [client.communicate(timeout=120) for client in clients]
        elapsed = _ms_since(began)
        for client, (_, stderr) in zip(clients, outputs, strict=True):
            if client.returncode:
                raise RuntimeError(f"ctr run ended with {client.returncode}: {stderr!r}")
        self._remove(names)
        return elapsed

    def stdout(self, side: Side) -> Mapping[str, float]:
        """Output through fifo, `ctr` and a pipe, counted at its end."""
        writer = ["dd", "if=/dev/zero", "bs=1M", f"count={_GIB >> 20}"]
        args = self._containerd.run_arguments(self._name(), *writer, runtime=side.runtime)
        began = time.perf_counter()
        with self._containerd.popen(*args, stderr=subprocess.DEVNULL) as client:
            assert client.stdout is not None
            received = 0
            while size := len(os.read(client.stdout.fileno(), 1 << 20)):
                received += size
        elapsed = time.perf_counter() - began
        if received != _GIB or client.returncode:
            raise RuntimeError(f"{received} of {_GIB} bytes arrived, ctr ended with {client.returncode}")
        return {"stdout": elapsed}

    def pss(self, side: Side) -> Mapping[str, float]:
        """Memory of all that runs the shim's executable, zygote and spare too, with containers of this side only."""
        self._launcher.end_zygotes()
        self._remove(list(self._exec_targets.values()))
        self._exec_targets.clear()
        names = [self._name() for _ in range(_MANY)]
        self._detached(side, names[0])
        one = self._settled_pss(side)
        for name in names[1:]:
            self._detached(side, name)
        many = self._settled_pss(side)
        self._remove(names)
        return {"pss-1": one, f"pss-{_MANY}": many}

    def _settled_pss(self, side: Side) -> float:
        # A start process may still be about to end, a collector to give memory back.
        time.sleep(1.0)
        pids = {process.pid for process in self._containerd.shims() if runs_shim(process, (side.shim.name,))}
        if not pids:
            raise RuntimeError(f"no process runs {side.shim.name}")
        if side.runtime == RUNTIME:
            pids |= {process.pid for process in processes() if str(self._zygotes) in "".join(process.arguments[2:])}
        return sum(map(_pss_kb, pids)) / 1e3

    def _name(self) -> str:
        self._serial += 1
        return f"bench{self._serial}"

    def _detached_arguments(self, side: Side, name: str) -> list[str]:
        options = ["--null-io"]
        return self._containerd.run_arguments(name, "sleep", "600", detach=True, options=options, runtime=side.runtime)

    def _detached(self, side: Side, name: str) -> None:
        self._containerd.ctr(*self._detached_arguments(side, name))

    def _remove(self, names: list[str]) -> None:
        if names:
            self._containerd.ctr("tasks", "rm", "--force", *names, check=False)
            self._containerd.ctr("containers", "rm", *names)


def _ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1e3


def _pss_kb(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
