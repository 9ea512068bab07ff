"""The runtime's options, by what they do to real daemons and real containers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.api.runc_options_pb2 import Options
from shim.api.runtimeoptions_pb2 import Options as ConfigOptions
from shim.host import cgroup
from shim.testing.containerd import Containerd
from tests.integration import byhand
from tests.integration.byhand import Hand
from tests.integration.client import Fifo, TaskClient, wait_until

pytest_generate_tests = byhand.pytest_generate_tests
program, spawn, hand = byhand.program, byhand.spawn, byhand.hand

# Host ids of root in the user namespaces of these tests.
ROOT_ID: Final = 231072


def packed(options: Options | ConfigOptions) -> AnyMessage:
    """Return options as containerd sends them."""
    return AnyMessage(type_url=options.DESCRIPTOR.full_name, value=options.SerializeToString())


@pytest.fixture
def shim_cgroup(hand: Hand) -> Iterator[str]:
    """A cgroup, by its path."""
    path = f"/{hand.namespace}-shim"
    top = Path(cgroup.ROOT)
    folders = [top / path[1:]] if cgroup.is_unified() else [top / name / path[1:] for name in ("memory", "pids")]
    for folder in folders:
        folder.mkdir()
    yield path
    wait_until(lambda: not cgroup.remove_empty({str(folder) for folder in folders}), "the cgroups are empty")


@pytest.mark.parametrize("kind", ["options", "config_path"])
def test_shim_cgroup_takes_the_daemon_in(hand: Hand, shim_cgroup: str, tmp_path: Path, kind: str) -> None:
    """From its start on, whichever message says so; the container's own cgroup is another."""
    options: Options | ConfigOptions = Options(shim_cgroup=shim_cgroup)
    if kind == "config_path":
        (tmp_path / "runtime.toml").write_text(f'ShimCgroup = "{shim_cgroup}"\n')
        options = ConfigOptions(config_path=str(tmp_path / "runtime.toml"))
    done = hand.start("c", packed(options).SerializeToString())

    assert (0, b"") == (done.returncode, done.stderr)

    task = hand.client("c")
    daemon = task.connect().shim_pid
    init = task.create(hand.create_request("c"))
    lines = Path(f"/proc/{daemon}/cgroup").read_text().splitlines()
    inits = Path(f"/proc/{init}/cgroup").read_text()

    assert [] != [line for line in lines if line.endswith(f":{shim_cgroup}")]
    assert shim_cgroup not in inits

    task.delete()
    task.shutdown()
    wait_until(lambda: not Path(f"/proc/{daemon}").exists(), "the daemon has ended")


def mapped(spec: dict[str, Any]) -> dict[str, Any]:
    """Give a container a user namespace of its own."""
    ids = [{"containerID": 0, "hostID": ROOT_ID, "size": 65536}]
    linux = spec["linux"]
    linux["namespaces"].append({"type": "user"})
    return {**spec, "linux": {**linux, "uidMappings": ids, "gidMappings": ids}}


@pytest.fixture
def in_user_namespace(hand: Hand) -> Callable[..., TaskClient]:
    """Return a function that runs a shell command in a user namespace whose root owns the stdio."""
    for folder in (hand.folder, hand.folder / "bundles"):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o711)
    os.chown(hand.image, ROOT_ID, ROOT_ID)

    def run(container: str, command: str, **stdio: Any) -> TaskClient:
        spec = mapped(hand.spec(container, "sh", "-c", command))
        hand.bundle(container, spec=spec).chmod(0o711)
        task = hand.serve(container)
        request = hand.create_request(container)
        request.options.CopyFrom(packed(Options(io_uid=ROOT_ID, io_gid=ROOT_ID)))
        for name, value in stdio.items():
            setattr(request, name, value)
        task.create(request)
        task.start()
        return task

    return run


# Opening its own stdout once more takes more than writing to what was given.
REOPEN: Final = "echo out >/proc/self/fd/1 && echo err >/proc/self/fd/2 && exit 5"


def end(task: TaskClient) -> int:
    """Wait for a container's end and delete it; its daemon goes with it."""
    status = task.wait().exit_status
    task.delete()
    task.shutdown()
    return status


def test_io_uid_owns_fifos(hand: Hand, in_user_namespace: Callable[..., TaskClient], tmp_path: Path) -> None:
    """Of init and of execs."""
    fifos = [Fifo(tmp_path / name) for name in ("out", "err", "exec-out", "exec-err")]
    out, err, exec_out, exec_err = fifos
    task = in_user_namespace("c", f"sleep 1000 & {REOPEN}; wait", stdout=out.path, stderr=err.path)
    status = task.wait().exit_status
    written = out.read(4), err.read(4)

    assert (5, b"out\n", b"err\n") == (status, *written)

    task.delete()
    task.shutdown()
    task = in_user_namespace("d", "sleep 1000")
    task.exec("e", "sh", "-c", REOPEN, stdout=exec_out.path, stderr=exec_err.path)
    task.start("e")

    assert 5 == task.wait("e").exit_status
    assert (b"out\n", b"err\n") == (exec_out.read(4), exec_err.read(4))
    task.delete("e")
    task.kill(9)

    assert 137 == end(task)
    for fifo in fifos:
        fifo.close()


def test_io_uid_owns_files(hand: Hand, in_user_namespace: Callable[..., TaskClient], tmp_path: Path) -> None:
    """The pipes to them, that is: the file stays the host's."""
    status = end(in_user_namespace("c", REOPEN, stdout=f"file://{tmp_path}/log"))

    assert (5, ["err", "out"]) == (status, sorted((tmp_path / "log").read_text().split()))
    assert os.getuid() == (tmp_path / "log").stat().st_uid


def test_io_uid_owns_the_pipes_of_loggers(
    hand: Hand, in_user_namespace: Callable[..., TaskClient], tmp_path: Path
) -> None:
    """Which read them as the shim's user."""
    logger = tmp_path / "logger"
    logger.write_text(f"#!/bin/sh\nexec 5>&-\ncat <&3 >{tmp_path}/out & cat <&4 >{tmp_path}/err & wait\n")
    logger.chmod(0o755)
    status = end(in_user_namespace("c", REOPEN, stdout=f"binary://{logger}"))

    assert (5, "out\n", "err\n") == (status, (tmp_path / "out").read_text(), (tmp_path / "err").read_text())


def test_a_table_that_ctr_names_is_read(
    containerd: Containerd, name: str, tmp_path: Path, remove: Callable[[str], None]
) -> None:
    """By Go's names of the fields; the runtime's state is where the table says."""
    root = tmp_path / "root"
    (tmp_path / "runtime.toml").write_text(f'Root = "{root}"\nNoNewKeyring = true\nNoPivotRoot = true\n')
    options = ["--null-io", "--runtime-config-path", str(tmp_path / "runtime.toml")]
    containerd.run(name, "sleep", "1000", detach=True, options=options)
    left = json.loads((containerd.bundle(name) / "options.json").read_text())

    assert {"root": str(root), "no_new_keyring": True, "no_pivot_root": True} == left
    assert (root / containerd.namespace / name).is_dir()

    remove(name)

    assert not (root / containerd.namespace / name).exists()
