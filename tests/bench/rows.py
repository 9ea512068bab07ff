"""The rows of the comparison: what each is called, its unit, and what ours may be of Go's.

Rule: data, no measuring.  cases.py measures each row, table.py and chart.py show them in this order.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

MANY: Final = 100
CROWD: Final = 300
AT_ONCE: Final = 30

GO: Final = "Go"
RUST: Final = "Rust"
OURS: Final = "ours"
# What is the base of the one row that compares ours with ours.
ALONE: Final = "ours, 1 container"


class Row(NamedTuple):
    """One row: `target` is what ours/base may be at most, `limit` what ours may be in the row's own unit."""

    title: str
    unit: str
    target: float | None = None
    limit: float | None = None
    base: str = GO


ROWS: Final[Mapping[str, Row]] = MappingProxyType(
    {
        "start": Row("`start` until exit", "ms", 0.6),
        "connect": Row("`start` until the first call is answered", "ms", 0.6),
        "version": Row("`-v`", "ms", 1.0),
        "delete": Row("`delete`, nothing to delete", "ms"),
        "run": Row("`ctr run --rm … true`", "ms", 0.9),
        "exec": Row("`ctr tasks exec … true`", "ms", 0.95),
        "burst": Row(f"{AT_ONCE} `ctr run --rm … true` at once", "ms", 0.9),
        "stdout": Row("1 GiB of stdout through `ctr run`", "s", 0.6),
        "state": Row("one State call, p50", "µs", 0.5),
        "state-asleep": Row("one State call, p50, of a client that sleeps meanwhile", "µs"),
        "pss-1": Row("memory (PSS), 1 container", "MB", 1.0),
        f"pss-{MANY}": Row(f"memory (PSS), {MANY} containers, a daemon each", "MB", 0.8),
        f"dense-{MANY}": Row(f"memory (PSS), {MANY} containers, ours in one daemon", "MB", 0.15),
        "peak": Row("peak of what a `start` adds to memory", "MB", 1.0),
        "daemon-peak": Row("peak resident set of a new daemon", "MB"),
        "crowd": Row(f"one State call, p50, {CROWD} containers in our daemon", "µs", 1.2, base=ALONE),
        "size": Row("binary on disk", "MB", 1.0),
    }
)
