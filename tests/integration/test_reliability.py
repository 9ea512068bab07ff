"""Some dozens of starts under fire; `python -m tests.reliability` does the same in big numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

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


def test_starts_of_a_cold_file_work(binary: Path) -> None:
    """At once, while it is read."""
    assert Counter(working=20) == scenarios.cold(binary, 20)


@pytest.mark.parametrize("options", ["size=64k", "noexec"])
def test_starts_work_where_nothing_can_be_unpacked(binary: Path, options: str) -> None:
    """Nothing has to be."""
    assert Counter(working=4) == scenarios.bad_temporary_folder(binary, 4, options)


def test_a_file_that_ends_early_is_refused_or_killed(binary: Path) -> None:
    """It is never taken for whole, and never hangs."""
    tally = scenarios.binary_damaged(binary, 20)

    assert tally["refused by the kernel"] > 0
    assert tally["killed by the kernel"] > 0
    assert tally["working"] > 0  # -v needs no late module, which are at the end


def test_starts_with_little_memory_work_or_say_why(binary: Path) -> None:
    """From some limit on they work."""
    tally = scenarios.little_memory(binary, 16)

    assert tally["working"] > 0
    assert tally["killed by the kernel"] > 0


def test_starts_work_during_upgrades(binary: Path) -> None:
    """Each of them is of the one file or of the other, whole."""
    tally = scenarios.binary_replaced(binary, 40)

    assert 40 == tally["working"]
    assert tally["upgrades"] > 0
