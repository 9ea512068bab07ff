"""Results as text: lines for a terminal while it measures, a table in Markdown from a file of results."""

from __future__ import annotations

from typing import Final

from tests.bench.report import Figures, ReleaseFigures, Report, Spread, Step, rows_of, sides_of
from tests.bench.rows import GO, OURS, ROWS, RUST, Row

_COLUMNS: Final = "{:<54}{:>24}{:>24}  {:<18} {:>7} {:<1} {:>4}"
_NONE: Final = "-"


def figure(value: float) -> str:
    """Return a number with as many digits as it is worth."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def is_met(row: Row, figures: Figures, containerd: str) -> bool | None:
    """Say whether the row's target under this release is met by what was measured; None where it has none."""
    if row.limit is not None:
        return figures["sides"][OURS]["median"] <= row.limit
    target = row.target_under(containerd)
    return None if target is None else figures["versus"][OURS]["ratio"] <= target


def mark(row: Row, figures: Figures, containerd: str) -> str:
    """Return the sign of that, or nothing where the row has no target."""
    met = is_met(row, figures, containerd)
    return "" if met is None else "✓" if met else "✗"


def target(row: Row, *releases: str) -> str:
    """Return what ours may be at most: a figure with its unit, or a ratio, one for each release where they differ."""
    if row.limit is not None:
        return f"{row.limit:g} {row.unit}"
    targets = dict.fromkeys(row.target_under(containerd) for containerd in releases)
    return " / ".join("" if each is None else f"{each:.2f}" for each in targets)


# While it measures.


def plain_head(*, has_rust: bool) -> str:
    """Return the head of the lines of `plain_row`."""
    head = _COLUMNS.format("", "Go", "ours", "ours/Go (95 %)", "at most", "", "n")
    return head + ("  Rust" if has_rust else "")


def plain_row(figures: Figures, containerd: str) -> str:
    """Return one row: medians, with the least and the greatest sample."""
    row = ROWS[figures["name"]]
    sides = figures["sides"]
    title = f"{row.title.replace('`', '')}, {row.unit}"
    line = _COLUMNS.format(
        title,
        _range(sides[row.base]),
        _range(sides[OURS]),
        _ratio(figures),
        target(row, containerd),
        mark(row, figures, containerd),
        sides[OURS]["n"],
    )
    others = [
        f"{side} {_range(spread)}, ours/{side} {figure(sides[OURS]['median'] / spread['median'])}"
        for side, spread in sides.items()
        if side not in {row.base, OURS}
    ]
    return "  ".join([line, *others]).rstrip()


def plain_step(step: Step) -> str:
    """Return one step of growth."""
    memory = f"{figure(step['pss_mb'])} MB, {figure(step['pss_mb'] / step['containers'])} each"
    return (
        f"{step['side']}, {step['containers']} containers: {memory}; one more: ctr run {_range(step['run_ms'])} ms, "
        f"start {_range(step['start_ms'])} ms; State {_range(step['state_us'])} µs"
    )


# From a file.


def markdown(report: Report) -> str:
    """Return everything that the file holds, as Markdown."""
    parts = [_rows_table(report)]
    parts += [_growth_table(release) for release in report["releases"] if release["growth"]]
    for release in report["releases"]:
        parts += [
            f"Not measured under containerd {release['containerd']}: {ROWS[name].title}: {reason}."
            for name, reason in release["unmeasured"].items()
            if name in ROWS
        ]
    facts = "; ".join(f"{name} {value}" for name, value in report["machine"].items())
    return "\n\n".join([*parts, f"Taken on: {facts}."]) + "\n"


def _rows_table(report: Report) -> str:
    others = [side for side in sides_of(report) if side == RUST]
    head, rule = ["", "at most"], ["---", "--:"]
    for release in report["releases"]:
        head += [f"Go, {release['containerd']}", *others, "ours", "ours/Go (95 %)"]
        rule += ["--:"] * (3 + len(others))
    lines = [head, rule]
    for name, row in ROWS.items():
        if not any(name in rows_of(release) for release in report["releases"]):
            continue
        line = [f"{row.title}, {row.unit}", target(row, *(release["containerd"] for release in report["releases"]))]
        for release in report["releases"]:
            line += _cells(row, rows_of(release).get(name), others, release["containerd"])
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row, figures: Figures | None, others: list[str], containerd: str) -> list[str]:
    if figures is None:
        return [_NONE] * (3 + len(others))
    sides = figures["sides"]
    base = figure(sides[row.base]["median"]) + ("" if row.base == GO else f" ({row.base})")
    beside = [figure(sides[side]["median"]) if side in sides else _NONE for side in others]
    ratio = f"{_ratio(figures)} {mark(row, figures, containerd)}".rstrip()
    return [base, *beside, figure(sides[OURS]["median"]), ratio]


def _growth_table(release: ReleaseFigures) -> str:
    head = ["side", "containers", "PSS, MB", "each, MB", "one more `ctr run`, ms", "`start`, ms", "State p50, µs"]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    for step in release["growth"]:
        each = step["pss_mb"] / step["containers"]
        figures = [step["pss_mb"], each, *(step[key]["median"] for key in ("run_ms", "start_ms", "state_us"))]
        lines.append([step["side"], str(step["containers"]), *map(figure, figures)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"Growth under containerd {release['containerd']}:\n\n{table}"


def _range(spread: Spread) -> str:
    return f"{figure(spread['median'])} ({figure(spread['min'])}-{figure(spread['max'])})"


def _ratio(figures: Figures) -> str:
    found = figures["versus"][OURS]
    if found["low"] == found["high"]:
        return f"{found['ratio']:.2f}"
    return f"{found['ratio']:.2f} ({found['low']:.2f}-{found['high']:.2f})"
