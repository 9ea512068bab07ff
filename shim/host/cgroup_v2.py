"""A cgroup of the unified hierarchy (version 2).

Rule: `metrics` has the field names of io.containerd.cgroups.v2.Metrics; what has no file is left out.
Spec: the kernel's admin-guide/cgroup-v2.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shim.host.cgroup_files import (
    find_page_sizes,
    parse_pairs,
    pick,
    read_keyed,
    read_numbers,
    read_processes,
    read_rdma,
    read_text,
)

_UINT64_MAX: Final = 2**64 - 1

_CPU: Final = (
    "usage_usec",
    "user_usec",
    "system_usec",
    "nr_periods",
    "nr_throttled",
    "throttled_usec",
    "nr_bursts",
    "burst_usec",
)
_MEMORY: Final = (
    "anon",
    "file",
    "kernel_stack",
    "slab",
    "sock",
    "shmem",
    "file_mapped",
    "file_dirty",
    "file_writeback",
    "anon_thp",
    "inactive_anon",
    "active_anon",
    "inactive_file",
    "active_file",
    "unevictable",
    "slab_reclaimable",
    "slab_unreclaimable",
    "pgfault",
    "pgmajfault",
    "workingset_refault",
    "workingset_activate",
    "workingset_nodereclaim",
    "pgrefill",
    "pgscan",
    "pgsteal",
    "pgactivate",
    "pgdeactivate",
    "pglazyfree",
    "pglazyfreed",
    "thp_fault_alloc",
    "thp_collapse_alloc",
)
_MEMORY_FILES: Final = (
    ("usage", "memory.current"),
    ("usage_limit", "memory.max"),
    ("max_usage", "memory.peak"),
    ("swap_usage", "memory.swap.current"),
    ("swap_limit", "memory.swap.max"),
    ("swap_max_usage", "memory.swap.peak"),
)
_PIDS_FILES: Final = (("current", "pids.current"), ("limit", "pids.max"))
_MEMORY_EVENTS: Final = ("low", "high", "max", "oom", "oom_kill", "oom_group_kill")
_IO: Final = ("rbytes", "wbytes", "rios", "wios")
_STALL_SHARES: Final = ("avg10", "avg60", "avg300")


class UnifiedCgroup(NamedTuple):
    """One folder of the unified hierarchy."""

    folder: str

    @property
    def is_unified(self) -> bool:
        """Which version's message `metrics` fits."""
        return True

    def metrics(self) -> dict[str, object]:
        """Return what `Metrics(**metrics)` takes.

        Raises:
            CgroupError: A file is there and cannot be read.
        """
        folder = self.folder
        metrics: dict[str, object] = {
            "pids": read_numbers(folder, _PIDS_FILES, _UINT64_MAX),
            "cpu": {**_pick_same(read_keyed(folder, "cpu.stat"), _CPU), **_read_pressure(folder, "cpu.pressure")},
            "memory": {
                **_pick_same(read_keyed(folder, "memory.stat"), _MEMORY),
                **read_numbers(folder, _MEMORY_FILES, _UINT64_MAX),
                **_read_pressure(folder, "memory.pressure"),
            },
            "rdma": {"current": read_rdma(folder, "rdma.current"), "limit": read_rdma(folder, "rdma.max")},
            "io": {"usage": _read_io(folder), **_read_pressure(folder, "io.pressure")},
            "hugetlb": [_read_hugetlb(folder, size) for size in find_page_sizes(folder, ".current")],
        }
        events = read_keyed(folder, "memory.events")
        if events:
            metrics["memory_events"] = _pick_same(events, _MEMORY_EVENTS)
        return metrics

    def processes(self) -> list[int]:
        """Return the pids in this cgroup and in those below it; none if it is gone."""
        return read_processes(self.folder)


def _pick_same(values: dict[str, int], names: tuple[str, ...]) -> dict[str, object]:
    return pick(values, zip(names, names, strict=True))


def _read_pressure(folder: str, name: str) -> dict[str, object]:
    """Return the field `psi`, or nothing where the kernel keeps no account."""
    stalls: dict[str, object] = {}
    for line in (read_text(folder, name) or "").splitlines():
        kind, *pairs = line.split() or [""]
        if kind in ("some", "full"):
            words = {key: text for key, _, text in (pair.partition("=") for pair in pairs)}
            shares: dict[str, object] = {name: float(words[name]) for name in _STALL_SHARES if name in words}
            stalls[kind] = shares | _pick_same(parse_pairs(pairs, 0), ("total",))
    return {"psi": stalls} if stalls else {}


def _read_io(folder: str) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = []
    for line in (read_text(folder, "io.stat") or "").splitlines():
        device, *pairs = line.split() or [""]
        major, _, minor = device.partition(":")
        # A device without accounts has no pairs.
        if pairs and major.isdecimal() and minor.isdecimal():
            entries.append({"major": int(major), "minor": int(minor), **_pick_same(parse_pairs(pairs, 0), _IO)})
    return entries


def _read_hugetlb(folder: str, size: str) -> dict[str, object]:
    numbers = read_numbers(
        folder, (("current", f"hugetlb.{size}.current"), ("max", f"hugetlb.{size}.max")), _UINT64_MAX
    )
    failures = read_keyed(folder, f"hugetlb.{size}.events")
    return {"pagesize": size, **numbers, **pick(failures, (("failcnt", "max"),))}
