"""Renews the figures that the documentation shows: bench.json without samples, bench.svg, the table in bench.md."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.bench import chart, report, table
from tests.bench.report import Report, ReportError

BEGIN: Final = "<!-- the figures, by ./just bench --publish -->"
END: Final = "<!-- end of the figures -->"


def publish(found: Report, folder: Path) -> None:
    """Write the three files of one folder; bench.md is left alone where there is none.

    Raises:
        ReportError: bench.md has no place for the table.
    """
    small = report.summary(found)
    report.write(small, folder / "bench.json")
    (folder / "bench.svg").write_text(chart.render(small))
    page = folder / "bench.md"
    if page.is_file():
        page.write_text(with_figures(page.read_text(), table.markdown(small)))


def with_figures(page: str, figures: str) -> str:
    """Return the page with these figures between its two marks.

    Raises:
        ReportError: It has not both.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ReportError(f"no place for the figures: the page lacks {BEGIN if not begin else END}")
    return f"{head}{BEGIN}\n\n{figures}\n{END}{tail}"
