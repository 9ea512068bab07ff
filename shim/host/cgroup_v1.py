"""A cgroup of version 1: one folder for each controller.

Rule: `metrics` has the field names of io.containerd.cgroups.v1.Metrics; what has no file is left out, and a controller
that the container is not in has no message. Here `max` counts as 0, as Go has it.
Spec: the kernel's admin-guide/cgroup-v1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from shim.host.cgroup_files import (
    find_page_sizes,
    parse_number,
    pick,
    read_keyed,
    read_numbers,
    read_processes,
    read_rdma,
    read_text,
)

# The kernel's tick for user space is 10 ms on every architecture.
_NS_PER_TICK: Final = 10_000_000

_MEMORY: Final = (
    ("cache", "cache"),
    ("rss", "rss"),
    ("rss_huge", "rss_huge"),
    ("mapped_file", "mapped_file"),
    ("dirty", "dirty"),
    ("writeback", "writeback"),
    ("pg_pg_in", "pgpgin"),
    ("pg_pg_out", "pgpgout"),
    ("pg_fault", "pgfault"),
    ("pg_maj_fault", "pgmajfault"),
    ("inactive_anon", "inactive_anon"),
    ("active_anon", "active_anon"),
    ("inactive_file", "inactive_file"),
    ("active_file", "active_file"),
    ("unevictable", "unevictable"),
)
_MEMORY_FIELDS: Final = (
    *_MEMORY,
    *((f"total_{field}", f"total_{key}") for field, key in _MEMORY),
    ("hierarchical_memory_limit", "hierarchical_memory_limit"),
    ("hierarchical_swap_limit", "hierarchical_memsw_limit"),
)
_MEMORY_ENTRIES: Final = (
    ("usage", "memory"),
    ("swap", "memory.memsw"),
    ("kernel", "memory.kmem"),
    ("kernel_tcp", "memory.kmem.tcp"),
)
_ENTRY_FILES: Final = (
    ("usage", "usage_in_bytes"),
    ("max", "max_usage_in_bytes"),
    ("failcnt", "failcnt"),
    ("limit", "limit_in_bytes"),
)
_OOM_CONTROL: Final = ("oom_kill_disable", "under_oom", "oom_kill")
_THROTTLE: Final = (
    ("periods", "nr_periods"),
    ("throttled_periods", "nr_throttled"),
    ("throttled_time", "throttled_time"),
)
_PIDS_FILES: Final = (("current", "pids.current"), ("limit", "pids.max"))

# The first have numbers only where the CFQ scheduler is in use, which newer kernels do not have.
_BLKIO: Final = (
    ("sectors_recursive", "blkio.sectors_recursive"),
    ("io_service_bytes_recursive", "blkio.io_service_bytes_recursive"),
    ("io_serviced_recursive", "blkio.io_serviced_recursive"),
    ("io_queued_recursive", "blkio.io_queued_recursive"),
    ("io_service_time_recursive", "blkio.io_service_time_recursive"),
    ("io_wait_time_recursive", "blkio.io_wait_time_recursive"),
    ("io_merged_recursive", "blkio.io_merged_recursive"),
    ("io_time_recursive", "blkio.time_recursive"),
)
_BLKIO_THROTTLE: Final = (
    ("io_serviced_recursive", "blkio.throttle.io_serviced"),
    ("io_service_bytes_recursive", "blkio.throttle.io_service_bytes"),
)

# runc puts a container into all of them; devices is the one that it reads pids from itself.
_PROCESS_CONTROLLERS: Final = ("devices", "pids", "memory", "freezer", "cpu")


class LegacyCgroup(NamedTuple):
    """The folders of one path, by controller."""

    folders: Mapping[str, str]
    proc: str = "/proc"

    @property
    def is_unified(self) -> bool:
        """Which version's message `metrics` fits."""
        return False

    def metrics(self) -> dict[str, object]:
        """Return what `Metrics(**metrics)` takes.

        Raises:
            CgroupError: A file is there and cannot be read.
        """
        folders = self.folders
        metrics: dict[str, object] = {}
        if "cpu" in folders or "cpuacct" in folders:
            metrics["cpu"] = _read_cpu(folders.get("cpu"), folders.get("cpuacct"))
        if "memory" in folders:
            metrics["memory"] = _read_memory(folders["memory"])
            control = read_keyed(folders["memory"], "memory.oom_control")
            metrics["memory_oom_control"] = pick(control, zip(_OOM_CONTROL, _OOM_CONTROL, strict=True))
        if "pids" in folders:
            metrics["pids"] = read_numbers(folders["pids"], _PIDS_FILES, 0)
        if "blkio" in folders:
            metrics["blkio"] = _read_blkio(folders["blkio"], self.proc)
        if "hugetlb" in folders:
            sizes = find_page_sizes(folders["hugetlb"], ".usage_in_bytes")
            metrics["hugetlb"] = [_read_hugetlb(folders["hugetlb"], size) for size in sizes]
        if "rdma" in folders:
            folder = folders["rdma"]
            metrics["rdma"] = {"current": read_rdma(folder, "rdma.current"), "limit": read_rdma(folder, "rdma.max")}
        return metrics

    def processes(self) -> list[int]:
        """Return the pids in this cgroup and in those below it; none if it is gone."""
        found = [self.folders[name] for name in _PROCESS_CONTROLLERS if name in self.folders]
        return read_processes([*found, *self.folders.values()][0])


def _read_cpu(cpu: str | None, cpuacct: str | None) -> dict[str, object]:
    found: dict[str, object] = {}
    if cpu is not None:
        found["throttling"] = pick(read_keyed(cpu, "cpu.stat"), _THROTTLE)
    if cpuacct is not None:
        ticks = read_keyed(cpuacct, "cpuacct.stat")
        times = {key: value * _NS_PER_TICK for key, value in ticks.items()}
        found["usage"] = {
            **read_numbers(cpuacct, (("total", "cpuacct.usage"),), 0),
            **pick(times, (("kernel", "system"), ("user", "user"))),
            "per_cpu": [
                parse_number(word, 0) or 0 for word in (read_text(cpuacct, "cpuacct.usage_percpu") or "").split()
            ],
        }
    return found


def _read_memory(folder: str) -> dict[str, object]:
    found = pick(read_keyed(folder, "memory.stat"), _MEMORY_FIELDS)
    for field, prefix in _MEMORY_ENTRIES:
        found[field] = read_numbers(folder, ((name, f"{prefix}.{file}") for name, file in _ENTRY_FILES), 0)
    return found


def _read_blkio(folder: str, proc: str) -> dict[str, object]:
    names = _read_device_names(proc)
    for files in (_BLKIO, _BLKIO_THROTTLE):
        found: dict[str, object] = {field: _read_blkio_entries(folder, file, names) for field, file in files}
        if any(found.values()):
            break
    return found


def _read_blkio_entries(folder: str, file: str, names: Mapping[str, str]) -> list[dict[str, object]]:
    """Return the entries of a file with lines `MAJOR:MINOR [OPERATION] VALUE` and a total, which is left out."""
    entries: list[dict[str, object]] = []
    for line in (read_text(folder, file) or "").splitlines():
        device, *words = line.split() or [""]
        major, _, minor = device.partition(":")
        if not (words and major.isdecimal() and minor.isdecimal()):
            continue
        value = parse_number(words[-1], 0) or 0
        name, operation = names.get(device, ""), words[0] if len(words) > 1 else ""
        entries.append({"device": name, "major": int(major), "minor": int(minor), "op": operation, "value": value})
    return entries


def _read_device_names(proc: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for line in (read_text(proc, "partitions") or "").splitlines():
        words = line.split()
        if len(words) == 4 and words[0].isdecimal():
            names.setdefault(f"{words[0]}:{words[1]}", f"/dev/{words[3]}")
    return names


def _read_hugetlb(folder: str, size: str) -> dict[str, object]:
    files = (("usage", "usage_in_bytes"), ("max", "max_usage_in_bytes"), ("failcnt", "failcnt"))
    return {"pagesize": size, **read_numbers(folder, ((field, f"hugetlb.{size}.{name}") for field, name in files), 0)}
