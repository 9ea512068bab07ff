"""Traps of the contract that only a real shim, runtime or containerd shows; tests/contract has the table of all."""

from __future__ import annotations

import os
import signal
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.api import task_v2_pb2, types_pb2
from shim.ttrpc import Code
from tests.integration import byhand
from tests.integration.byhand import RUNTIME_ID, Hand, finish, refusal, wait_gone
from tests.integration.client import wait_until

pytest_generate_tests = byhand.pytest_generate_tests
program, spawn, hand = byhand.program, byhand.spawn, byhand.hand


# Start-up.


def test_trap_11_no_start_joins_a_shim_that_ends(hand: Hand) -> None:
    """Its socket is gone before Shutdown is answered, so a start that comes at once makes a daemon that stays."""
    pids = []
    for _ in range(3):
        client = hand.serve("c1")
        pids.append(client.connect().shim_pid)
        client.shutdown()

    assert 3 == len(set(pids))
    last = hand.serve("c1")
    last.create(hand.create_request("c1"))
    last.delete()


def test_trap_12_the_oom_score_ends_at_a_thousand(hand: Hand) -> None:
    """One more than the greatest would be refused by the kernel, and the start with it."""
    script = 'echo 1000 > /proc/self/oom_score_adj; "$@"; exit $?'
    done = hand.start("c1", wrapper=["sh", "-c", script, "sh"])
    pid = hand.client("c1").connect().shim_pid

    assert (0, b"") == (done.returncode, done.stderr)
    assert "1000\n" == Path(f"/proc/{pid}/oom_score_adj").read_text()


@pytest.mark.parametrize("options", ["", "of.somebody.Else"], ids=["none", "another's"])
def test_trap_14_info_answers_whatever_comes_and_makes_no_file(hand: Hand, options: str) -> None:
    """CRI and containerd 2.2 ask without options, or with those of whatever the handler is configured for."""
    stdin = AnyMessage(type_url=options, value=b"\xff\xff").SerializeToString() if options else b""
    folder = hand.folder / "empty"
    folder.mkdir()
    done = finish(hand.popen("-info", cwd=folder), stdin)
    info = types_pb2.RuntimeInfo.FromString(done.stdout)

    assert (0, b"") == (done.returncode, done.stderr)
    assert (RUNTIME_ID, options) == (info.name, info.options.type_url)
    assert [] == [*folder.iterdir(), *hand.tmp.iterdir()]
    assert [] == hand.processes()


# Delete.


def test_trap_40_a_delete_whose_unmount_failed_may_be_repeated(hand: Hand) -> None:
    """The root file system is busy, which is told; the container stays until it is unmounted, and nothing leaks."""
    client = hand.serve("c1")
    client.create(hand.create_request("c1"))
    client.start()
    client.kill(signal.SIGKILL)
    client.wait()
    holder = os.open(hand.bundle("c1") / "rootfs/bin/busybox", os.O_RDONLY)
    code, text = refusal(client.delete)
    client.shutdown()
    kept = client.state()
    os.close(holder)
    deleted = client.delete()

    assert Code.UNKNOWN == code
    assert text.startswith(f"failed rootfs umount: failed to unmount target {hand.bundle('c1')}/rootfs: ")
    assert (kept.pid, 137, 137) == (deleted.pid, kept.exit_status, deleted.exit_status)
    assert Code.NOT_FOUND == refusal(client.delete)[0]
    wait_until(lambda: "/tasks/delete" in hand.events.topics("c1"), "the deletion is told")
    assert ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"] == hand.events.topics("c1")


def test_rule_11_deletes_at_once_beside_a_shim_of_the_pod(hand: Hand) -> None:
    """However many run for a container, all answer alike, and none touches the shim that serves the others."""
    for name in ("c1", "c2"):
        hand.bundle(name, group="pod")
    address = hand.start("c1").stdout.decode()
    assert address == hand.start("c2").stdout.decode()
    first, second = hand.client("c1", address), hand.client("c2", address)
    for client in (first, second):
        client.create(hand.create_request(client.container))
        client.start()
    first.kill(signal.SIGKILL)
    first.wait()
    pid = first.delete().pid
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: hand.delete("c1"), range(4)))

    assert [(pid, 137)] * 4 == [(answer.pid, answer.exit_status) for answer in answers]
    assert 0 == second.run("e1", "true")
    assert hand.socket_path("pod").exists()
    second.kill(signal.SIGKILL)
    second.wait()
    second.delete()


def test_rule_11_deletes_at_once_after_the_shim_was_killed(hand: Hand) -> None:
    """They may meet in the runtime; each answers, and what is left in the end is nothing."""
    client = hand.serve("c1")
    client.create(hand.create_request("c1"))
    pid = client.start()
    os.kill(client.connect().shim_pid, signal.SIGKILL)
    words = hand.arguments("c1", "delete")
    running = [hand.popen(*words, cwd=hand.bundle("c1")) for _ in range(3)]
    done = [finish(process) for process in running]
    answers = [task_v2_pb2.DeleteResponse.FromString(each.stdout) for each in done]

    assert [(0, pid, 137)] * 3 == [
        (each.returncode, answer.pid, answer.exit_status) for each, answer in zip(done, answers, strict=True)
    ]
    wait_gone(pid)
    hand.delete("c1")
    hand.serve("c1")


def test_trap_82_rootfs_is_passable_whatever_the_umask(hand: Hand) -> None:
    """The root of a container's user namespace is another user on the host, who has to get through it."""
    done = hand.start("c1", umask=0o077)
    client = hand.client("c1", done.stdout.decode())
    client.create(hand.create_request("c1"))
    client.delete()

    assert 0o711 == stat.S_IMODE((hand.bundle("c1") / "rootfs").stat().st_mode)


def test_trap_70_a_root_that_a_helper_mounts(hand: Hand) -> None:
    """FUSE snapshotters name a program, which the shim runs and waits for; Delete unmounts what it has mounted."""
    helper = hand.folder / "bin/mount.fuse3"
    helper.parent.mkdir()
    helper.write_text('#!/bin/sh\n[ "$*" = "$1 $2 -o allow_other -t bound" ] && exec mount --bind "$1" "$2"\n')
    helper.chmod(0o755)
    done = hand.start("c1", environment={"PATH": f"{helper.parent}:{os.environ['PATH']}"})
    client = hand.client("c1", done.stdout.decode())
    mount = types_pb2.Mount(type="fuse3.bound", source=str(hand.image), options=["allow_other"])
    client.create(hand.create_request("c1", mounts=[mount]))
    client.start()

    assert 0 == client.run("e1", "true")
    client.kill(signal.SIGKILL)
    client.wait()
    client.delete()
    assert [] == list((hand.bundle("c1") / "rootfs").iterdir())
