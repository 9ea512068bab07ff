"""The benchmark's own arithmetic: turns, medians, intervals, tables, files and plots; nothing is measured here."""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.bench import chart, files, publish, report, sampling, table
from tests.bench.__main__ import parse
from tests.bench.memory import UnmeasuredError
from tests.bench.report import Figures, Report, ReportError
from tests.bench.rows import OURS, ROWS
from tests.docs.blocks import texts


def figures(name: str, base: Sequence[float], ours: Sequence[float]) -> Figures:
    """Return a row of these samples."""
    sides = {ROWS[name].base: sampling.spread(base), OURS: sampling.spread(ours)}
    return {"name": name, "sides": sides, "versus": {OURS: sampling.versus(ours, base)}, "seconds": 1.0}


def made(*rows: Figures, containerd: Sequence[str] = ("1.6.20",)) -> Report:
    """Return a report of these rows under each release."""
    releases = [
        report.ReleaseFigures(containerd=each, rows=[*rows], growth=[], unmeasured={"peak": "no cgroup"})
        for each in containerd
    ]
    return {"format": report.FORMAT, "machine": {"processor": "two <fast> ones"}, "releases": releases}


def test_sides_take_turns_and_warm_up_for_nothing() -> None:
    """Each turn begins with the other side than the one before."""
    order: list[str] = []

    def measure(side: str) -> dict[str, float]:
        order.append(side)
        return {"ms": float(len(order))}

    samples = sampling.interleave(["a", "b"], measure, runs=2, warm_up=1, name_of=str)

    assert ["b", "a", "a", "b", "b", "a"] == order
    assert {"ms": {"a": [3.0, 6.0], "b": [4.0, 5.0]}} == samples


def test_an_interval_holds_the_ratio_and_comes_out_alike_again() -> None:
    """It is of paired turns: noise that both sides share does not widen it."""
    noise = [1.0, 5.0, 2.0, 9.0, 3.0, 7.0, 4.0, 8.0, 6.0, 2.5]
    found = sampling.versus([each / 2 for each in noise], noise)

    assert {"ratio": 0.5, "low": 0.5, "high": 0.5} == found
    wide = sampling.versus([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 2.0, 2.0, 2.0, 2.0])
    assert wide == sampling.versus([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 2.0, 2.0, 2.0, 2.0])
    assert wide["low"] < wide["ratio"] < wide["high"]


@pytest.mark.parametrize(("ours", "mark"), [(4.9, "✓"), (5.1, "✗")])
def test_a_table_says_whether_a_target_is_met(ours: float, mark: str) -> None:
    """By the ratio of the medians."""
    text = table.markdown(made(figures("start", [10.0] * 5, [ours] * 5)))

    assert f"| `start` until exit, ms | 0.50 | 10.0 | {ours:.2f} | {ours / 10:.2f} {mark} |" in text
    assert "Not measured under containerd 1.6.20: peak of what a `start` adds to memory: no cgroup." in text


def test_a_target_may_be_another_one_under_containerd_2() -> None:
    """Then both are named, and each release is held against its own."""
    text = table.markdown(made(figures("stdout", [2.0] * 5, [1.2] * 5), containerd=("1.6.20", "2.1.9")))

    assert "| 0.50 / 0.80 | 2.00 | 1.20 | 0.60 ✗ | 2.00 | 1.20 | 0.60 ✓ |" in text


@pytest.mark.parametrize(("size", "mark"), [(13.9, "✓"), (14.1, "✗")])
def test_a_limit_is_held_against_our_own_figure(size: float, mark: str) -> None:
    """Whatever the ratio is."""
    row = figures("size", [11.6], [size])

    assert f" {size / 11.6:.2f} " in table.plain_row(row, "1.6.20")
    assert f" 14 MB {mark} " in table.plain_row(row, "1.6.20")


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    """A summary too, which has no samples."""
    whole = made(figures("start", [1.0, 2.0], [1.0, 3.0]))
    for each in (whole, report.summary(whole)):
        report.write(each, tmp_path / "sub/f.json")
        assert each == report.read(tmp_path / "sub/f.json")

    assert "samples" not in json.dumps(report.summary(whole))


@pytest.mark.parametrize("text", ["", "[]", '{"format": 0}'])
def test_another_file_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    """Whatever else it is."""
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(ReportError, match=r"f\.json"):
        report.read(tmp_path / "f.json")


def test_a_plot_is_well_formed_and_has_every_row() -> None:
    """Whatever the machine's description holds."""
    rows = [figures(name, [10.0, 11.0], [5.0, 6.0]) for name in ROWS]
    root = ElementTree.fromstring(chart.render(made(*rows)))  # noqa: S314  (our own)
    text = " ".join(root.itertext())

    assert root.tag.endswith("svg")
    assert [] == [name for name in ("start", "size", "burst") if ROWS[name].title.replace("`", "") not in text]


def test_a_copy_is_in_the_page_cache_until_it_is_evicted(tmp_path: Path) -> None:
    """It is a new inode each time, and one that a process uses is not taken for evicted."""
    shim = tmp_path / "shim"
    shim.write_bytes(bytes(8 * mmap.PAGESIZE))
    with files.disk_folder() as folder:
        copy = files.copy(shim, folder)
        with copy.open("rb") as file:
            assert 8 == files.cached_pages(file.fileno())
            files.evict(copy)
            assert 0 == files.cached_pages(file.fileno())
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                assert b"\0" == view[:1]
                with pytest.raises(UnmeasuredError, match="stay in the page cache"):
                    files.evict(copy, settle_s=0)

    assert not folder.exists()


def test_publishing_renews_what_is_between_the_marks(tmp_path: Path) -> None:
    """The rest of the page stays; a page without marks is an error."""
    page = tmp_path / "bench.md"
    page.write_text(f"head\n{publish.BEGIN}\nold\n{publish.END}\ntail\n")
    publish.publish(made(figures("start", [10.0], [5.0])), tmp_path)
    found = page.read_text()

    assert found.startswith(f"head\n{publish.BEGIN}\n")
    assert found.endswith(f"{publish.END}\ntail\n")
    assert "old" not in found
    assert "0.50 ✓" in found
    with pytest.raises(ReportError):
        publish.with_figures("no marks", "x")


def shown() -> list[list[str]]:
    """Return the commands of the page's other runs, word by word, without what is said of them."""
    (text,) = texts("docs/bench.md", "Other runs", "sh")
    return [line.partition("#")[0].split() for line in text.splitlines()]


@pytest.mark.parametrize("command", shown(), ids=" ".join)
def test_each_run_that_the_page_shows_is_understood(command: list[str]) -> None:
    """With all its options, none of which means the same as saying nothing."""
    program, recipe, *options = command

    assert ["./just", "bench"] == [program, recipe]
    assert vars(parse([])) != vars(parse(options))
