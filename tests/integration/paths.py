"""The ways a frozen shim can be launched, each with its tests: `frozen` is the plain path, `zygote` the fast one.

A kind's environment holds for everything that is started while its tests run.  Zygotes of a test live in a folder of
their own, and end when that is removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shim.runtime.zygote_protocol import FOLDER_VARIABLE, IDLE_VARIABLE, SWITCH_VARIABLE
from tests.integration.client import wait_until

KINDS: Final = ("frozen", "unfrozen", "zygote")
DEFAULT_KINDS: Final = ("zygote", "unfrozen")  # of the frozen ones the first of each containerd is a plain one
# Longer than any test: none may depend on when a zygote ends by itself.
_IDLE_S: Final = "3600"


@contextlib.contextmanager
def launch_path(kind: str) -> Iterator[Path]:
    """Let shims be launched on the path of a kind; return the folder of its zygotes, empty unless that is `zygote`."""
    # Short, since a socket's path has to be.
    folder = Path(tempfile.mkdtemp(prefix="z-", dir="/tmp"))
    wanted = {
        FOLDER_VARIABLE: str(folder),
        IDLE_VARIABLE: _IDLE_S,
        SWITCH_VARIABLE: "on" if kind == "zygote" else "off",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield folder
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        end_zygotes(folder)


def end_zygotes(folder: Path) -> None:
    """Remove the folder of zygotes, by which they end, and wait until they have."""
    found = [pid for path in folder.glob("*") for pid in [zygote_pid(path)] if pid]
    while folder.exists():  # one that is warming up may be writing there at this moment
        shutil.rmtree(folder, ignore_errors=True)
    for pid in found:
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}/exe").exists(), f"zygote {pid} ends")  # type: ignore[misc]


def zygote_pid(path: Path) -> int:
    """Return the pid of the zygote that listens on a socket, or 0."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return 0
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, _, _ = struct.unpack("3i", credentials)
    assert isinstance(pid, int)
    return pid


def only_zygote(folder: Path) -> int:
    """Return the pid of the one zygote there is, once it listens."""
    wait_until(lambda: any(map(zygote_pid, folder.glob("*"))), "a zygote")
    (pid,) = {pid for pid in map(zygote_pid, folder.glob("*")) if pid}
    return pid


def image_of(pid: int) -> str:
    """Return what a process has in common with those it was forked from, and with nobody else: where its libc is."""
    found = re.search(r"^(\w+)-.*/libc\.so\.6$", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE)

    assert found is not None
    return found[1]
