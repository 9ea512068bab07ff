"""A few hundred starts under fire; `python -m tests.reliability` does the same in big numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.integration.archive import unpacks
from tests.integration.byhand import find_program
from tests.reliability import scenarios


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the frozen shim."""
    return find_program("frozen", tmp_path_factory.mktemp("none"))


@pytest.mark.timeout(300)
def test_starts_work_while_zygotes_are_killed(binary: Path) -> None:
    """Each gives one shim or one clear error, and nearly all give a shim."""
    tally = scenarios.killed_at_random(binary, 200, seed=7)

    assert 200 == tally["working"] + tally["one clear error"]
    assert tally["one clear error"] <= 20
    assert tally["kills"] > 0


def test_forty_cold_starts_at_once_work(binary: Path) -> None:
    """On a machine that has time for none of them."""
    assert Counter(working=40) == scenarios.cold_at_once(binary, 40)


@pytest.mark.parametrize("options", ["size=64k", "noexec"])
def test_zygote_serves_where_nothing_can_be_unpacked(binary: Path, options: str) -> None:
    """Nor does a binary that has Python in its bootloader mind; another fails with PyInstaller's own words there."""
    plain = "one clear error" if unpacks(binary) else "working"

    assert Counter({plain: 4}) == scenarios.bad_temporary_folder(binary, 4, options, is_warm=False)
    assert Counter({"working": 10}) == scenarios.bad_temporary_folder(binary, 10, options, is_warm=True)


def test_starts_work_where_no_zygote_can_be(binary: Path) -> None:
    """Its folder is read-only."""
    assert Counter(working=6) == scenarios.read_only_folder(binary, 6)


@pytest.mark.parametrize("answer", [b"\xffgarbage", b"A", None], ids=["garbage", "liar", "silence"])
def test_starts_work_past_an_impostor(binary: Path, answer: bytes | None) -> None:
    """Whoever listens in the zygote's place and is none cannot keep a start from its shim; only slow it down."""
    if answer == b"A":  # has taken the order, and does nothing: one clear error
        tally = scenarios.hostile_socket(binary, 4, answer, may_fail=True)
    else:
        tally = scenarios.hostile_socket(binary, 4, answer)

    assert 4 == tally["working"] + tally["one clear error"]
    assert answer == b"A" or tally["working"] == 4


def test_starts_work_during_upgrades(binary: Path) -> None:
    """Each of them finds the zygote of its own binary, or none."""
    tally = scenarios.binary_replaced(binary, 40)

    assert 40 == tally["working"]
    assert tally["upgrades"] > 0
