"""Removes by force what a test's shims left behind, and nothing else.

Everything comes from a `leftovers.Scope`. Order: processes, mounts, engine state, cgroups, fifos and sockets, then
the folder, which is removed only once nothing is mounted below it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from shim.testing.leftovers import (
    ENGINE_STATE,
    SOCKET_FOLDER,
    Scope,
    cgroups,
    container_cgroups,
    engine_states,
    mounts,
    processes_of,
)

# Where `ctr` makes its fifos unless told otherwise.
FIFO_FOLDER: Final = Path("/run/containerd/fifo")


def remove(scope: Scope, timeout_s: float = 10.0) -> None:
    """Remove everything that belongs to `scope` but its folders."""
    _kill(scope, timeout_s)
    for folder in scope.folders:
        unmount_below(folder)
    for folder in [*engine_states(scope), *(ENGINE_STATE / namespace for namespace in scope.namespaces)]:
        shutil.rmtree(folder, ignore_errors=True)
    for _, cgroup in container_cgroups(scope) + cgroups(scope.namespaces):
        for path, _, _ in os.walk(cgroup, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)
    _remove_fifos(scope)
    for name in scope.socket_names():
        with contextlib.suppress(OSError):
            (SOCKET_FOLDER / name).unlink()


def _remove_fifos(scope: Scope) -> None:
    """Remove the stdio folders that a killed `ctr` left: named after our containers, and open in no process."""
    own = {f"{container}-{stream}" for container in scope.containers for stream in ("stdin", "stdout", "stderr")}
    folders = [folder for folder in FIFO_FOLDER.glob("*") if own.issuperset(path.name for path in folder.glob("*"))]
    for folder in folders:
        if not any(target.startswith(f"{folder}/") for target in _open_files()):
            shutil.rmtree(folder, ignore_errors=True)


def _open_files() -> Iterator[str]:
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            yield os.readlink(descriptor)


def unmount_below(folder: Path) -> None:
    """Unmount everything at or below `folder`, the newest mount first; lazily if it is busy."""
    for _, mount_point, _ in reversed(mounts()):
        if mount_point == str(folder) or mount_point.startswith(f"{folder}/"):
            for options in ([], ["-l"]):
                if subprocess.run(["umount", *options, mount_point], capture_output=True, check=False).returncode == 0:
                    break


def remove_folder(folder: Path) -> None:
    """Remove `folder` with all that is in it.

    Raises:
        OSError: something is still mounted below it (removing would reach into that), or it cannot be removed.
    """
    unmount_below(folder)
    left = [point for _, point, _ in mounts() if point.startswith(f"{folder}/")]
    if left:
        raise OSError(f"still mounted below {folder}: {', '.join(left)}")
    shutil.rmtree(folder)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first SIGINT or SIGTERM within the block, and ignore further ones.

    So a program that is told to stop cleans up, and does so once.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM until the end of the block, so that half a cleanup cannot happen."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, lambda got, frame: came.append(got)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _kill(scope: Scope, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while processes := processes_of(scope):
        _thaw(scope)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _thaw(scope: Scope) -> None:
    # A frozen process dies of SIGKILL only once it is thawed (cgroup v1; version 2 kills it as it is).
    for _, cgroup in container_cgroups(scope):
        for state in cgroup.rglob("freezer.state"):
            with contextlib.suppress(OSError):
                state.write_text("THAWED")
