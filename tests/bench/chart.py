"""The plot of a file of results: a bar for each row and release, and how cost grows with containers below."""

from __future__ import annotations

from typing import Final

from tests.bench import growth_chart
from tests.bench.report import Figures, Report, rows_of, sides_of
from tests.bench.rows import GO, OURS, ROWS, RUST, Row
from tests.bench.svg import Drawing
from tests.bench.table import figure, mark, target

WIDTH: Final = 980
_MARGIN: Final = 24
_LEFT: Final = 350  # where the axis has its zero
_RIGHT: Final = 690  # and its end
_MARK: Final = 712
_END: Final = 1.5  # the ratio there; a longer bar is cut
_BAR: Final = 11
_GAP: Final = 9
KINDS: Final = ("first", "second", "third")


def render(report: Report) -> str:
    """Return the SVG file."""
    drawing = Drawing()
    bottom = _draw_head(drawing, report)
    bottom = _draw_rows(drawing, report, bottom + 8)
    bottom = growth_chart.draw(drawing, report, _MARGIN, bottom + 30, WIDTH - 2 * _MARGIN)
    facts = ", ".join(report["machine"].get(name, "") for name in ("processor", "kernel", "date"))
    drawing.text(_MARGIN, bottom + 14, f"{facts}; runc {report['machine'].get('runc', '')}", "muted")
    return drawing.whole(WIDTH, bottom + 30, "The shim in Python beside Go's: time and memory")


def _draw_head(drawing: Drawing, report: Report) -> float:
    drawing.text(_MARGIN, 34, "ours, as a part of Go's shim", bold=True)
    drawing.text(_MARGIN + 178, 34, "shorter is better; medians, with the 95 % interval of their ratio", "muted")
    x = float(_MARGIN)
    for release, kind in zip(report["releases"], KINDS, strict=False):
        drawing.bar(x, 50, 14, _BAR, kind)
        drawing.text(x + 20, 60, f"containerd {release['containerd']}", "muted")
        x += 140
    drawing.bar(x, 48, 2.5, 15, "ink")
    drawing.text(x + 9, 60, "may be at most", "muted")
    if RUST in sides_of(report):
        drawing.dot(x + 126, 55.5, "rust", 3.5)
        drawing.text(x + 135, 60, "the Rust shim", "muted")
    return 66


def _draw_rows(drawing: Drawing, report: Report, top: float) -> float:
    releases = list(zip(report["releases"], KINDS, strict=False))
    shown = [name for name in ROWS if any(name in rows_of(release) for release, _ in releases)]
    height = len(releases) * _BAR + _GAP
    bottom = top + 18 + len(shown) * height
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25):
        drawing.line([(_x(tick), top + 14), (_x(tick), bottom)], "go" if tick == 1 else "grid", width=1)
        drawing.text(_x(tick), top + 9, "Go" if tick == 1 else f"{tick:g}", "muted", anchor="middle")
    drawing.text(_MARK + 18, top + 9, "ours / Go's", "muted")
    for index, name in enumerate(shown):
        y = top + 18 + index * height + _GAP / 2
        row = ROWS[name]
        drawing.text(_LEFT - 12, y + (height - _GAP) / 2 + 4, f"{row.title.replace('`', '')}", anchor="end")
        for number, (release, kind) in enumerate(releases):
            if figures := rows_of(release).get(name):
                _draw_bar(drawing, row, figures, y + number * _BAR, kind, release["containerd"])
    return bottom


def _draw_bar(drawing: Drawing, row: Row, figures: Figures, y: float, kind: str, containerd: str) -> None:
    found = figures["versus"][OURS]
    middle = y + _BAR / 2
    drawing.bar(_LEFT, y + 0.5, _x(found["ratio"]) - _LEFT, _BAR - 1, kind)
    if found["ratio"] > _END:
        drawing.text(_RIGHT + 3, middle + 4, ">", kind)
    elif found["low"] < found["high"]:
        drawing.line([(_x(found["low"]), middle), (_x(found["high"]), middle)], "ink", width=1)
    if RUST in figures["versus"]:
        drawing.dot(_x(figures["versus"][RUST]["ratio"]), middle, "rust", 3.5)
    most = row.target_under(containerd)
    if most is not None:
        drawing.bar(_x(most) - 1.25, y - 1, 2.5, _BAR + 2, "ink")
    sign = mark(row, figures, containerd)
    drawing.text(_MARK, middle + 4, sign, "bad" if sign == "✗" else "ink", anchor="middle")
    base = figures["sides"][row.base]["median"]
    whose = "" if row.base == GO else f" ({row.base})"
    limit = f" (at most {target(row, containerd)})" if row.limit is not None else ""
    drawing.text(
        _MARK + 18,
        middle + 4,
        f"{found['ratio']:.2f}   {figure(figures['sides'][OURS]['median'])} / {figure(base)} {row.unit}{whose}{limit}",
        "muted",
    )


def _x(ratio: float) -> float:
    return _LEFT + min(ratio, _END) / _END * (_RIGHT - _LEFT)
