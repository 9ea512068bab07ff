"""How cost grows with containers: memory of all, one more container, one more `start`, one State call.

Sides are measured one after the other, since hundreds of containers of one would slow the other; within a side the
count only grows.  Go's is measured twice, as it comes and with all containers in one pod, and so is ours.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from tests.bench.calls import Caller, socket_in
from tests.bench.containers import Containers
from tests.bench.launch import Launcher
from tests.bench.report import Step
from tests.bench.rows import GO, OURS
from tests.bench.sampling import spread
from tests.bench.setting import Mode, Side

COUNTS: Final = (1, 10, 100, 300)
_SAMPLES: Final = 10
_STATE_CALLS: Final = 200


class Line(NamedTuple):
    """One line of the plot: a side, how it groups containers, and under which mode."""

    name: str
    side: str
    mode: Mode
    pod: str = ""


LINES: Final[Sequence[Line]] = (
    Line(GO, GO, Mode.SPLIT),
    Line(f"{GO}, one pod", GO, Mode.SPLIT, "crowd"),
    Line(OURS, OURS, Mode.SPLIT),
    Line(f"{OURS}, one daemon", OURS, Mode.DENSE),
)


def lines(mode: Mode, sides: Sequence[Side]) -> list[tuple[Line, Side]]:
    """Return what is measured in a mode; a side that has no line of its own has one by its name."""
    named = {side.name: side for side in sides}
    known = [(line, named[line.side]) for line in LINES if line.mode is mode]
    others = [side for name, side in named.items() if name not in {line.side for line in LINES}]
    return known + [(Line(side.name, side.name, mode), side) for side in others if mode is Mode.SPLIT]


def grow(
    line: Line,
    side: Side,
    containers: Containers,
    environment: Mapping[str, str],
    counts: Sequence[int] = COUNTS,
) -> Iterator[Step]:
    """Yield what each count of containers costs."""
    launcher = Launcher(containers.containerd, environment, "grow")
    names: list[str] = []
    try:
        for count in counts:
            while len(names) < count:
                names.append(containers.detached(side, pod=line.pod))
            pss_mb = containers.settled_pss_mb(side)
            yield {
                "side": line.name,
                "containers": count,
                "pss_mb": round(pss_mb, 3),
                "run_ms": spread([_one_more_ms(containers, side, line.pod) for _ in range(_SAMPLES)]),
                "start_ms": spread(_samples(_start(launcher, line, side))),
                "state_us": spread(_states(containers, side, names[-1])),
            }
    finally:
        containers.remove(names)
        shutil.rmtree(containers.containerd.folder / "bundles", ignore_errors=True)


def _one_more_ms(containers: Containers, side: Side, pod: str) -> float:
    began = time.perf_counter()
    name = containers.detached(side, pod=pod)
    elapsed = (time.perf_counter() - began) * 1e3
    containers.remove([name])
    return elapsed


def _start(launcher: Launcher, line: Line, side: Side) -> Callable[[], float]:
    if line.mode is Mode.DENSE or line.pod:
        return lambda: launcher.join(side, line.pod)
    return lambda: launcher.launch(side).start_ms


def _samples(one: Callable[[], float]) -> list[float]:
    one()
    return [one() for _ in range(_SAMPLES)]


def _states(containers: Containers, side: Side, name: str) -> list[float]:
    with Caller(socket_in(containers.containerd.bundle(name)), side.service) as caller:
        caller.p50_us("State", name, _STATE_CALLS)
        return [caller.p50_us("State", name, _STATE_CALLS) for _ in range(_SAMPLES)]
