"""Traps of stdio, the engine and `delete`, and rules of sections 6 to 11, that no other test names."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.api.runc_options_pb2 import Options
from shim.api.task_v2_pb2 import DeleteResponse
from shim.engine.binary import BinaryLogger
from shim.engine.bundle import Bundle
from shim.engine.console import Console
from shim.engine.stdio import Streams
from tests.engine.caller import Caller
from tests.engine.served import Served
from tests.engine.test_whole_process import fifo, read_all
from tests.engine.world import World
from tests.fakes import wait_until

SLEEP = "exec sleep 60"
# CRI handles an exit, its Delete included, within so many seconds.
CRI_LIMIT_S = 10.0


@pytest.mark.parametrize("kind", [Streams, Console])
def test_trap_48_no_drain_takes_as_long_as_cri_waits(kind: type[Streams | Console]) -> None:
    """With something left for the runtime's own delete; a logger, whose twelve seconds are Go's, CRI never asks for."""
    assert kind.drain_limit_s <= CRI_LIMIT_S - 1


def test_trap_53_stdin_outlives_the_request_and_its_client(served: Served) -> None:
    """The connection that Create came over is gone before anything is written."""
    bundle = served.bundle("trap53")
    os.mkfifo(bundle / "in")
    with fifo(bundle / "out") as out:
        with served.connect() as client:
            paths = {"stdin": str(bundle / "in"), "stdout": str(bundle / "out")}
            served.create("trap53", "cat", client=client, **paths)
            served.call("Start", id="trap53", client=client)
        with open(bundle / "in", "wb", buffering=0) as writer:
            writer.write(b"late")
            served.call("CloseIO", id="trap53", stdin=True)
        text = read_all(out)
    served.call("Wait", id="trap53")
    served.call("Delete", id="trap53")

    assert b"late" == text


@pytest.mark.parametrize("stdin", [True, False])
def test_rule_6_11_close_io_closes_whatever_its_flag_says(served: Served, stdin: bool) -> None:
    """As Go's shim; containerd passes on only the calls whose flag is set."""
    name = f"rule611{stdin}"
    bundle = served.bundle(name)
    os.mkfifo(bundle / "in")
    served.run(name, "cat; exit 3", stdin=str(bundle / "in"))
    served.call("CloseIO", id=name, stdin=stdin)
    answer = served.call("Wait", id=name)
    served.call("Delete", id=name)

    assert 3 == answer.exit_status


def test_trap_63_a_process_without_stdio_may_read_and_write(served: Served) -> None:
    """What it writes goes nowhere, what it reads is at its end, and neither is an error."""
    served.run("trap63", "echo x || exit 1; echo x >&2 || exit 2; read -r line && exit 3; exit 4")
    answer = served.call("Wait", id="trap63")
    served.call("Delete", id="trap63")

    assert 4 == answer.exit_status


def test_trap_72_and_73_delete_takes_options_as_they_come(own: Served) -> None:
    """Keys that no shim knows any more are passed over; that systemd has the cgroup is in the runtime's own state."""
    own.run("c1", SLEEP, options=own.options(systemd_cgroup=True))
    own.process.kill()
    own.process.wait()
    path = own.bundle("c1") / "options.json"
    left = json.loads(path.read_text())
    path.write_text(json.dumps({**left, "criu_path": "/old", "from_2031": {"a": [1]}}))
    result = own.action("c1", "delete")
    created, *_, deleted = [words for words in own.runc.words() if "create" in words or "delete" in words]

    assert {"root": str(own.root), "systemd_cgroup": True} == left
    assert (0, b"", 137) == (result.returncode, result.stderr, DeleteResponse.FromString(result.stdout).exit_status)
    assert "--systemd-cgroup" in created
    assert ["--root", f"{own.root}/ns"] == deleted[:2]
    assert ["--log-format", "json", "delete", "--force", "c1"] == deleted[4:]
    assert not (own.root / "ns" / "c1").exists()


def test_trap_79_the_first_bundle_goes_while_the_shim_lives(own: Served) -> None:
    """The daemon does not work in it, and a runtime in its own container's; new containers and execs run as before."""
    own.call("Connect", id="x")
    shutil.rmtree(own.folder / "first")
    own.run("c1", SLEEP)
    own.exec("c1", "e1", "exit 4")
    status = own.call("Wait", id="c1", exec_id="e1").exit_status
    own.call("Kill", id="c1", signal=9)
    own.call("Wait", id="c1")
    own.call("Delete", id="c1")
    own.bundle("first")

    assert 4 == status
    assert {str(own.folder / "c1")} == {call.cwd for call in own.runc.calls()}


@pytest.mark.parametrize("umask", [0o077, 0o177, 0])
def test_trap_82_modes_are_what_the_contract_says_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    """The root of a user namespace passes through rootfs; nobody but root reads the options."""
    (tmp_path / "bundle").mkdir()
    bundle = Bundle(str(tmp_path / "bundle"))
    before = os.umask(umask)
    try:
        bundle.make_rootfs()
        bundle.make_rootfs()
        bundle.write_options({}, "runc")
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE(os.stat(bundle.file(name)).st_mode) for name in ("rootfs", "options.json", "runtime")}

    assert {"rootfs": 0o711, "options.json": 0o600, "runtime": 0o600} == modes


def test_rule_6_10_no_process_is_listed_while_a_stopped_container_is_deleted(world: World) -> None:
    """Its pid may be another's by then."""
    container = world.running()
    world.reaper.exit(container.init.pid, 7)
    seen: list[list[tuple[int, str]]] = []

    def act(_words: list[str]) -> int:
        seen.append(container.processes())
        return 0

    world.reaper.acts["delete"] = act
    container.delete(None)

    assert [[]] == seen


@pytest.mark.parametrize("scheme", ["file", "binary"])
def test_rule_7_5_stdio_belongs_to_whom_the_options_of_create_say(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Root of the container's user namespace: it could not open /dev/stdout else."""
    owned: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "fchown", lambda _fd, uid, gid: owned.append((uid, gid)))
    monkeypatch.setattr(BinaryLogger, "start", lambda _logger, uid, gid: owned.extend([(uid, gid)] * 2))
    options = Options(io_uid=1000, io_gid=1001, root=str(caller.folder / "root"))
    packed = AnyMessage(type_url="containerd.runc.v1.Options", value=options.SerializeToString())
    pid = caller.create(options=packed, stdout=f"{scheme}://{caller.folder}/log").pid
    caller.daemon.reaper.exit(pid)
    caller.call("delete", id="c1")

    assert [(1000, 1001)] * 2 == owned


def test_rule_7_1_a_runtime_has_no_descriptor_of_the_shim(served: Served) -> None:
    """Of all that the daemon has open it gets its own stdio, and so has the container nothing else."""
    bundle = served.bundle("rule71")
    os.mkfifo(bundle / "in")
    # By the shell alone: what it starts for a redirection shows in its own descriptors.
    listing = 'for at in /proc/$$/fd/*; do [ -e "$at" ] && fds="$fds ${at##*/}"; done'
    served.run("rule71", f"{listing}; echo $fds > {bundle}/fds", stdin=str(bundle / "in"))
    served.call("Wait", id="rule71")
    served.call("Delete", id="rule71")
    opened = {int(line) for line in (bundle / "fds").read_text().split()}
    of_runtimes = [set(call.descriptors) for call in served.runc.calls() if "rule71" in call.arguments]

    assert [{0, 1, 2}] * len(of_runtimes) == of_runtimes
    # Above 9 are the shell's own.
    assert {0, 1, 2} == {number for number in opened if number < 10}


def test_rule_8_3_a_hold_ends_with_the_delete(own: Served) -> None:
    """No descriptor of a deleted process is left, although its client still has its own ends open."""
    own.call("Connect", id="x")

    def opened() -> list[str]:
        folder = f"/proc/{own.process.pid}/fd"
        return sorted(os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder) if os.path.lexists(f"{folder}/{fd}"))

    own.run("c1", SLEEP)
    before = opened()
    bundle = own.bundle("c1")
    os.mkfifo(bundle / "in")
    with fifo(bundle / "out"):
        own.exec("c1", "e1", SLEEP, stdin=str(bundle / "in"), stdout=str(bundle / "out"))
        writer = os.open(bundle / "in", os.O_WRONLY)
        held = opened()
        own.call("Kill", id="c1", exec_id="e1", signal=9)
        own.call("Wait", id="c1", exec_id="e1")
        own.call("Delete", id="c1", exec_id="e1")
        is_closed = wait_until(lambda: before == opened())
        os.close(writer)
    own.call("Kill", id="c1", signal=9)
    own.call("Wait", id="c1")
    own.call("Delete", id="c1")

    assert 2 == held.count(str(bundle / "in"))
    assert 2 == held.count(str(bundle / "out"))
    assert is_closed
