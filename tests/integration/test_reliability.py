"""Some dozens of starts under fire; `python -m tests.reliability` does the same in big numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.integration.archive import unpacks
from tests.integration.conftest import find_program
from tests.reliability import scenarios


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the frozen shim."""
    return find_program("image", tmp_path_factory.mktemp("none"))


def test_one_start_after_the_other_works(binary: Path) -> None:
    """Each gives one daemon, which ends when it is told to."""
    assert Counter(working=60) == scenarios.many(binary, 60)


def test_forty_starts_at_once_work(binary: Path) -> None:
    """On a machine that has time for none of them."""
    assert Counter(working=40) == scenarios.at_once(binary, 40)


@pytest.mark.parametrize("options", ["size=64k", "noexec"])
def test_starts_work_where_nothing_can_be_unpacked(binary: Path, options: str) -> None:
    """With Python in the bootloader; a binary that has to unpack itself fails with its own words."""
    expected = "one clear error" if unpacks(binary) else "working"

    assert Counter({expected: 4}) == scenarios.bad_temporary_folder(binary, 4, options)


def test_starts_work_during_upgrades(binary: Path) -> None:
    """Each of them is of the one file or of the other, whole."""
    tally = scenarios.binary_replaced(binary, 40)

    assert 40 == tally["working"]
    assert tally["upgrades"] > 0
