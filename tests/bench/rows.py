"""The rows of the comparison: what each is called, its unit, and what ours may be at most.

Rule: data, no measuring.  cases.py measures each row, table.py and chart.py show them in this order.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

FEW: Final = 20
MANY: Final = 100
CROWD: Final = 300
AT_ONCE: Final = 30
WORN: Final = 1000

GO: Final = "Go"
RUST: Final = "Rust"
OURS: Final = "ours"
# The bases of the two rows that compare ours with ours.
ALONE: Final = "ours, 1 container"
OLD: Final = f"ours, after {WORN}"


class Row(NamedTuple):
    """One row: `target` is what ours/base may be at most, `limit` what ours may be in the row's own unit.

    `target_2` is the target under containerd 2, where it differs: the Go shims of 1.x and 2.x do.
    """

    title: str
    unit: str
    target: float | None = None
    target_2: float | None = None
    limit: float | None = None
    base: str = GO

    def target_under(self, containerd: str) -> float | None:
        """Return the target under a release of containerd."""
        is_1 = containerd.startswith("1.")
        return self.target if is_1 or self.target_2 is None else self.target_2


ROWS: Final[Mapping[str, Row]] = MappingProxyType(
    {
        "version": Row("`-v`", "ms", 0.45),
        "start": Row("`start` until exit", "ms", 0.5),
        "connect": Row("`start` until the first call is answered", "ms", 0.5),
        "delete": Row("`delete`, nothing to delete", "ms", 0.45),
        "run": Row("`ctr run --rm … true`", "ms", 0.85),
        "exec": Row("`ctr tasks exec … true`", "ms", 0.9),
        "burst": Row(f"{AT_ONCE} `ctr run --rm … true` at once", "ms", 0.85),
        "stdout": Row("1 GiB of stdout through `ctr run`", "s", 0.5, 0.8),
        "state": Row("one State call, p50", "µs", 0.5),
        "state-asleep": Row("one State call, p50, of a client that sleeps meanwhile", "µs"),
        "crowd": Row(f"one State call, p50, {CROWD} containers in our daemon", "µs", 1.2, base=ALONE),
        "pss-1": Row("memory (PSS), 1 container", "MB", 1.0),
        f"pss-{FEW}": Row(f"memory (PSS), {FEW} containers, a daemon each", "MB", 0.8),
        f"dense-{MANY}": Row(f"memory (PSS), {MANY} containers, ours in one daemon", "MB", 0.08),
        "peak": Row("peak of what a `start` adds to memory", "MB", 0.8),
        "daemon-peak": Row("peak resident set of a new daemon", "MB"),
        "size": Row("binary on disk", "MB", limit=14),
        "cold": Row("`start` until exit, file not in the page cache", "ms", 1.2),
        "first": Row("`start` until exit, first of a new file", "ms", 1.1, base=OLD),
    }
)
