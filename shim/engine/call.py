"""One call of a program: its stdio, its output, and its end, by itself or when its time is up.

Rule: a call that outlives its limit is killed with all that it has started, and cgroups that are empty by that are
removed, so that nothing of it goes on behind the back of who hears that it failed.
"""

from __future__ import annotations

import os
import select
import signal
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from shim.host import cgroup, process

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.runtime.reaper import Child, Exit, ForegroundChild, ForegroundReaper, Reaper

    Spawner = Reaper | ForegroundReaper

# How often a call whose output does not end is looked at: something it left behind may hold the pipe.
_GLANCE_S: Final = 1.0
# How long a killed process may take to go: one in the middle of a system call may not go at all.
_GONE_S: Final = 2.0
_POLL_S: Final = 0.005


class ChildFds(NamedTuple):
    """The descriptors that a container's process gets as 0 to 2; None is /dev/null."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None


class Ended(NamedTuple):
    """How a call ended: its status, what it wrote on both outputs, and whether its time was up."""

    status: int
    output: str = ""
    is_late: bool = False


def run_attached(
    reaper: Spawner,
    argv: list[str],
    fds: ChildFds,
    *,
    limit_s: float | None = None,
    folder: str | None = None,
    meanwhile: Callable[[int], object] | None = None,
) -> Ended:
    """Run a program on these descriptors, in `folder`; with `limit_s` it is killed after so many seconds.

    `meanwhile` is called with its pid, once it runs; it must not raise, and the limit does not cut it short.

    Raises:
        OSError: It cannot be started.
    """
    deadline = _deadline(limit_s)
    child = reaper.spawn(argv, stdin=fds.stdin, stdout=fds.stdout, stderr=fds.stderr, folder=folder)
    if meanwhile is not None:
        meanwhile(child.pid)
    return _end(child, deadline, "")


def run_captured(
    reaper: Spawner,
    argv: list[str],
    data: bytes | None = None,
    *,
    limit_s: float | None = None,
    folder: str | None = None,
    meanwhile: Callable[[int], object] | None = None,
) -> Ended:
    """Run a program in `folder`, feed it `data`, and return its status and what it wrote on both outputs.

    With `limit_s` it is killed after so many seconds.  `meanwhile` as for `run_attached`.

    Raises:
        OSError: It cannot be started.
    """
    deadline = _deadline(limit_s)
    read_end, write_end = os.pipe()
    stdin = None
    try:
        if data is not None:
            stdin = _memory_file(data)
        try:
            child = reaper.spawn(argv, stdin=stdin, stdout=write_end, stderr=write_end, folder=folder)
        finally:
            os.close(write_end)
            if stdin is not None:
                os.close(stdin)
        if meanwhile is not None:
            meanwhile(child.pid)
        output = _read_output(read_end, child, deadline)
    finally:
        os.close(read_end)
    return _end(child, deadline, output)


def _deadline(limit_s: float | None) -> float | None:
    return None if limit_s is None else time.monotonic() + limit_s


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _end(child: Child | ForegroundChild, deadline: float | None, output: str) -> Ended:
    exit_ = child.wait(_left(deadline))
    if exit_ is not None:
        return Ended(exit_.status, output)
    kill_with_children(child)
    return Ended(_status(child.wait(_GONE_S)), output, is_late=True)


def _status(exit_: Exit | None) -> int:
    return exit_.status if exit_ is not None else -1


def kill_with_children(child: Child | ForegroundChild) -> None:
    """Kill a child, what it has started, and so on; they are stopped first, so that none of them starts another."""
    child.kill(signal.SIGSTOP)
    found: dict[int, int] = {}
    while more := {pid: at for pid, at in process.find_descendants(child.pid).items() if pid not in found}:
        found.update(more)
        for pid, started_at in more.items():
            process.send_signal(pid, started_at, signal.SIGSTOP)
    cgroups = {folder for pid in found for folder in cgroup.find_folders(pid)} - cgroup.find_folders(os.getpid())
    child.kill(signal.SIGKILL)
    for pid, started_at in found.items():
        process.send_signal(pid, started_at, signal.SIGKILL)
    # A runtime killed half way has noted nowhere that it made a cgroup (runc 1.1).  The kernel takes a moment to see
    # that one is empty, even of zombies; one with other processes, as an exec's, just stays.
    deadline = time.monotonic() + _GONE_S
    while (cgroups := cgroup.remove_empty(cgroups)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _read_output(fd: int, child: Child | ForegroundChild, deadline: float | None) -> str:
    """Read to the end of the output, or until time is up, or until only others than the child keep it open."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    chunks = []
    while True:
        left = _left(deadline)
        if left == 0.0:
            break
        if poller.poll((_GLANCE_S if left is None else min(left, _GLANCE_S)) * 1000):
            chunk = os.read(fd, 64 << 10)
            if not chunk:
                break
            chunks.append(chunk)
        elif child.wait(0.0) is not None:
            break
    return b"".join(chunks).decode("utf-8", "replace")


def _memory_file(data: bytes) -> int:
    """Return a descriptor to read `data` from; a pipe would need somebody to fill it."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def exec_failure(binary: str, error: OSError) -> str:
    """Return why a program could not be started, in Go's words, which clients match on."""
    if process.find_executable(binary) is None and "/" not in binary:
        return f'exec: "{binary}": executable file not found in $PATH'
    return f"fork/exec {binary}: {(error.strerror or str(error)).lower()}"
