"""The numbers of a version 2 cgroup, on a tree of plain files, as the protobuf message has them."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from shim.api.cgroups_v2_pb2 import Metrics
from shim.errors import CgroupError
from shim.host.cgroup_v2 import UnifiedCgroup

PRESSURE = (
    "some avg10=1.50 avg60=0.25 avg300=0.00 total=123\nfull avg10=0.50 avg60=0.00 avg300=0.00 avg900=0.00 total=45\n"
)
FILES = {
    "cgroup.procs": "12\n0\n11\n",
    "child/cgroup.procs": "13\n",
    "pids.current": "3\n",
    "pids.max": "max\n",
    "cpu.stat": "usage_usec 300\nuser_usec 200\nsystem_usec 100\nnice_usec 7\nnr_bursts 2\nburst_usec 5\n",
    "cpu.pressure": PRESSURE,
    "memory.stat": "anon 4096\nfile 8192\ninactive_file 100\nthp_collapse_alloc 1\nzswpin 9\nbroken\n",
    "memory.current": "16384\n",
    "memory.max": "max\n",
    "memory.peak": "20000\n",
    "memory.swap.current": "0\n",
    "memory.swap.max": "-1\n",
    "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "memory.events": "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\nsock_throttled 7\n",
    "io.stat": "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n7:0\n8:16 rbytes=9\n",
    "rdma.current": "mlx4_0 hca_handle=2 hca_object=2000\n",
    "rdma.max": "mlx4_0 hca_handle=max hca_object=max\n\n",
    "hugetlb.2MB.current": "0\n",
    "hugetlb.2MB.max": "max\n",
    "hugetlb.2MB.events": "max 8\n",
    "hugetlb.2MB.rsvd.current": "1\n",
    "hugetlb.1GB.current": "1073741824\n",
}


def make(folder: Path, files: Mapping[str, str]) -> UnifiedCgroup:
    """Make a cgroup of plain files."""
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return UnifiedCgroup(str(folder))


def test_metrics_build_the_message(tmp_path: Path) -> None:
    """Every file that we know has its fields, and what is new in a kernel does no harm."""
    found = Metrics(**make(tmp_path, FILES).metrics())  # type: ignore[arg-type]  # dicts stand for messages

    unlimited = 2**64 - 1
    some = {"avg10": 1.5, "avg60": 0.25, "avg300": 0.0, "total": 123}
    full = {"avg10": 0.5, "avg60": 0.0, "avg300": 0.0, "total": 45}
    quiet = {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 0}
    expected = Metrics(
        pids={"current": 3, "limit": unlimited},
        cpu={
            "usage_usec": 300,
            "user_usec": 200,
            "system_usec": 100,
            "nr_bursts": 2,
            "burst_usec": 5,
            "psi": {"some": some, "full": full},
        },
        memory={
            "anon": 4096,
            "file": 8192,
            "inactive_file": 100,
            "thp_collapse_alloc": 1,
            "usage": 16384,
            "usage_limit": unlimited,
            "max_usage": 20000,
            "swap_usage": 0,
            "swap_limit": 0,
            "psi": {"some": quiet},
        },
        memory_events={"low": 1, "high": 2, "max": 3, "oom": 4, "oom_kill": 5, "oom_group_kill": 6},
        io={
            "usage": [
                {"major": 254, "minor": 0, "rbytes": 1, "wbytes": 2, "rios": 3, "wios": 4},
                {"major": 8, "minor": 16, "rbytes": 9},
            ]
        },
        rdma={
            "current": [{"device": "mlx4_0", "hca_handles": 2, "hca_objects": 2000}],
            "limit": [{"device": "mlx4_0", "hca_handles": 2**32 - 1, "hca_objects": 2**32 - 1}],
        },
        hugetlb=[
            {"pagesize": "1GB", "current": 1073741824},
            {"pagesize": "2MB", "current": 0, "max": unlimited, "failcnt": 8},
        ],
    )
    assert expected == found


@pytest.mark.parametrize("exists", [True, False])
def test_metrics_without_files_are_empty(exists: bool, tmp_path: Path) -> None:
    """A cgroup that has gone, or without controllers, gives messages without numbers: clients look into them."""
    folder = tmp_path if exists else tmp_path / "gone"

    found = Metrics(**UnifiedCgroup(str(folder)).metrics())  # type: ignore[arg-type]

    assert {"pids", "cpu", "memory", "rdma", "io"} == {field.name for field, _ in found.ListFields()}
    assert 0 == found.memory.usage
    assert not found.HasField("memory_events")


@pytest.mark.parametrize("name", list(FILES))
def test_metrics_survive_any_one_file_going(name: str, tmp_path: Path) -> None:
    """Each file may vanish, or be empty, without an error."""
    cgroup = make(tmp_path, FILES)

    (tmp_path / name).write_text("")
    Metrics(**cgroup.metrics())  # type: ignore[arg-type]
    (tmp_path / name).unlink()
    found = Metrics(**cgroup.metrics())  # type: ignore[arg-type]

    assert found.HasField("memory")


def test_metrics_tell_of_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Numbers that are there and cannot be read are not taken for zero."""
    (tmp_path / "memory.current").mkdir()

    with pytest.raises(CgroupError) as caught:
        UnifiedCgroup(str(tmp_path)).metrics()

    assert f"failed to read {tmp_path}/memory.current: is a directory" == str(caught.value)


def test_processes_are_those_of_the_whole_subtree(tmp_path: Path) -> None:
    """Pids come in order and once; 0 stands for a process that we cannot see."""
    cgroup = make(tmp_path, FILES)

    assert [11, 12, 13] == cgroup.processes()


def test_processes_of_a_cgroup_that_is_gone(tmp_path: Path) -> None:
    """There are none, and that is no error."""
    cgroup = UnifiedCgroup(os.path.join(tmp_path, "gone"))

    assert [] == cgroup.processes()
