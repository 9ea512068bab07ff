"""Four small plots for each release: what a container costs when there are 1, 10, 100 and 300 of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from tests.bench.growth import LINES
from tests.bench.report import ReleaseFigures, Report, Step
from tests.bench.rows import GO, OURS, RUST
from tests.bench.svg import Drawing, Point

_HEIGHT: Final = 130
_GAP: Final = 44
_DASHES: Final = "5 4"


class Plot(NamedTuple):
    """One small plot."""

    title: str
    value: Callable[[Step], float]
    is_logarithmic: bool = False


PLOTS: Final[Sequence[Plot]] = (
    Plot("memory (PSS) for each, MB", lambda step: step["pss_mb"] / step["containers"], True),
    Plot("one more ctr run --detach, ms", lambda step: step["run_ms"]["median"]),
    Plot("one more start, ms", lambda step: step["start_ms"]["median"]),
    Plot("one State call, p50, µs", lambda step: step["state_us"]["median"]),
)


def draw(drawing: Drawing, report: Report, left: float, top: float, width: float) -> float:
    """Draw the plots of all releases that have any, and return where they end."""
    releases = [release for release in report["releases"] if release["growth"]]
    if not releases:
        return top - 20
    drawing.text(left, top, "as containers grow", bold=True)
    x = left + 140.0
    for line in dict.fromkeys(step["side"] for release in releases for step in release["growth"]):
        kind, dashes = _look(line)
        drawing.line([(x, top - 4), (x + 26, top - 4)], kind, width=2, dashes=dashes)
        drawing.text(x + 33, top, line, "muted")
        x += 52 + 7 * len(line)
    for release in releases:
        drawing.text(left, top + 24, f"containerd {release['containerd']}", "muted")
        size = (width - _GAP * (len(PLOTS) - 1)) / len(PLOTS)
        for index, plot in enumerate(PLOTS):
            _draw_plot(drawing, plot, release, left + index * (size + _GAP), top + 46, size)
        top += _HEIGHT + 70
    return top


def _draw_plot(drawing: Drawing, plot: Plot, release: ReleaseFigures, left: float, top: float, width: float) -> None:
    counts = sorted({step["containers"] for step in release["growth"]})
    values = [plot.value(step) for step in release["growth"]]
    low, high, ticks = _scale(values, plot.is_logarithmic)
    inner = left + 26
    plain = top + 12

    def place(step: Step) -> Point:
        # The counts stand at even distances: they are nearly a geometric row.
        share = counts.index(step["containers"]) / max(1, len(counts) - 1)
        value = plot.value(step)
        height = math.log(value / low) / math.log(high / low) if plot.is_logarithmic else (value - low) / (high - low)
        return inner + share * (width - 26), plain + (1 - height) * _HEIGHT

    drawing.text(left, top, plot.title)
    for tick, height in ticks:
        y = plain + (1 - height) * _HEIGHT
        drawing.line([(inner, y), (left + width, y)], "grid")
        drawing.text(inner - 6, y + 4, f"{tick:g}", "muted", anchor="end")
    for index, count in enumerate(counts):
        x = inner + index / max(1, len(counts) - 1) * (width - 26)
        drawing.text(x, plain + _HEIGHT + 16, str(count), "muted", anchor="middle")
    for line, steps in _by_line(release).items():
        kind, dashes = _look(line)
        points = [place(step) for step in steps]
        drawing.line(points, kind, width=2, dashes=dashes)
        for x, y in points:
            drawing.dot(x, y, kind, 2.5)


def _by_line(release: ReleaseFigures) -> Mapping[str, list[Step]]:
    found: dict[str, list[Step]] = {}
    for step in release["growth"]:
        found.setdefault(step["side"], []).append(step)
    return found


def _look(line: str) -> tuple[str, str]:
    """Return colour and dashes: the side has the colour, and what shares a daemon is dashed."""
    side = next((known.side for known in LINES if known.name == line), line)
    return {GO: "go", OURS: "first", RUST: "rust"}.get(side, "third"), _DASHES if "," in line else ""


def _scale(values: Sequence[float], is_logarithmic: bool) -> tuple[float, float, list[tuple[float, float]]]:
    """Return the ends of the axis, and ticks with where they are between them."""
    greatest = max(values)
    if is_logarithmic:
        low = 10.0 ** math.floor(math.log10(min(values)))
        high = 10.0 ** math.ceil(math.log10(greatest) + 1e-9)
        decades = round(math.log10(high / low))
        return low, high, [(low * 10**step, step / decades) for step in range(decades + 1)]
    step = _round_step(greatest / 4)
    count = math.ceil(greatest / step)
    return 0.0, count * step, [(number * step, number / count) for number in range(count + 1)]


def _round_step(least: float) -> float:
    unit = 10.0 ** math.floor(math.log10(least))
    return next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= least)
