"""What a shim left behind: processes, mounts, sockets, cgroups, engine state, bundles, temporary files.

`Scope` says what counts as ours, so that other programs on the machine (other shims too) are never reported.
`Leftovers(scope).since(snapshot)` polls until nothing new is left or the settle time is over, and returns one readable
line for each thing that is new. Zombies do not count: process 1 may reap lazily. Linux only, needs root to see all.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shim.testing.configuration import socket_paths

SOCKET_FOLDER: Final = Path("/run/containerd/s")
ENGINE_STATE: Final = Path("/run/containerd/runc")

# Prefixes of what shims, engines and the freezer's loader put into a temporary folder that they share with others.
TEMPORARY: Final = ("_MEI", "pty", "runc-process", "shim-", "ovl-idmapped")

# A thing found: its identity, and a line for people.
Found = dict[tuple[str, ...], str]
Snapshot = frozenset[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Scope:
    """What belongs to us.

    `folders` are containerd's temporary roots, `addresses` the `-address` of its shims, `namespaces` its namespaces
    (their names must be ours alone, since cgroups and engine state are named after them), `shared_namespaces` those
    whose names others use too (CRI's is always `k8s.io`): of what is named after them only our `containers`' counts.
    `containers` are container ids and group names, `shims` the names of shim executables. `private_temp` are folders
    in which everything counts, `shared_temp` folders in which only the known prefixes count. `ignored_pids` never
    count.
    """

    shims: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    shared_namespaces: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    addresses: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    private_temp: tuple[Path, ...] = ()
    shared_temp: tuple[Path, ...] = ()
    ignored_pids: frozenset[int] = field(default=frozenset())

    def socket_names(self) -> set[str]:
        """Return the names that shims of these containers give to their sockets."""
        return {
            socket_name(address, namespace, container)
            for address in self.addresses
            for namespace in (*self.namespaces, *self.shared_namespaces)
            for container in self.containers
        }


@dataclass(frozen=True, slots=True)
class Process:
    """A live process, as /proc shows it."""

    pid: int
    parent: int
    state: str
    name: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"process {self.pid} (parent {self.parent}, {self.state}): {' '.join(self.arguments) or self.name}"


class Leftovers:
    """Compares what is there now with what was there before."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def snapshot(self) -> Snapshot:
        """Return the identities of everything of the scope that is there now."""
        return frozenset(self.scan())

    def since(self, snapshot: Snapshot = frozenset(), settle_s: float = 5.0) -> list[str]:
        """Return a line for each thing that came after `snapshot` and is still there after at most `settle_s`."""
        deadline = time.monotonic() + settle_s
        while True:
            found = self.scan()
            new = sorted(line for key, line in found.items() if key not in snapshot)
            if not new or time.monotonic() >= deadline:
                return new
            time.sleep(0.05)

    def scan(self) -> Found:
        """Return everything of the scope that is there now."""
        found: Found = {}
        for process in processes_of(self.scope):
            found["process", str(process.pid), process.name] = str(process)
        for number, mount_point, source in mounts():
            if self._is_ours(mount_point) or self._is_ours(source):
                found["mount", number, mount_point] = f"mount {mount_point} (from {source})"
        # Version 1 has the same cgroup once in each hierarchy: one line is enough.
        hierarchies: dict[str, list[str]] = {}
        for root, cgroup in container_cgroups(self.scope):
            hierarchies.setdefault(str(cgroup.relative_to(root)), []).append(root.name)
        for name, roots in hierarchies.items():
            found["cgroup", name] = f"cgroup /{name} ({' '.join(sorted(roots))})"
        for path in self._paths():
            found["path", str(path)] = _describe(path)
        return found

    def _is_ours(self, path: str) -> bool:
        return any(_below(path, folder) for folder in self.scope.folders)

    def _paths(self) -> Iterator[Path]:
        scope = self.scope
        expected = scope.socket_names()
        # A lock or a half-made socket has the same name with something before or after it.
        yield from (path for path in _children(SOCKET_FOLDER) if path.name.strip(".").partition(".")[0] in expected)
        yield from engine_states(scope)
        for namespace in (*scope.namespaces, *scope.shared_namespaces):
            for folder in scope.folders:
                yield from folder.glob(f"*/io.containerd.runtime.v2.task/{namespace}/*")
        for folder in scope.private_temp:
            yield from _children(folder)
        for folder in scope.shared_temp:
            yield from (path for path in _children(folder) if path.name.startswith(TEMPORARY))
        yield from self._listening()

    def _listening(self) -> Iterator[Path]:
        """Sockets that processes have bound and that are named after our shims or lie below our folders."""
        with contextlib.suppress(OSError):
            for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
                columns = line.split(maxsplit=7)
                name = columns[7] if len(columns) == 8 else ""
                if self._is_ours(name) and name not in self._daemon_sockets():
                    yield Path(name)

    def _daemon_sockets(self) -> set[str]:
        return {path for address in self.scope.addresses for path in socket_paths(address)}


def socket_name(address: str, namespace: str, group: str) -> str:
    """Return the file name of a shim's socket, from containerd's grpc address, a namespace and a group id."""
    return hashlib.sha256(os.path.normpath(f"{address}/{namespace}/{group}").encode()).hexdigest()


def processes() -> Iterator[Process]:
    """Yield all live processes; zombies are left out."""
    for entry in _children(Path("/proc")):
        if entry.name.isdigit() and (process := read_process(int(entry.name))):
            yield process


def read_process(pid: int) -> Process | None:
    """Return the process, or None if there is none with this pid or it is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 1 :].split()
    if rest[0] in "ZX":
        return None
    words = tuple(word.decode(errors="replace") for word in arguments.rstrip(b"\0").split(b"\0") if word)
    return Process(pid, int(rest[1]), rest[0], name, words)


def processes_of(scope: Scope) -> list[Process]:
    """Return the live processes that belong to `scope`.

    They are those whose command line names one of our folders, addresses or namespaces, those inside a cgroup of our
    namespaces, and those that run one of our shims and were started for one of our addresses (a shim's fork server has
    a command line that names no container, but it keeps the environment that it was started with).
    """
    exempt = scope.ignored_pids | {os.getpid()}
    return [process for process in processes() if process.pid not in exempt and _belongs(process, scope)]


def _belongs(process: Process, scope: Scope) -> bool:
    markers = [*map(str, scope.folders), *scope.addresses]
    for word in process.arguments:
        if any(_contains(word, marker) for marker in markers) or not set(word.split("/")).isdisjoint(scope.namespaces):
            return True
    if in_cgroup(process.pid, scope):
        return True
    if not runs_shim(process, scope.shims):
        return False
    environment = _read(f"/proc/{process.pid}/environ")
    return any(marker in environment for marker in markers)


def runs_shim(process: Process, shims: tuple[str, ...]) -> bool:
    """Say whether the process runs one of the named shim executables."""
    # A shim that is not frozen is the second word, after its interpreter.
    names = {Path(word).name for word in process.arguments[:2]}
    with contextlib.suppress(OSError):
        names.add(Path(os.readlink(f"/proc/{process.pid}/exe").removesuffix(" (deleted)")).name)
    return not names.isdisjoint(shims)


def in_cgroup(pid: int, scope: Scope) -> bool:
    """Say whether the process is in a cgroup below one named after a namespace, or a container's in a shared one."""
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
        parts = line.rpartition(":")[2].split("/")
        pairs = itertools.pairwise(parts)
        if not set(parts).isdisjoint(scope.namespaces) or any(
            parent in scope.shared_namespaces and name in scope.containers for parent, name in pairs
        ):
            return True
    return False


def engine_states(scope: Scope) -> list[Path]:
    """Return the folders in which runc keeps what it knows of our containers."""
    shared = [ENGINE_STATE / namespace / name for namespace in scope.shared_namespaces for name in scope.containers]
    own = [path for namespace in scope.namespaces for path in _children(ENGINE_STATE / namespace)]
    return own + [path for path in shared if path.is_dir()]


def mounts() -> list[tuple[str, str, str]]:
    """Return mount id, mount point and source of every mount, in the order in which they were made."""
    found = []
    for line in _read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        number, _, _, root, point = left.split()[:5]
        kind, source = right.split()[:2]
        # A bind mount's source is a folder inside a file system: the root column names it.
        found.append((number, _unescape(point), _unescape(root if root != "/" else f"{kind} {source}")))
    return found


def cgroups(namespaces: tuple[str, ...]) -> list[tuple[Path, Path]]:
    """Return hierarchy and folder of each cgroup named after one of the namespaces."""
    roots = []
    for line in _read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[0] in {"cgroup", "cgroup2"}:
            roots.append(_unescape(left.split()[4]))
    return [
        (Path(root), Path(folder) / name)
        for root in roots
        for folder, names, _ in os.walk(root)
        for name in names
        if name in namespaces
    ]


def container_cgroups(scope: Scope) -> list[tuple[Path, Path]]:
    """Return hierarchy and folder of each cgroup that is one of our containers'."""
    own = [(root, path) for root, cgroup in cgroups(scope.namespaces) for path in _children(cgroup)]
    shared = [(root, cgroup / name) for root, cgroup in cgroups(scope.shared_namespaces) for name in scope.containers]
    return [(root, path) for root, path in own + shared if path.is_dir()]


def _below(path: str, folder: Path) -> bool:
    return path == str(folder) or path.startswith(f"{folder}/")


def _contains(word: str, marker: str) -> bool:
    start = word.find(marker)
    return start >= 0 and word[start + len(marker) : start + len(marker) + 1] in {"", "/", ".", ",", ":"}


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _unescape(text: str) -> str:
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), text)


def _describe(path: Path) -> str:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return f"socket {path}"
    if stat.S_ISSOCK(mode):
        return f"socket {path}"
    if _below(str(path), ENGINE_STATE):
        return f"engine state {path}"
    return f"{'folder' if stat.S_ISDIR(mode) else 'file'} {path}"
