"""Interleaved samples of several sides, and their statistics.

The sides take turns (A B, B A, A B ...), so that a change of the machine's load in the middle meets all alike, and the
samples of one turn are a pair.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from tests.bench.report import Spread, Versus

SideT = TypeVar("SideT")

_RESAMPLES: Final = 2000
_CONFIDENCE: Final = 0.95


def interleave(
    sides: Sequence[SideT],
    measure: Callable[[SideT], Mapping[str, float]],
    *,
    runs: int,
    warm_up: int,
    name_of: Callable[[SideT], str],
) -> dict[str, dict[str, list[float]]]:
    """Measure each side `warm_up` times for nothing and `runs` times for good; return metric -> side -> samples."""
    samples: dict[str, dict[str, list[float]]] = {}
    for turn in range(-warm_up, runs):
        for side in sides if turn % 2 == 0 else reversed(sides):
            measured = measure(side)
            if turn < 0:
                continue
            for metric, value in measured.items():
                samples.setdefault(metric, {}).setdefault(name_of(side), []).append(value)
    return samples


def spread(samples: Sequence[float]) -> Spread:
    """Return what the samples of one side come to."""
    q1, _, q3 = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else (samples[0],) * 3
    return {
        "median": _rounded(statistics.median(samples)),
        "q1": _rounded(q1),
        "q3": _rounded(q3),
        "min": _rounded(min(samples)),
        "max": _rounded(max(samples)),
        "n": len(samples),
        "samples": [_rounded(sample) for sample in samples],
    }


def versus(ours: Sequence[float], base: Sequence[float]) -> Versus:
    """Return the ratio of the medians, and its 95 % interval by resampling pairs (turns, not samples, are drawn).

    The draws are seeded: the same samples give the same interval. Of very few pairs it is the range of their ratios.
    """
    pairs = list(zip(ours, base, strict=True))
    # Not a secret: a statistic that shall come out alike again.
    chance = random.Random(len(pairs))  # noqa: S311
    drawn = sorted(_ratio(chance.choices(pairs, k=len(pairs))) for _ in range(_RESAMPLES))
    cut = round(_RESAMPLES * (1 - _CONFIDENCE) / 2)
    return {
        "ratio": _rounded(_ratio(pairs)),
        "low": _rounded(drawn[cut]),
        "high": _rounded(drawn[-1 - cut]),
    }


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return statistics.median(one for one, _ in pairs) / statistics.median(other for _, other in pairs)


def _rounded(value: float) -> float:
    return round(value, 4)
