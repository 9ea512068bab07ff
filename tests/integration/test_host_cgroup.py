"""Real cgroups of this host, whichever version it has, with a real process in them. Needs root."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.api import cgroups_v1_pb2, cgroups_v2_pb2
from shim.errors import CgroupError
from shim.host import cgroup, libc, oom
from shim.host.cgroup_v2 import UnifiedCgroup

ROOT = Path(cgroup.ROOT)
CONTROLLERS = ("memory", "pids", "cpu", "cpuacct", "devices", "freezer", "blkio")
LIMIT = 32 << 20

# Waits to be told, then takes more than the limit.
HOG = "import sys; sys.stdin.buffer.read(1); taken = bytearray(128 << 20); print(len(taken))"


class Group:
    """A cgroup made for one test, in each hierarchy that matters."""

    def __init__(self, name: str) -> None:
        self.path = f"/{name}"
        tops = [ROOT] if cgroup.is_unified() else [ROOT / controller for controller in CONTROLLERS]
        self.folders = [top / name for top in tops if top.is_dir()]
        for folder in self.folders:
            folder.mkdir()

    def limit_memory(self) -> None:
        """Let nothing in here have more than the limit, swapped out or not."""
        for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max"):
            self._write(name, str(LIMIT))
        self._write("memory.swap.max", "0")

    def _write(self, name: str, text: str) -> None:
        for path in (folder / name for folder in self.folders):
            if path.exists():
                path.write_text(text)

    def remove(self) -> None:
        """Kill what is in here, and remove the folders once it is gone."""
        limit = time.monotonic() + 10
        for folder in self.folders:
            while folder.exists():
                try:
                    for pid in (folder / "cgroup.procs").read_text().split():
                        os.kill(int(pid), signal.SIGKILL)
                    folder.rmdir()
                except (OSError, ProcessLookupError):
                    if time.monotonic() > limit:
                        raise
                    time.sleep(0.02)


@pytest.fixture
def group() -> Iterator[Group]:
    """An empty cgroup that is gone after the test."""
    if os.geteuid() != 0:
        pytest.fail("making cgroups needs root")
    group = Group(f"shim-test-{os.getpid()}")
    yield group
    group.remove()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits, and takes memory when told."""
    command = [sys.executable, "-c", HOG]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        yield child
        child.kill()


def find_in(group: Group, process: subprocess.Popen[bytes]) -> cgroup.Cgroup:
    """Put the process into the cgroup, and find it there."""
    cgroup.join(group.path, process.pid)
    return cgroup.find(process.pid)


def test_a_process_is_found_where_it_was_put(group: Group, process: subprocess.Popen[bytes]) -> None:
    """join moves it in every hierarchy, find says so, and processes lists it."""
    found = find_in(group, process)

    assert {cgroup.is_unified()} == {found.is_unified}
    assert [process.pid] == found.processes()
    procs = [(folder / "cgroup.procs").read_text().split() for folder in group.folders]
    assert [[str(process.pid)]] * len(group.folders) == procs


def test_metrics_are_the_kernel_s(group: Group, process: subprocess.Popen[bytes]) -> None:
    """The message that clients get holds what the kernel counts for one small process."""
    group.limit_memory()
    found = find_in(group, process)
    assert process.stdin is not None

    metrics = found.metrics()
    if found.is_unified:
        unified = cgroups_v2_pb2.Metrics(**metrics)  # type: ignore[arg-type]
        assert unified.cpu.usage_usec >= 0
        counts = {"pids": unified.pids.current, "limit": unified.memory.usage_limit}
        usage = unified.memory.usage
    else:
        legacy = cgroups_v1_pb2.Metrics(**metrics)  # type: ignore[arg-type]
        assert legacy.cpu.usage.per_cpu
        counts = {"pids": legacy.pids.current, "limit": legacy.memory.usage.limit}
        usage = legacy.memory.usage.usage
        assert legacy.memory.HasField("swap")
        assert not legacy.memory_oom_control.oom_kill

    assert {"pids": 1, "limit": LIMIT} == counts
    assert 0 <= usage <= LIMIT


def test_metrics_of_a_removed_cgroup_are_zero(group: Group, process: subprocess.Popen[bytes]) -> None:
    """Stats may come after the container has gone."""
    found = find_in(group, process)
    process.kill()
    process.wait()
    group.remove()

    metrics = found.metrics()
    message = cgroups_v2_pb2.Metrics if found.is_unified else cgroups_v1_pb2.Metrics
    assert 0 == message(**metrics).pids.current  # type: ignore[arg-type]
    assert [] == found.processes()
    with pytest.raises(CgroupError):
        oom.open_watch(found)


def test_a_kill_is_told_while_it_is_watched(group: Group, process: subprocess.Popen[bytes]) -> None:
    """epoll wakes, the kill is counted, and the end has nothing to add."""
    group.limit_memory()
    found = find_in(group, process)
    watch = oom.open_watch(found)
    assert process.stdin is not None
    with select.epoll() as poll:
        poll.register(watch.fd, select.EPOLLIN)
        assert [] == poll.poll(0)
        assert 0 == watch.read()

        process.stdin.write(b"x")
        process.stdin.flush()
        woken = poll.poll(10)

        assert [(watch.fd, select.EPOLLIN)] == woken
    assert -signal.SIGKILL == process.wait(10)
    assert 1 == watch.read() + watch.final_read()
    assert 0 == watch.read() + watch.final_read()

    group.remove()
    assert ([watch.fd], [], []) == select.select([watch.fd], [], [], 10)
    assert 0 == watch.read() + watch.final_read()
    assert watch.is_gone
    watch.close()


def test_the_final_read_alone_tells_of_a_kill(group: Group, process: subprocess.Popen[bytes]) -> None:
    """The exit may be seen before the loop comes to the watch."""
    group.limit_memory()
    watch = oom.open_watch(find_in(group, process))
    assert process.stdin is not None

    process.stdin.write(b"x")
    process.stdin.flush()

    assert -signal.SIGKILL == process.wait(10)
    assert 1 == watch.final_read()
    watch.close()


def test_an_exit_without_a_kill_is_none(group: Group, process: subprocess.Popen[bytes]) -> None:
    """A container that is killed by its client was not out of memory."""
    group.limit_memory()
    watch = oom.open_watch(find_in(group, process))

    process.kill()
    process.wait()

    assert 0 == watch.read() + watch.final_read()
    watch.close()


def test_a_dead_process_has_no_cgroup(group: Group, process: subprocess.Popen[bytes]) -> None:
    """Before it is reaped the kernel shows it in the root cgroup, with all processes of the host."""
    find_in(group, process)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    with pytest.raises(CgroupError) as caught:
        cgroup.find(process.pid)

    assert f"process {process.pid} has no cgroup: it is dead" == str(caught.value)


@pytest.fixture
def unified(tmp_path: Path) -> Iterator[Path]:
    """Where the unified hierarchy is; a host that has it nowhere gets it here, since every kernel of today has it."""
    tops = [top for top in (ROOT, ROOT / "unified") if cgroup.is_unified(str(top))]
    if tops:
        yield tops[0]
        return
    libc.mount("none", str(tmp_path), "cgroup2", 0, "")
    yield tmp_path
    libc.umount(str(tmp_path))


def test_the_unified_hierarchy_of_a_hybrid_host(process: subprocess.Popen[bytes], unified: Path) -> None:
    """A real version 2 cgroup, though without memory: found, joined and read where only version 1 has controllers."""
    root, name = str(unified), f"shim-test-v2-{os.getpid()}"
    folder = unified / name
    folder.mkdir()
    try:
        cgroup.join(f"/{name}", process.pid, root=root)
        found = cgroup.find(process.pid, root=root)

        assert UnifiedCgroup(str(folder)) == found
        assert [process.pid] == found.processes()
        metrics = cgroups_v2_pb2.Metrics(**found.metrics())  # type: ignore[arg-type]
        assert metrics.HasField("cpu")
        assert (folder / "cpu.pressure").exists() == metrics.cpu.HasField("psi")
    finally:
        process.kill()
        process.wait()
        while folder.exists():
            with contextlib.suppress(OSError):
                folder.rmdir()
    assert [] == found.processes()
    assert not cgroups_v2_pb2.Metrics(**found.metrics()).cpu.usage_usec  # type: ignore[arg-type]
