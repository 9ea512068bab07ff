"""What is measured: each case takes one sample of one side, in containers of the same containerd.

A case returns its figures by row; rows.py has their names and units.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.bench import files
from tests.bench.calls import Caller, socket_in
from tests.bench.containers import Containers
from tests.bench.launch import Launcher
from tests.bench.memory import PeakCgroup, peak_resident_mb
from tests.bench.rows import ALONE, AT_ONCE, CROWD, FEW, MANY, OLD, OURS, WORN
from tests.bench.setting import Mode, Side

_GIB: Final = 1 << 30
_STATE_CALLS: Final = 500


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement: its rows, how often it is made (in full, quick; 0: not at all), and how.

    `sides` are those that it compares, if not all shims.
    """

    rows: tuple[str, ...]
    mode: Mode
    runs: int
    quick_runs: int
    warm_up: int
    measure: Callable[[Side], Mapping[str, float]]
    sides: Sequence[Side] = ()


class Bench:
    """The cases, bound to one containerd in one mode; a context manager."""

    def __init__(self, containers: Containers, mode: Mode, environment: Mapping[str, str]) -> None:
        self._containers = containers
        self._mode = mode
        self._environment = environment
        self._launcher = Launcher(containers.containerd, environment, "by-hand")
        self._living: dict[str, str] = {}
        self._meters: dict[str, tuple[PeakCgroup, Launcher]] = {}
        self._callers: dict[str, tuple[Caller, str]] = {}
        self._copies: dict[str, Path] = {}
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def cases(self, sides: Sequence[Side]) -> list[Case]:
        """Return the cases of this mode, the quick ones first."""
        ours = next(side for side in sides if side.name == OURS)
        crowd = [replace(ours, name=name) for name in (ALONE, OURS)]
        ages = [replace(ours, name=name) for name in (OLD, OURS)]
        cases = [
            Case(("size",), Mode.SPLIT, 1, 1, 0, self.size),
            Case(("version",), Mode.SPLIT, 60, 10, 2, self.version),
            Case(("start", "connect"), Mode.SPLIT, 60, 10, 3, self.launch),
            Case(("delete",), Mode.SPLIT, 40, 10, 2, self.delete),
            Case(("run",), Mode.SPLIT, 40, 5, 2, self.run),
            Case(("exec",), Mode.SPLIT, 40, 5, 2, self.exec),
            Case(("state", "state-asleep"), Mode.SPLIT, 40, 5, 1, self.state),
            Case(("peak", "daemon-peak"), Mode.SPLIT, 10, 3, 2, self.peak),
            Case(("cold",), Mode.SPLIT, 20, 5, 1, self.cold),
            Case(("first",), Mode.SPLIT, 30, 10, 1, self.first, ages),
            Case(("burst",), Mode.SPLIT, 9, 2, 1, self.burst),
            Case(("stdout",), Mode.SPLIT, 7, 2, 1, self.stdout),
            Case(("pss-1",), Mode.SPLIT, 5, 1, 0, lambda side: {"pss-1": self.pss(side, 1)}),
            Case((f"pss-{FEW}",), Mode.SPLIT, 3, 1, 0, lambda side: {f"pss-{FEW}": self.pss(side, FEW)}),
            Case((f"dense-{MANY}",), Mode.DENSE, 2, 1, 0, lambda side: {f"dense-{MANY}": self.pss(side, MANY)}),
            Case(("crowd",), Mode.DENSE, 20, 0, 1, self.crowd, crowd),
        ]
        return [case for case in cases if case.mode is self._mode]

    def size(self, side: Side) -> Mapping[str, float]:
        """The file that is installed."""
        return {"size": side.shim.stat().st_size / 1e6}

    def version(self, side: Side) -> Mapping[str, float]:
        """`-v`: the least that a launch can do."""
        return {"version": self._launcher.version(side.shim)}

    def launch(self, side: Side) -> Mapping[str, float]:
        """`start`, as containerd does it."""
        launch = self._launcher.launch(side)
        return {"start": launch.start_ms, "connect": launch.answered_ms}

    def delete(self, side: Side) -> Mapping[str, float]:
        """`delete`, as containerd does it after every task."""
        return {"delete": self._launcher.delete(side.shim)}

    def run(self, side: Side) -> Mapping[str, float]:
        """A whole container life, as a user sees it."""
        return {"run": self._containers.life_ms(side)}

    def exec(self, side: Side) -> Mapping[str, float]:
        """A process in a container that is already there."""
        target = self._alive(side)
        began = time.perf_counter()
        self._containers.containerd.exec(target, "true")
        return {"exec": (time.perf_counter() - began) * 1e3}

    def state(self, side: Side) -> Mapping[str, float]:
        """State of a live task, over one connection, with nobody between."""
        target = self._alive(side)
        with Caller(socket_in(self._containers.containerd.bundle(target)), side.service) as caller:
            return {
                "state": caller.p50_us("State", target, _STATE_CALLS),
                "state-asleep": caller.p50_us("State", target, _STATE_CALLS, sleeps=True),
            }

    def peak(self, side: Side) -> Mapping[str, float]:
        """What a `start` adds to memory at its peak, with the daemon."""
        meter, launcher = self._meter(side)
        resident = 0.0

        def look(pid: int) -> None:
            nonlocal resident
            resident = peak_resident_mb(pid)

        meter.settle()
        meter.reset()
        launcher.launch(side, look)
        return {"peak": meter.added_mb(), "daemon-peak": resident}

    def cold(self, side: Side) -> Mapping[str, float]:
        """`start` of a file that has to be read from the disk; all else is in the page cache."""
        if side.name not in self._copies:
            # A copy: processes of other users of the installed file would keep its pages.
            folder = self._cleanup.enter_context(files.disk_folder())
            self._copies[side.name] = files.copy(side.shim, folder)
        shim = self._copies[side.name]
        files.evict(shim)
        return {"cold": self._launcher.launch(replace(side, shim=shim)).start_ms}

    def first(self, side: Side) -> Mapping[str, float]:
        """`start` of a file that nothing has run before, or of one that has been started many times."""
        if side.name != OLD:
            with files.disk_folder() as folder:
                return {"first": self._launcher.launch(replace(side, shim=files.copy(side.shim, folder))).start_ms}
        if OLD not in self._copies:
            folder = self._cleanup.enter_context(files.disk_folder())
            self._copies[OLD] = files.copy(side.shim, folder)
            for _ in range(WORN - 1):
                self._launcher.launch(replace(side, shim=self._copies[OLD]))
        return {"first": self._launcher.launch(replace(side, shim=self._copies[OLD])).start_ms}

    def burst(self, side: Side) -> Mapping[str, float]:
        """Many lives at the same time."""
        return {"burst": self._containers.lives_ms(side, AT_ONCE)}

    def stdout(self, side: Side) -> Mapping[str, float]:
        """Output through fifo, `ctr` and a pipe, counted at its end."""
        writer = ["dd", "if=/dev/zero", "bs=1M", f"count={_GIB >> 20}"]
        containers = self._containers
        containers.containerd.import_image()
        args = containers.containerd.run_arguments(containers.name(), *writer, runtime=side.runtime)
        began = time.perf_counter()
        with containers.containerd.popen(*args, stderr=subprocess.DEVNULL) as client:
            assert client.stdout is not None
            received = 0
            while size := len(os.read(client.stdout.fileno(), 1 << 20)):
                received += size
        elapsed = time.perf_counter() - began
        if received != _GIB or client.returncode:
            raise RuntimeError(f"{received} of {_GIB} bytes arrived, ctr ended with {client.returncode}")
        return {"stdout": elapsed}

    def pss(self, side: Side, count: int) -> float:
        """Memory of all that runs the shim's executable, with containers of this side only."""
        self._end_living()
        names = [self._containers.detached(side) for _ in range(count)]
        held = self._containers.settled_pss_mb(side)
        self._containers.remove(names)
        return held

    def crowd(self, side: Side) -> Mapping[str, float]:
        """State of a task whose daemon has many others, or none: one daemon for each namespace of containerd."""
        if side.name not in self._callers:
            namespace = f"{self._containers.containerd.namespace}-{len(self._callers)}"
            count = 1 if side.name == ALONE else CROWD
            names = [self._containers.detached(side, namespace=namespace) for _ in range(count)]
            self._cleanup.callback(self._containers.remove, names, namespace)
            bundle = self._containers.containerd.bundle(names[-1], namespace)
            caller = self._cleanup.enter_context(Caller(socket_in(bundle), side.service))
            self._callers[side.name] = caller, names[-1]
        caller, name = self._callers[side.name]
        return {"crowd": caller.p50_us("State", name, _STATE_CALLS)}

    def _alive(self, side: Side) -> str:
        if side.name not in self._living:
            if not self._living:
                self._cleanup.callback(self._end_living)
            self._living[side.name] = self._containers.detached(side)
        return self._living[side.name]

    def _end_living(self) -> None:
        self._containers.remove(list(self._living.values()))
        self._living.clear()

    def _meter(self, side: Side) -> tuple[PeakCgroup, Launcher]:
        if side.name not in self._meters:
            containerd = self._containers.containerd
            meter = self._cleanup.enter_context(PeakCgroup(f"{containerd.namespace}-peak-{side.name}"))
            self._meters[side.name] = meter, Launcher(containerd, self._environment, f"peak-{side.name}", meter.prefix)
        return self._meters[side.name]
