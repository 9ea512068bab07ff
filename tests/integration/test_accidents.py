"""The shim, runc, the logger and containerd are killed at each step of a container's life, once each.

`./just faults --rounds 500` does it for longer.  With the image, under each release.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shim.testing.containerd import Containerd
from shim.testing.releases import Release
from tests.faults.rounds import Rounds
from tests.faults.runtime import ACCIDENTS, Accident
from tests.integration import interop
from tests.integration.conftest import BINARIES, find_binary

go, pytest_generate_tests = interop.go, interop.pytest_generate_tests


@pytest.fixture(scope="module")
def rounds(go: Release) -> Iterator[Rounds]:
    """Rounds under a containerd of their own, which in the end must have left nothing behind."""
    with Containerd(go, [find_binary(BINARIES["image"]).parent]) as containerd:
        containerd.import_image()
        yield Rounds(containerd)

    assert [] == containerd.left_behind


@pytest.mark.parametrize("accident", ACCIDENTS, ids=str)
def test_an_accident_leaves_nothing(rounds: Rounds, accident: Accident) -> None:
    """No process, mount, cgroup, socket, fifo or file; containerd removes the container, and runs the next."""
    assert [] == rounds.play(accident)
