"""Looking before sleeping: while it pays, and no longer."""

from __future__ import annotations

from itertools import pairwise

from shim.ttrpc.spin import Spin


def test_what_comes_soon_is_found() -> None:
    """Without any sleep."""
    answers = iter([None, None, b""])

    assert b"" == Spin().find(lambda: next(answers))


def test_what_does_not_come_is_given_up() -> None:
    """After tens of looks, each of which takes a microsecond."""
    looks: list[None] = []

    assert Spin().find(lambda: looks.append(None)) is None
    assert 10 <= len(looks) <= 100


def test_vain_looks_become_rare_until_one_succeeds() -> None:
    """The rest between them doubles, up to some hundred waits."""
    spin = Spin()
    looked: list[int] = []
    for wait in range(2000):
        spin.find(lambda wait=wait: looked.append(wait))  # type: ignore[misc]
    vain = sorted(set(looked))

    assert [0, 2, 6, 14, 30, 62, 126] == vain[:7]
    assert {256} == {after - before for before, after in pairwise(vain[8:])}

    found = [spin.find(lambda: "found") for _ in range(300)]
    assert 300 - 255 <= found.count("found")
    assert ["found"] * 40 == found[-40:]
