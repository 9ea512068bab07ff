"""Measures all rows, and growth where it is wanted, under one release: a private containerd for each mode, in turn."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from shim.testing.containerd import CommandError, Containerd
from shim.testing.releases import Release
from tests.bench import growth
from tests.bench.cases import Bench, Case
from tests.bench.containers import Containers
from tests.bench.memory import UnmeasuredError
from tests.bench.report import Figures, ReleaseFigures, Step
from tests.bench.rows import GO, ROWS, RUST
from tests.bench.sampling import interleave, spread, versus
from tests.bench.setting import Mode, Side, environment, sides


@dataclass(frozen=True, slots=True)
class Wanted:
    """What shall be measured: `only` these rows (empty: all), in the quick way, with growth."""

    ours: Path
    rust: Path | None = None
    only: Collection[str] = ()
    quick: bool = False
    growth: bool = False


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told of what is measured, as it comes."""

    row: Callable[[Figures], None]
    step: Callable[[Step], None]
    trouble: Callable[[str], None]


def measure(release: Release, wanted: Wanted, listener: Listener) -> ReleaseFigures:
    """Return all figures under one release."""
    found: ReleaseFigures = {"containerd": release.version, "rows": [], "growth": [], "unmeasured": {}}
    shims = sides(release, wanted.ours, wanted.rust)
    for mode in Mode:
        with tempfile.TemporaryDirectory(prefix="shim-bench-") as folder:
            _measure_mode(release, wanted, listener, found, mode, shims, Path(folder))
    order = list(ROWS)
    found["rows"].sort(key=lambda row: order.index(row["name"]))
    return found


def _measure_mode(
    release: Release,
    wanted: Wanted,
    listener: Listener,
    found: ReleaseFigures,
    mode: Mode,
    shims: Sequence[Side],
    folder: Path,
) -> None:
    variables = environment(mode, folder)
    path = list(dict.fromkeys(side.shim.parent for side in shims if side.name != GO))
    containerd = Containerd(release, path, environment=dict(variables))
    containers = Containers(containerd)
    bench = Bench(containers, mode, variables)
    cases = [case for case in bench.cases(shims) if _is_wanted(case, wanted)]
    lines = growth.lines(mode, shims) if wanted.growth else []
    counts = growth.COUNTS[:2] if wanted.quick else growth.COUNTS
    if not cases and not lines:
        return
    with containerd:
        with bench:
            for case in cases:
                try:
                    rows = _measure_case(case, wanted, case.sides or shims, listener)
                except UnmeasuredError as error:
                    found["unmeasured"].update(dict.fromkeys(case.rows, str(error)))
                    listener.trouble(f"not measured: {', '.join(case.rows)}: {error}")
                    continue
                found["rows"] += rows
                for row in rows:
                    listener.row(row)
        for line, side in lines:
            for step in growth.grow(line, side, containers, variables, counts):
                found["growth"].append(step)
                listener.step(step)
    for what in containerd.left_behind:
        listener.trouble(f"left behind (removed by force): {what}")


def _is_wanted(case: Case, wanted: Wanted) -> bool:
    runs = case.quick_runs if wanted.quick else case.runs
    return runs > 0 and (not wanted.only or not set(wanted.only).isdisjoint(case.rows))


def _measure_case(case: Case, wanted: Wanted, compared: Sequence[Side], listener: Listener) -> list[Figures]:
    runs = case.quick_runs if wanted.quick else case.runs
    began = time.monotonic()
    try:
        samples = interleave(
            compared, case.measure, runs=runs, warm_up=min(case.warm_up, runs - 1), name_of=lambda side: side.name
        )
    except (CommandError, RuntimeError, OSError) as error:
        # What the third side cannot do is no reason to know nothing of the other two.
        fewer = [side for side in compared if side.name != RUST]
        if len(fewer) == len(compared):
            raise
        listener.trouble(f"without the Rust shim: {', '.join(case.rows)}: {error}")
        return _measure_case(case, wanted, fewer, listener)
    seconds = round(time.monotonic() - began, 1)
    return [_figures(name, samples[name], seconds) for name in case.rows]


def _figures(name: str, samples: dict[str, list[float]], seconds: float) -> Figures:
    base = ROWS[name].base
    return {
        "name": name,
        "sides": {side: spread(values) for side, values in samples.items()},
        "versus": {side: versus(values, samples[base]) for side, values in samples.items() if side != base},
        "seconds": seconds,
    }
