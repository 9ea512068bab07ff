"""The numbers of a version 1 cgroup, on a tree of plain files, as the protobuf message has them."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from shim.api.cgroups_v1_pb2 import Metrics
from shim.host.cgroup_v1 import LegacyCgroup

FILES = {
    "proc/partitions": "major minor  #blocks  name\n\n 254        0  268435456 vda\n   8       16  1 sdb\n",
    "pids/pids.current": "3\n",
    "pids/pids.max": "max\n",
    "cpu/cpu.stat": "nr_periods 5\nnr_throttled 2\nthrottled_time 1000\n",
    "cpuacct/cpuacct.usage": "123456789\n",
    "cpuacct/cpuacct.usage_percpu": "100 23 \n",
    "cpuacct/cpuacct.stat": "user 7\nsystem 3\n",
    "memory/memory.stat": (
        "cache 1\nrss 2\nrss_huge 3\npgpgin 4\npgmajfault 5\nhierarchical_memory_limit 6\n"
        "hierarchical_memsw_limit 7\ntotal_cache 8\ntotal_pgfault 9\ntotal_inactive_file 10\nswap 11\n"
    ),
    "memory/memory.usage_in_bytes": "4096\n",
    "memory/memory.max_usage_in_bytes": "8192\n",
    "memory/memory.failcnt": "1\n",
    "memory/memory.limit_in_bytes": "9223372036854771712\n",
    "memory/memory.memsw.usage_in_bytes": "5000\n",
    "memory/memory.kmem.usage_in_bytes": "600\n",
    "memory/memory.kmem.tcp.failcnt": "2\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 1\noom_kill 4\n",
    "blkio/blkio.throttle.io_serviced": "254:0 Read 5\n254:0 Write 6\n254:0 Total 11\nTotal 11\n",
    "blkio/blkio.throttle.io_service_bytes": "259:1 Read 700\nTotal 700\n",
    "hugetlb/hugetlb.2MB.usage_in_bytes": "2097152\n",
    "hugetlb/hugetlb.2MB.max_usage_in_bytes": "4194304\n",
    "hugetlb/hugetlb.2MB.failcnt": "3\n",
    "hugetlb/hugetlb.2MB.rsvd.usage_in_bytes": "1\n",
    "rdma/rdma.current": "mlx4_0 hca_handle=2 hca_object=2000\n",
    "rdma/rdma.max": "mlx4_0 hca_handle=max hca_object=7\n",
    "devices/cgroup.procs": "12\n11\n",
    "devices/child/cgroup.procs": "13\n",
    "memory/cgroup.procs": "99\n",
}


def make(folder: Path, files: Mapping[str, str]) -> LegacyCgroup:
    """Make a cgroup of plain files, one folder for each controller."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    names = {name.partition("/")[0] for name in files} - {"proc"}
    return LegacyCgroup({name: str(folder / name) for name in names}, str(folder / "proc"))


def test_metrics_build_the_message(tmp_path: Path) -> None:
    """Every file that we know has its fields; no limit is 0, ticks are nanoseconds, devices have names."""
    found = Metrics(**make(tmp_path, FILES).metrics())  # type: ignore[arg-type]  # dicts stand for messages

    vda = {"device": "/dev/vda", "major": 254, "minor": 0}
    expected = Metrics(
        pids={"current": 3, "limit": 0},
        cpu={
            "usage": {"total": 123456789, "kernel": 30_000_000, "user": 70_000_000, "per_cpu": [100, 23]},
            "throttling": {"periods": 5, "throttled_periods": 2, "throttled_time": 1000},
        },
        memory={
            "cache": 1,
            "rss": 2,
            "rss_huge": 3,
            "pg_pg_in": 4,
            "pg_maj_fault": 5,
            "hierarchical_memory_limit": 6,
            "hierarchical_swap_limit": 7,
            "total_cache": 8,
            "total_pg_fault": 9,
            "total_inactive_file": 10,
            "usage": {"usage": 4096, "max": 8192, "failcnt": 1, "limit": 9223372036854771712},
            "swap": {"usage": 5000},
            "kernel": {"usage": 600},
            "kernel_tcp": {"failcnt": 2},
        },
        memory_oom_control={"oom_kill_disable": 0, "under_oom": 1, "oom_kill": 4},
        blkio={
            "io_serviced_recursive": [
                {**vda, "op": "Read", "value": 5},
                {**vda, "op": "Write", "value": 6},
                {**vda, "op": "Total", "value": 11},
            ],
            "io_service_bytes_recursive": [{"major": 259, "minor": 1, "op": "Read", "value": 700}],
        },
        hugetlb=[{"pagesize": "2MB", "usage": 2097152, "max": 4194304, "failcnt": 3}],
        rdma={
            "current": [{"device": "mlx4_0", "hca_handles": 2, "hca_objects": 2000}],
            "limit": [{"device": "mlx4_0", "hca_handles": 2**32 - 1, "hca_objects": 7}],
        },
    )
    assert expected == found


def test_metrics_of_block_devices_prefer_the_scheduler_s(tmp_path: Path) -> None:
    """Where the scheduler counts, its files are taken, and those that count throttling are not."""
    files = {**FILES, "blkio/blkio.time_recursive": "8:16 42\n", "blkio/blkio.sectors_recursive": "8:16 43\nTotal 43\n"}

    found = Metrics(**make(tmp_path, files).metrics()).blkio  # type: ignore[arg-type]

    assert [("", "/dev/sdb", 42)] == [(entry.op, entry.device, entry.value) for entry in found.io_time_recursive]
    assert [43] == [entry.value for entry in found.sectors_recursive]
    assert [] == list(found.io_serviced_recursive)


def test_metrics_have_no_message_for_a_controller_that_is_not_there(tmp_path: Path) -> None:
    """A container that only has a memory cgroup has memory numbers alone."""
    cgroup = make(tmp_path, {"memory/memory.usage_in_bytes": "1\n"})

    assert {"memory", "memory_oom_control"} == set(cgroup.metrics())


@pytest.mark.parametrize("name", list(FILES))
def test_metrics_survive_any_one_file_going(name: str, tmp_path: Path) -> None:
    """Each file may vanish, or be empty, without an error."""
    cgroup = make(tmp_path, FILES)

    (tmp_path / name).write_text("")
    Metrics(**cgroup.metrics())  # type: ignore[arg-type]
    (tmp_path / name).unlink()
    found = Metrics(**cgroup.metrics())  # type: ignore[arg-type]

    assert found.HasField("memory")


def test_metrics_of_a_cgroup_that_is_gone(tmp_path: Path) -> None:
    """All numbers are zero, and that is no error."""
    names = ("cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb", "rdma")
    cgroup = LegacyCgroup({name: str(tmp_path / "gone" / name) for name in names}, str(tmp_path))

    found = Metrics(**cgroup.metrics())  # type: ignore[arg-type]

    assert 0 == found.memory.usage.usage == found.pids.current == found.cpu.usage.total


def test_processes_are_those_of_the_devices_controller(tmp_path: Path) -> None:
    """That is where runc reads them; folders below count."""
    cgroup = make(tmp_path, FILES)

    assert [11, 12, 13] == cgroup.processes()


def test_processes_of_a_cgroup_without_usual_controllers(tmp_path: Path) -> None:
    """Any folder will do where the usual ones are not there."""
    cgroup = make(tmp_path, {"name=systemd/cgroup.procs": "5\n"})

    assert [5] == cgroup.processes()
