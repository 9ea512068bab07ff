"""Finding the cgroup of a process, joining one by its path, and having the kernel ready for it when somebody else does.

Rule: both versions are handled here and told apart here; a hybrid host, with version 1 controllers beside an empty
unified hierarchy, counts as version 1. Nothing here creates a cgroup, and none is removed that has processes.
"""

from __future__ import annotations

import os
from typing import Final, TypeAlias

from shim.errors import CgroupError
from shim.host import mountinfo
from shim.host.cgroup_files import write_text
from shim.host.cgroup_v1 import LegacyCgroup
from shim.host.cgroup_v2 import UnifiedCgroup

Cgroup: TypeAlias = LegacyCgroup | UnifiedCgroup

ROOT: Final = "/sys/fs/cgroup"

# Where a hybrid host keeps the unified hierarchy, which is no controller.
_HYBRID: Final = "unified"


def is_unified(root: str = ROOT) -> bool:
    """Tell whether `root` is a version 2 hierarchy; only these have this file at their top."""
    return os.path.exists(f"{root}/cgroup.controllers")


def find(pid: int, *, root: str = ROOT, proc: str = "/proc") -> Cgroup:
    """Return the cgroup that a living process is in.

    Raises:
        CgroupError: The process is dead, or in no cgroup but the root, which tells nothing about one container.
    """
    paths = _read_paths(pid, proc)
    if is_unified(root):
        folder = root + paths.get("", "")
        if paths.get("", "/") == "/" or not os.path.isdir(folder):
            raise CgroupError(f"process {pid} has no cgroup of its own")
        return UnifiedCgroup(folder)
    found = {name: _find_folder(root, name, path, proc) for name, path in paths.items() if name}
    folders = {name: folder for name, folder in found.items() if folder is not None}
    if not folders:
        raise CgroupError(f"process {pid} has no cgroup of its own")
    return LegacyCgroup(folders, proc)


def find_folders(pid: int, *, root: str = ROOT, proc: str = "/proc") -> set[str]:
    """Return every folder that a living process is in, of all hierarchies there are, their tops excepted."""
    try:
        paths = _read_paths(pid, proc)
    except CgroupError:
        return set()
    unified = _unified_top(root)
    found = {unified + paths.pop("", "/")} - {f"{unified}/"}
    found |= {folder for name, path in paths.items() if (folder := _find_folder(root, name, path, proc)) is not None}
    return {os.path.realpath(folder) for folder in found if os.path.isdir(folder)}


def remove_empty(folders: set[str]) -> set[str]:
    """Remove cgroups that have neither processes nor cgroups below them, and return the others."""
    left = set()
    for folder in sorted(folders, reverse=True):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            continue
        except OSError:
            left.add(folder)
    return left


def join(path: str, pid: int, *, root: str = ROOT) -> None:
    """Move a process into the cgroup `path`, in version 1 into that of every controller which has one.

    Raises:
        CgroupError: There is no such cgroup, or the kernel refuses.
    """
    if ".." in path.split("/") or (is_unified(root) and not path.startswith("/")):
        raise CgroupError(f"failed to join cgroup {path}: not an absolute path")
    inside = path.strip("/")
    tops = [root] if is_unified(root) else _find_hierarchies(root)
    folders = [folder for top in tops if os.path.isdir(folder := f"{top}/{inside}")]
    if not folders:
        raise CgroupError(f"failed to join cgroup {path}: no such cgroup")
    for folder in folders:
        try:
            write_text(folder, "cgroup.procs", str(pid))
        except OSError as error:
            raise CgroupError(f"failed to join cgroup {path}: {str(error.strerror).lower()}") from error


def announce_move(pid: int, *, root: str = ROOT, proc: str = "/proc") -> bool:
    """Have the kernel get ready to move processes, and say whether it could be told; blocks until it is.

    From Linux 6.0 on (without `favordynmods`) the first move after some time waits for a grace period of RCU, 5 to
    20 ms, while those that follow soon do not.  Who knows that somebody else is about to move a process can have that
    waited for before.  So `pid` is moved to where it is, which changes nothing: a process that nobody else moves, and
    that nothing depends on, should its path mean another cgroup here than it does for the kernel.
    Where that fails the other waits, as ever.  Before Linux 6.0 it takes microseconds, and is of no use.
    """
    try:
        with open(f"{proc}/{pid}/cgroup", "rb", buffering=0) as file:
            found = _parse_paths(file.read())
    except OSError:
        return False
    # All hierarchies share what is waited for; those without a controller first, where it matters least.
    for names, path in sorted(found, key=lambda each: bool(each[0]) and not each[0].startswith("name=")):
        top = _top(root, names) if names else _unified_top(root)
        try:
            write_text(top + path, "cgroup.procs", str(pid))
        except OSError:
            continue
        return True
    return False


def _read_paths(pid: int, proc: str) -> dict[str, str]:
    """Return the paths of a process by controller; the unified hierarchy's is under the empty name."""
    paths: dict[str, str] = {}
    try:
        with open(f"{proc}/{pid}/cgroup", "rb", buffering=0) as file:
            found = _parse_paths(file.read())
        with open(f"{proc}/{pid}/stat", "rb", buffering=0) as file:
            state = file.read().rpartition(b")")[2].split()[0]
    except (OSError, IndexError) as error:
        raise CgroupError(f"process {pid} has no cgroup: it is gone") from error
    # A dead process is shown in the root cgroup, so all that was read before may be wrong.
    if state in (b"Z", b"X"):
        raise CgroupError(f"process {pid} has no cgroup: it is dead")
    for names, path in found:
        paths.update(dict.fromkeys(names.split(","), path))
    return paths


def _parse_paths(content: bytes) -> list[tuple[str, str]]:
    """Return the names of each hierarchy, as they stand in /proc/PID/cgroup, and the path in it."""
    found = []
    for line in os.fsdecode(content).split("\n"):
        hierarchy, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if hierarchy and path:
            found.append((names, path))
    return found


def _unified_top(root: str) -> str:
    return root if is_unified(root) else f"{root}/{_HYBRID}"


def _top(root: str, name: str) -> str:
    """Return where a version 1 hierarchy is mounted."""
    return f"{root}/{name.removeprefix('name=')}"


def _find_folder(root: str, name: str, path: str, proc: str) -> str | None:
    """Return the folder of one version 1 controller, or None where the process is at its top."""
    top = _top(root, name)
    if path == "/":
        return None
    if os.path.isdir(top + path):
        return top + path
    # In a container whose host shares its cgroup namespace, the path begins above what is mounted.
    top = os.path.realpath(top)
    try:
        entries = mountinfo.read(f"{proc}/self/mountinfo")
    except OSError:
        return None
    for entry in entries:
        if entry.mount_point == top and path.startswith(f"{entry.root}/"):
            folder = top + path.removeprefix(entry.root)
            return folder if os.path.isdir(folder) else None
    return None


def _find_hierarchies(root: str) -> list[str]:
    """Return the tops of all mounted version 1 hierarchies, each once: cpu may be a link to cpu,cpuacct."""
    try:
        with os.scandir(root) as entries:
            found = [entry for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name != _HYBRID]
    except OSError:
        return []
    return sorted(entry.path for entry in found)
