"""Interleaved samples of two sides, and their statistics.

The sides take turns (A B, B A, A B ...), so that a change of the machine's load in the middle meets both alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

SideT = TypeVar("SideT")


@dataclass(frozen=True, slots=True)
class Summary:
    """What the samples of one side come to."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    def as_json(self) -> dict[str, object]:
        """Return the form for the JSON file."""
        return {
            "median": round(self.median, 4),
            "min": round(min(self.samples), 4),
            "max": round(max(self.samples), 4),
            "samples": [round(sample, 4) for sample in self.samples],
        }

    def __str__(self) -> str:
        return f"{_figure(self.median)} ({_figure(min(self.samples))}-{_figure(max(self.samples))})"


def interleave(
    sides: Sequence[SideT],
    measure: Callable[[SideT], Mapping[str, float]],
    *,
    runs: int,
    warm_up: int,
    name_of: Callable[[SideT], str],
) -> dict[str, dict[str, Summary]]:
    """Measure each side `warm_up` times for nothing and `runs` times for good; return metric -> side -> summary."""
    samples: dict[str, dict[str, list[float]]] = {}
    for turn in range(-warm_up, runs):
        for side in sides if turn % 2 == 0 else reversed(sides):
            measured = measure(side)
            if turn < 0:
                continue
            for metric, value in measured.items():
                samples.setdefault(metric, {}).setdefault(name_of(side), []).append(value)
    return {
        metric: {side: Summary(tuple(values)) for side, values in by_side.items()}
        for metric, by_side in samples.items()
    }


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
