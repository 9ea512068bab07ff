"""The file of results: what is in it, and how it is written, read and made small.

Rule: names and numbers only. Titles, units and targets are in rows.py, so that they are said once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NotRequired, TypedDict

FORMAT: Final = 1


class ReportError(Exception):
    """A file is not one of results."""


class Spread(TypedDict):
    """What the samples of one side come to; a summary has no samples."""

    median: float
    q1: float
    q3: float
    min: float
    max: float
    n: int
    samples: NotRequired[list[float]]


class Versus(TypedDict):
    """A side's median by the base's, and the interval of that ratio."""

    ratio: float
    low: float
    high: float


class Figures(TypedDict):
    """One row: each side's figures, and every side but the base against it."""

    name: str
    sides: dict[str, Spread]
    versus: dict[str, Versus]
    seconds: float  # that the row's case took, all sides and rows of it together


class Step(TypedDict):
    """One side with so many containers: memory of all of it, and the figures of one more container."""

    side: str
    containers: int
    pss_mb: float
    run_ms: Spread
    start_ms: Spread
    state_us: Spread


class ReleaseFigures(TypedDict):
    """All that was measured under one release of containerd; `unmeasured` says why a row is not there."""

    containerd: str
    rows: list[Figures]
    growth: list[Step]
    unmeasured: dict[str, str]


class Report(TypedDict):
    """The whole file; `machine` is for people: processor, kernel, runc and so on."""

    format: int
    machine: dict[str, str]
    releases: list[ReleaseFigures]


def read(path: Path) -> Report:
    """Return what is in a file of results.

    Raises:
        ReportError: It is none, or not of this format.
        OSError: It cannot be read.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ReportError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ReportError(f"{path} is no result of this benchmark, or of another version of it")
    report: Report = {"format": FORMAT, "machine": found["machine"], "releases": found["releases"]}
    return report


def write(report: Report, path: Path) -> None:
    """Write the file, and its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def summary(report: Report) -> Report:
    """Return the report without samples, and without what only says how long the measuring took."""
    return {
        **report,
        "releases": [
            {
                **release,
                "rows": [
                    {**row, "sides": {side: _bare(figures) for side, figures in row["sides"].items()}}
                    for row in release["rows"]
                ],
                "growth": [
                    {
                        **step,
                        "run_ms": _bare(step["run_ms"]),
                        "start_ms": _bare(step["start_ms"]),
                        "state_us": _bare(step["state_us"]),
                    }
                    for step in release["growth"]
                ],
            }
            for release in report["releases"]
        ],
    }


def sides_of(report: Report) -> list[str]:
    """Return the sides of the rows, in the order in which they were first met."""
    rows = [row for release in report["releases"] for row in release["rows"]]
    return list(dict.fromkeys(side for row in rows for side in row["sides"]))


def rows_of(release: ReleaseFigures) -> Mapping[str, Figures]:
    """Return the rows by name."""
    return {row["name"]: row for row in release["rows"]}


def _bare(spread: Spread) -> Spread:
    return {
        "median": spread["median"],
        "q1": spread["q1"],
        "q3": spread["q3"],
        "min": spread["min"],
        "max": spread["max"],
        "n": spread["n"],
    }
