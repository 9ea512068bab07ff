"""Whole lives of a container on a shim, in the root folder and with the limits that a test chooses."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from shim.api import runc_options_pb2
from shim.testing import FakeContainerd, FakeRunc, image, wait_until
from shim.testing.leftovers import read_process

# As chroot(1), but in the same working directory, which is the bundle.
_ENTER: Final = """\
import os, sys
root, *words = sys.argv[1:]
folder = os.getcwd()
os.chroot(root)
os.chdir(folder)
os.execv(words[0], words)
"""
SHIM: Final = "/containerd-shim-pyrunc-v1"


class Tree:
    """A root folder of its own, with the shim and what a test adds."""

    def __init__(self, root: Path, program: Path) -> None:
        self.root = root
        self._mounted: list[Path] = []
        shutil.copy(program, f"{root}{SHIM}")

    @property
    def command(self) -> list[str]:
        """The words that run the shim in it."""
        return [sys.executable, "-ISc", _ENTER, str(self.root), SHIM]

    def mount(self, *words: str, at: str) -> None:
        """Mount something at a place in it, and make that first."""
        target = Path(f"{self.root}{at}")
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", *words, str(target)], check=True)
        self._mounted.append(target)

    def close(self) -> None:
        """Unmount what has been mounted."""
        for target in reversed(self._mounted):
            subprocess.run(["umount", "--recursive", "--lazy", str(target)], check=True)


@contextlib.contextmanager
def tree(root: Path, program: Path) -> Iterator[Tree]:
    """Give a tree."""
    made = Tree(root, program)
    try:
        yield made
    finally:
        made.close()


def live(
    command: str | Path | Sequence[str],
    runtime: Path,
    *,
    inside: Tree | None = None,
    environment: Mapping[str, str] | None = None,
    style: str = "2.3",
    stub: str = "",
) -> None:
    """Have containerd run a container with an exec on a shim, from `-info` to the end; nothing may be left.

    `runtime` is the fake runc; `stub`, a shell script's text, stands before it.
    """
    with FakeContainerd(command, style=style, environment=environment) as containerd:
        if inside is not None:
            inside.mount("--bind", str(containerd.folder), at=str(containerd.folder))
        with FakeRunc(containerd.folder / "runc") as runc:
            _put_runtime(runc, runtime, stub)
            busybox = runc.folder / "busybox"
            shutil.copy(image.find_busybox(), busybox)
            assert containerd.version_text().split()[0] == f"{os.path.basename(SHIM)}:"
            options = runc_options_pb2.Options(binary_name=runc.path, root=str(runc.folder / "state"))
            assert containerd.info(options).name == "io.containerd.pyrunc.v1"
            _run_container(containerd, options, str(busybox))
        if inside is not None:
            inside.close()
            inside._mounted.clear()
        assert [] == containerd.processes()


def _put_runtime(runc: FakeRunc, runtime: Path, stub: str) -> None:
    program = Path(runc.path)
    program.unlink()
    if stub:
        program.write_text(stub)
        program.chmod(0o755)
        program = runc.folder / "behind"
    shutil.copy(runtime, program)


def _run_container(containerd: FakeContainerd, options: runc_options_pb2.Options, busybox: str) -> None:
    spec = {
        "ociVersion": "1.0.2",
        "process": {"args": [busybox, "sleep", "1000"], "env": ["PATH=/bin"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "linux": {"cgroupsPath": f"/{containerd.namespace}/c1"},
    }
    shim = containerd.start("c1", spec=spec, options=options)
    pid = shim.probe()
    created = shim.call("Create", options=containerd.call("c1", options).options)
    shim.call("Start")
    shim.call("Exec", exec_id="e1", spec=_process_of(busybox))
    shim.call("Start", exec_id="e1")
    assert 3 == shim.call("Wait", exec_id="e1").exit_status
    shim.call("Delete", exec_id="e1")
    assert created.pid == shim.call("State").pid
    shim.call("Kill", signal=signal.SIGKILL)
    assert 128 + signal.SIGKILL == shim.call("Wait").exit_status
    shim.call("Delete")
    shim.call("Shutdown")
    assert wait_until(lambda: read_process(pid) is None)
    topics = [event.topic for event in containerd.events.events]
    assert "/tasks/create" in topics
    assert "/tasks/delete" in topics
    assert 137 == containerd.delete("c1").exit_status


def _process_of(busybox: str) -> object:
    from google.protobuf.any_pb2 import Any as AnyMessage

    text = f'{{"args": ["{busybox}", "sh", "-c", "exit 3"], "env": [], "cwd": "/", "user": {{"uid": 0, "gid": 0}}}}'
    return AnyMessage(type_url="types.containerd.io/opencontainers/runtime-spec/1/Process", value=text.encode())
