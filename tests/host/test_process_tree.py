"""Whole families of processes: found, told apart from those that have their pids since, and signalled."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.host.process import find_descendants, send_signal
from tests.fakes import wait_until


@pytest.fixture
def family(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A child, and the pid of a grandchild."""
    file = tmp_path / "pid"
    child = subprocess.Popen(["sh", "-c", f"sleep 1000 & echo $! >{file}; wait"])
    assert wait_until(lambda: file.exists() and file.read_text().endswith("\n"))
    grandchild = int(file.read_text())
    yield child, grandchild
    for pid, started_at in find_descendants(child.pid).items():
        send_signal(pid, started_at, signal.SIGKILL)
    child.kill()
    child.wait()


def test_descendants_are_found_to_the_last(family: tuple[subprocess.Popen[bytes], int]) -> None:
    """But nobody else's, nor the process itself."""
    child, grandchild = family

    assert {grandchild} == set(find_descendants(child.pid))
    assert {child.pid, grandchild} <= set(find_descendants(os.getpid()))
    assert {} == find_descendants(grandchild)


def test_a_signal_reaches_the_process_that_is_meant(family: tuple[subprocess.Popen[bytes], int]) -> None:
    """Another that was started at another time is left alone; one that is gone is no error."""
    child, _ = family
    ((pid, started_at),) = find_descendants(child.pid).items()
    send_signal(pid, started_at + 1, signal.SIGKILL)
    before = find_descendants(child.pid)
    send_signal(pid, started_at, signal.SIGKILL)

    assert {pid: started_at} == before
    assert child.wait() in (0, 128 + signal.SIGKILL)
    send_signal(pid, started_at, signal.SIGKILL)
