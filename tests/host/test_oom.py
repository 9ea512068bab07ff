"""Watching for out of memory: version 2 on plain files; tests/integration/test_host_cgroup.py has real kills."""

import os
import select
from pathlib import Path

import pytest

from shim.errors import CgroupError
from shim.host import oom
from shim.host.cgroup_v1 import LegacyCgroup
from shim.host.cgroup_v2 import UnifiedCgroup


def set_kills(folder: Path, kills: int) -> None:
    """Write what the kernel would."""
    (folder / "memory.events").write_text(f"low 0\nhigh 0\nmax 90\noom 91\noom_kill {kills}\n")


def is_readable(fd: int) -> bool:
    """Ask epoll, as the daemon does."""
    with select.epoll() as poll:
        poll.register(fd, select.EPOLLIN)
        return bool(poll.poll(0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cgroup in which nothing has happened."""
    (tmp_path / "cgroup.events").write_text("populated 1\n")
    set_kills(tmp_path, 0)
    return tmp_path


@pytest.fixture
def watch(folder: Path) -> oom.OomWatch:
    """A watch of that cgroup."""
    return oom.open_watch(UnifiedCgroup(str(folder)))


def test_read_counts_new_kills_once(folder: Path, watch: oom.OomWatch) -> None:
    """The descriptor wakes, the first read tells the number, the second none."""
    assert not is_readable(watch.fd)

    set_kills(folder, 2)
    assert is_readable(watch.fd)
    assert 2 == watch.read()
    assert not is_readable(watch.fd)
    assert 0 == watch.read()

    set_kills(folder, 3)
    assert 1 == watch.read()
    watch.close()


def test_read_ignores_wakes_without_a_kill(folder: Path, watch: oom.OomWatch) -> None:
    """Emptying the cgroup, or an allocation that failed, wakes but is no kill."""
    (folder / "cgroup.events").write_text("populated 0\n")

    assert is_readable(watch.fd)
    assert 0 == watch.read()
    assert not watch.is_gone
    watch.close()


def test_read_counts_a_kill_from_before_the_watch(folder: Path) -> None:
    """A container may be killed between create and the watch."""
    set_kills(folder, 1)
    watch = oom.open_watch(UnifiedCgroup(str(folder)))

    assert 1 == watch.read()
    watch.close()


def test_final_read_tells_what_no_wake_told(folder: Path, watch: oom.OomWatch) -> None:
    """At the end the file is read whether or not the descriptor was seen readable."""
    set_kills(folder, 1)

    assert 1 == watch.final_read()
    assert 0 == watch.final_read()
    watch.close()


def test_read_of_a_cgroup_that_is_gone_is_quiet(folder: Path, watch: oom.OomWatch) -> None:
    """There is nothing to tell but that it is gone."""
    (folder / "memory.events").unlink()
    (folder / "cgroup.events").unlink()

    assert 0 == watch.read()
    assert watch.is_gone
    assert 0 == watch.final_read()
    watch.close()


def test_close_twice_is_harmless(watch: oom.OomWatch) -> None:
    """The number of a closed descriptor, which may be somebody else's by now, is forgotten."""
    fd = watch.fd
    watch.close()
    watch.close()

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert 0 == watch.read()


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        (UnifiedCgroup("/nonexistent"), "no such file or directory"),
        (LegacyCgroup({"memory": "/nonexistent"}), "no such file or directory"),
        (LegacyCgroup({"pids": "/nonexistent"}), "no memory cgroup"),
    ],
)
def test_open_watch_says_why_it_cannot(cgroup: UnifiedCgroup | LegacyCgroup, expected: str) -> None:
    """No descriptor is left open by a watch that fails."""
    before = len(os.listdir("/proc/self/fd"))

    with pytest.raises(CgroupError) as caught:
        oom.open_watch(cgroup)

    assert f"failed to watch for out of memory: {expected}" == str(caught.value)
    assert before == len(os.listdir("/proc/self/fd"))
