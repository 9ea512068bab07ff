"""A shim whose container never came: containerd died between its `start` and its Create."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.testing.containerd import Containerd
from shim.testing.leftovers import read_process
from shim.testing.releases import Release
from tests.integration.client import TaskClient, shim_address, wait_until


@pytest.fixture
def containerd(release: Release, shim_folder: Path) -> Iterator[Containerd]:
    """Return a containerd to kill; in the end it must have left nothing behind."""
    with Containerd(release, [shim_folder]) as running:
        running.import_image()
        yield running

    assert [] == running.left_behind


@pytest.fixture
def leaves_no_task() -> None:
    """Replace the check of the shared containerd: this one is removed as a whole."""


def test_trap_46_a_shim_without_its_container_ends_with_the_next_containerd(containerd: Containerd) -> None:
    """1.7 and later ask it for its processes, hear NOT_FOUND and end it; in 1.6 it waits for a Shutdown."""
    containerd.run("c1", "sleep", "1000", detach=True)
    with TaskClient(shim_address(containerd.bundle("c1")), "c1") as task:
        shim = task.connect().shim_pid
        containerd.kill()
        task.kill(signal.SIGKILL)
        task.wait()
        task.delete()  # as if there had been no Create
        containerd.restart()
        if containerd.release.key == "1.6":
            task.shutdown()
    wait_until(lambda: read_process(shim) is None, "the shim has ended")

    wait_until(lambda: not containerd.bundle("c1").exists(), "containerd has removed the bundle")
    assert {} == containerd.tasks()
    containerd.ctr("containers", "rm", "c1")
    assert [] == containerd.leftovers()
