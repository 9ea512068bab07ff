"""The zygote: what it leaves is what an exec would have left, whom it refuses, when it ends; and nobody needs it.

By hand, with this process as the zygote's founder, as containerd is in real life.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from shim.host import identity
from shim.runtime.zygote_protocol import FOLDER_VARIABLE, IDLE_VARIABLE, SWITCH_VARIABLE
from shim.testing.containerd import Containerd
from shim.testing.leftovers import Process, processes, read_process
from tests.integration.byhand import Hand, find_program, finish, wait_gone, warm
from tests.integration.client import descriptors, wait_until
from tests.integration.conftest import SHIM, Flavour
from tests.integration.paths import image_of, launch_path, only_zygote, zygote_pid

FREEZERS: Final = re.compile(r"_PYI_\w+|LD_LIBRARY_PATH(_ORIG)?")
# 32 and 33, which the C library takes when it first makes a thread: in a rehearsal, or when a call needs one.
LIBC_SIGNALS: Final = 1 << 31 | 1 << 32
STATUS: Final = ("SigBlk", "ShdPnd", "Umask", "NSpid", "CoreDumping", "Kthread")


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the frozen shim."""
    return find_program("frozen", tmp_path_factory.mktemp("none"))


@pytest.fixture
def zygotes() -> Iterator[Path]:
    """Return the folder of this test's zygotes, of which there are none yet."""
    with launch_path("zygote") as folder:
        yield folder


@pytest.fixture
def hand(binary: Path, zygotes: Path) -> Iterator[Hand]:
    """Return a hand whose first start finds no zygote."""
    hand = Hand(binary)
    try:
        yield hand
    finally:
        left = hand.close()

    assert [] == left


@pytest.fixture
def zygote(hand: Hand, zygotes: Path) -> int:
    """Return the pid of a zygote that is ready."""
    return warm(hand.program, zygotes)


def family(folder: Path) -> list[Process]:
    """Return the zygotes of a folder, and their spares."""
    return [each for each in processes() if each.arguments[1:2] == ("zygote",) and str(folder) in each.arguments[2]]


def served_by(hand: Hand, container: str, zygote: int) -> bool:
    """Say whether the daemon of a container is a fork of the zygote."""
    return image_of(hand.client(container).connect().shim_pid) == image_of(zygote)


def status(pid: int) -> dict[str, str]:
    """Return the lines of a process's status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def environment(pid: int) -> dict[str, str]:
    """Return the environment that /proc shows, less what the freezer puts there."""
    entries = Path(f"/proc/{pid}/environ").read_text().rstrip("\0").split("\0")
    pairs = dict(entry.split("=", 1) for entry in entries)
    return {name: value for name, value in pairs.items() if not FREEZERS.fullmatch(name)}


def everything(pid: int, container: str) -> dict[str, object]:
    """Return all that /proc shows of a daemon and that does not have to differ between two of them."""
    facts = dict(identity.read(pid).facts)
    lines = status(pid)
    facts |= {name: lines[name] for name in STATUS if name in lines}
    for name in ("SigIgn", "SigCgt"):
        facts[name] = int(lines[name], 16) & ~LIBC_SIGNALS
    facts["NSpid"] = len(lines["NSpid"].split())
    process = read_process(pid)

    assert process is not None
    facts["arguments"] = [word.replace(container, "ID") for word in process.arguments]
    facts["name"] = process.name
    facts["parent"] = process.parent
    facts["group"] = os.getpgid(pid) == pid
    facts["session"] = os.getsid(pid)
    facts["folder"] = os.readlink(f"/proc/{pid}/cwd")
    facts["descriptors"] = sorted(
        re.sub(r"\[\d+\]", "", target).replace(container, "ID") for target in descriptors(pid)
    )
    facts["environment"] = environment(pid)
    facts["threads"] = len(os.listdir(f"/proc/{pid}/task"))
    for name in ("autogroup", "timerslack_ns", "setgroups", "uid_map"):
        with contextlib.suppress(OSError):
            facts[name] = Path(f"/proc/{pid}/{name}").read_text()
    return facts


# What it leaves.


def test_daemon_is_what_an_exec_would_have_left(hand: Hand, zygote: int) -> None:
    """All that /proc tells of it is the same as of a daemon from the plain path, down to signals and descriptors."""
    found = []
    for container, switch in (("x1", "on"), ("x2", "off")):
        done = hand.start(
            container, environment={SWITCH_VARIABLE: switch, "MARK": "x=y", "TZ": "Asia/Tokyo"}, umask=0o027
        )

        assert (0, b"") == (done.returncode, done.stderr)
        pid = hand.client(container).connect().shim_pid
        wait_until(lambda pid=pid: os.readlink(f"/proc/{pid}/cwd") == "/", "it serves")  # type: ignore[misc]
        facts = everything(pid, container)
        shown = facts["environment"]

        assert isinstance(shown, dict)
        assert switch == shown.pop(SWITCH_VARIABLE)
        assert ("x=y", "Asia/Tokyo") == (shown["MARK"], shown["TZ"])
        found.append(facts)

    assert served_by(hand, "x1", zygote)
    assert not served_by(hand, "x2", zygote)
    assert found[0].keys() == found[1].keys()
    assert {} == {name: (value, found[1][name]) for name, value in found[0].items() if value != found[1][name]}


def test_daemon_shows_arguments_longer_than_its_zygotes(hand: Hand, zygote: int) -> None:
    """There is room for any, whatever the zygote's founder was called with."""
    container = "c" * 70
    hand.start(container)
    pid = hand.client(container).connect().shim_pid
    process = read_process(pid)

    assert process is not None
    assert ("-namespace", hand.namespace, "-id", container, "-address", hand.address) == process.arguments[1:]
    assert served_by(hand, container, zygote)


def test_actions_answer_alike_on_both_paths(hand: Hand, zygote: int) -> None:
    """-v and delete print the same bytes, and leave their zygote as it was."""
    versions = {hand.run("-v").stdout}
    deleted = {hand.delete("c1").exit_status}
    wait_until(lambda: len(family(Path(os.environ[FOLDER_VARIABLE]))) == 2, "one zygote and one spare")
    os.environ[SWITCH_VARIABLE] = "off"

    assert {hand.run("-v").stdout} == versions
    assert {hand.delete("c2").exit_status} == deleted


def test_failure_is_told_alike_on_both_paths(hand: Hand, zygote: int) -> None:
    """A start that fails ends with the same code and the same line on stderr."""
    (hand.bundle("c1") / "config.json").write_text("{")
    results = []
    for switch in ("on", "off"):
        done = hand.start("c1", environment={SWITCH_VARIABLE: switch})
        results.append((done.returncode, done.stdout, done.stderr))

    assert 1 == results[0][0]
    assert results[1] == results[0]


def test_containers_of_one_containerd_come_from_its_zygote(containerd: Containerd, flavour: Flavour, name: str) -> None:
    """On the fast path all daemons but the first are forks of one zygote; on the others there is none."""
    folder = Path(os.environ[FOLDER_VARIABLE])
    containerd.run(f"{name}-1", "sleep", "1000", detach=True, options=["--null-io"])
    zygotes = [only_zygote(folder)] if flavour.kind == "zygote" else []
    containerd.run(f"{name}-2", "sleep", "1000", detach=True, options=["--null-io"])
    (daemon,) = [shim for shim in containerd.shims() if f"{name}-2" in shim.arguments]

    assert [image_of(pid) == image_of(daemon.pid) for pid in zygotes] == [True] * len(zygotes)
    assert len(zygotes) == len({zygote_pid(path) for path in folder.glob("*")} if folder.exists() else ())
    containerd.ctr("tasks", "rm", "--force", f"{name}-1", f"{name}-2", check=False)
    containerd.ctr("containers", "rm", f"{name}-1", f"{name}-2")


# Whom it refuses.

# Each runs the shim as its own program, so that its parent stays the founder.
OTHERS: Final = {
    "nice": ["nice", "-n", "5"],
    "policy": ["chrt", "--batch", "0"],
    "limits": ["prlimit", "--nofile=1000:1000"],
    "oom_score_adj": ["choom", "-n", "100", "--"],
    "affinity": ["taskset", "1"],
    "no_new_privs": ["setpriv", "--no-new-privs"],
    "capabilities": ["setpriv", "--bounding-set", "-sys_time"],
    "groups": ["setpriv", "--groups", "1,2"],
    "personality": ["setarch", "--addr-no-randomize"],
    "net": ["unshare", "--net"],
    "mnt": ["unshare", "--mount"],
    "uts": ["unshare", "--uts"],
    "ignored signal": ["env", "--ignore-signal=HUP"],
    "blocked signal": ["env", "--block-signal=USR2"],
    "coredump_filter": ["sh", "-c", 'echo 0x3f >/proc/self/coredump_filter; exec "$@"', "sh"],
}


@pytest.mark.parametrize("what", OTHERS)
def test_caller_that_differs_is_refused(hand: Hand, zygote: int, what: str) -> None:
    """Whoever would give its child something that the zygote has not gets a process of its own, which has it."""
    wrapper = OTHERS[what]
    if what == "affinity" and len(os.sched_getaffinity(0)) < 2:
        wrapper = OTHERS["nice"]  # with one processor there is no other mask
    done = hand.start("c1", wrapper=wrapper)
    pid = hand.client("c1").connect().shim_pid

    assert (0, b"") == (done.returncode, done.stderr)
    assert not served_by(hand, "c1", zygote)
    assert [] != identity.differences(identity.read("self").facts, identity.read(pid).facts)
    # Another namespace may have a zygote of its own by now.
    assert zygote in map(zygote_pid, Path(os.environ[FOLDER_VARIABLE]).glob("*"))


def test_caller_in_another_cgroup_is_refused(hand: Hand, zygote: int) -> None:
    """Its daemon belongs into the cgroup of the caller."""
    roots = [path for path in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup") if Path(path, "cgroup.procs").exists()]
    own = Path(roots[0]) / f"zygote-{hand.namespace}"
    own.mkdir()
    try:
        hand.start("c1", wrapper=["sh", "-c", f'echo $$ >{own}/cgroup.procs; exec "$@"', "sh"])
        client = hand.client("c1")
        pid = client.connect().shim_pid

        assert not served_by(hand, "c1", zygote)
        assert own.name in Path(f"/proc/{pid}/cgroup").read_text()
        client.shutdown()
        wait_gone(pid)
    finally:
        wait_until(lambda: not (own / "cgroup.procs").read_text(), "its cgroup is empty")
        own.rmdir()


def test_caller_of_another_parent_is_refused(hand: Hand, zygote: int) -> None:
    """What /proc does not show is inherited too; who has another parent may have inherited another thing."""
    done = hand.start("c1", wrapper=["sh", "-c", '"$@"; exit $?', "sh"])

    assert (0, b"") == (done.returncode, done.stderr)
    assert not served_by(hand, "c1", zygote)


def test_caller_in_the_same_state_is_served(hand: Hand, zygote: int) -> None:
    """The control of the tests above: a wrapper that changes nothing."""
    hand.start("c1", wrapper=["env"])

    assert served_by(hand, "c1", zygote)


# When it ends.


def gone(folder: Path) -> bool:
    """Say whether nothing of a zygote is left: no process, no socket."""
    return not family(folder) and not list(folder.glob("*"))


def test_zygote_ends_when_it_is_idle(binary: Path, zygotes: Path) -> None:
    """After CONTAINERD_SHIM_ZYGOTE_IDLE_S seconds without a request it goes with its spare and its socket."""
    os.environ[IDLE_VARIABLE] = "0.5"
    warm(binary, zygotes)

    wait_until(lambda: gone(zygotes), "nothing of it is left")


def test_request_keeps_it_from_being_idle(hand: Hand, zygotes: Path) -> None:
    """Time counts from the last request."""
    os.environ[IDLE_VARIABLE] = "2"
    zygote = warm(hand.program, zygotes)
    began = time.monotonic()
    while time.monotonic() - began < 3:
        hand.run("-v")

    assert zygote == only_zygote(zygotes)
    wait_until(lambda: gone(zygotes), "nothing of it is left")


def test_zygote_ends_with_its_founder(binary: Path, zygotes: Path) -> None:
    """containerd is gone: nobody can ask it any more."""
    hand = Hand(binary)
    bundle = hand.bundle("c1")
    program = "import subprocess, sys, time; subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL); time.sleep(1000)"
    command = [sys.executable, "-c", program, str(binary), *hand.arguments("c1", "start")]
    with subprocess.Popen(command, cwd=bundle, stdout=subprocess.DEVNULL) as founder:
        try:
            only_zygote(zygotes)
        finally:
            founder.kill()
    wait_until(lambda: gone(zygotes), "nothing of it is left")

    assert hand.client("c1").connect().shim_pid > 0
    assert [] == hand.close()


@pytest.mark.parametrize("how", ["unlinked", "replaced", "touched", "moved"])
def test_zygote_ends_when_its_binary_is_another(hand: Hand, zygotes: Path, tmp_path: Path, how: str) -> None:
    """An upgrade: new callers would not find it, and it is not kept."""
    own = tmp_path / SHIM
    shutil.copy2(hand.program, own)
    hand.program = own
    warm(own, zygotes)
    if how == "unlinked":
        own.unlink()
    elif how == "replaced":
        shutil.copy2(own, tmp_path / "new")
        (tmp_path / "new").replace(own)
    elif how == "touched":
        os.utime(own)
    else:
        own.rename(tmp_path / "old")

    wait_until(lambda: gone(zygotes), "nothing of it is left")


@pytest.mark.parametrize("what", ["folder", "socket"])
def test_zygote_ends_when_it_cannot_be_found(binary: Path, zygotes: Path, what: str) -> None:
    """Its folder or its socket has been removed."""
    warm(binary, zygotes)
    for path in zygotes.glob("*"):
        path.unlink()
    if what == "folder":
        zygotes.rmdir()
    wait_until(lambda: not family(zygotes), "it has ended")
    zygotes.mkdir(0o700, exist_ok=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGSEGV])
def test_zygote_that_is_killed_leaves_nothing(hand: Hand, zygote: int, zygotes: Path, number: signal.Signals) -> None:
    """Its spare sees to that; the next start is a plain one, and leaves another."""
    os.kill(zygote, number)
    wait_until(lambda: gone(zygotes), "nothing of it is left")
    done = hand.start("c1")

    assert (0, b"") == (done.returncode, done.stderr)
    assert zygote != only_zygote(zygotes)


def test_spare_that_is_killed_is_replaced(hand: Hand, zygote: int, zygotes: Path) -> None:
    """Nobody notices."""
    (spare,) = [each.pid for each in family(zygotes) if each.pid != zygote]
    os.kill(spare, signal.SIGKILL)
    hand.start("c1")

    assert served_by(hand, "c1", zygote)


def test_daemon_outlives_its_zygote(hand: Hand, zygote: int, zygotes: Path) -> None:
    """It is nobody's child."""
    client = hand.serve("c1")
    pid = client.connect().shim_pid
    os.kill(zygote, signal.SIGKILL)
    wait_until(lambda: gone(zygotes), "nothing of the zygote is left")

    assert pid == client.connect().shim_pid


# That it is never needed.


def test_stopped_zygote_is_done_without(hand: Hand, zygote: int, zygotes: Path) -> None:
    """Callers wait a second, then go on by themselves; when it goes on it does nothing for them."""
    family_pids = [each.pid for each in family(zygotes)]
    for pid in family_pids:
        os.kill(pid, signal.SIGSTOP)
    done = hand.start("c1")
    for pid in family_pids:
        os.kill(pid, signal.SIGCONT)

    assert (0, b"") == (done.returncode, done.stderr)
    assert not served_by(hand, "c1", zygote)
    hand.run("-v")
    wait_until(lambda: len(hand.processes()) == 1, "there is one daemon")


@pytest.mark.parametrize("place", ["file", "others", "open", "link", "none"])
def test_place_that_is_not_safe_gets_no_zygote(hand: Hand, zygotes: Path, tmp_path: Path, place: str) -> None:
    """Starts succeed, and nothing listens there."""
    path = zygotes / "z"
    if place == "file":
        path.touch()
    elif place == "link":
        tmp_path.chmod(0o700)
        path.symlink_to(tmp_path)
    elif place == "none":
        path = zygotes / "missing" / "z"
    else:
        path.mkdir(0o700)
        if place == "others":
            os.chown(path, 65534, 65534)
        else:
            path.chmod(0o777)
    for container in ("c1", "c2"):
        done = hand.start(container, environment={FOLDER_VARIABLE: str(path)})

        assert (0, b"") == (done.returncode, done.stderr)
        assert hand.client(container).connect().shim_pid > 0
    wait_until(lambda: not family(path), "whoever tried has ended")


@pytest.mark.parametrize("what", ["file", "folder", "stale socket"])
def test_something_in_the_place_of_its_socket(hand: Hand, zygote: int, zygotes: Path, what: str) -> None:
    """Starts succeed; only a socket of a dead zygote gives way to the next."""
    (path,) = zygotes.glob("*")
    os.kill(zygote, signal.SIGKILL)
    wait_until(lambda: gone(zygotes), "nothing of it is left")
    if what == "file":
        path.touch()
    elif what == "folder":
        path.mkdir()
    else:
        import socket

        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
    done = hand.start("c1")

    assert (0, b"") == (done.returncode, done.stderr)
    if what == "file":
        # An empty file is no one's socket; it is left to whoever put it there, or taken over.
        wait_until(lambda: not family(zygotes) or bool(zygote_pid(path)), "it is settled")
    elif what == "folder":
        wait_until(lambda: not family(zygotes), "whoever tried has ended")
        path.rmdir()
    else:
        only_zygote(zygotes)


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_thirty_starts_at_once_leave_one_zygote(hand: Hand, zygotes: Path, state: str) -> None:
    """Each has its own daemon, and whoever wins, there is one zygote in the end."""
    if state == "warm":
        warm(hand.program, zygotes)
    names = [f"c{number}" for number in range(30)]
    for name in names:
        hand.bundle(name)
    done = [finish(process) for process in [hand.popen_start(name, stdin=subprocess.DEVNULL) for name in names]]

    assert {(0, b"")} == {(each.returncode, each.stderr) for each in done}
    pids = {hand.client(name).connect().shim_pid for name in names}
    assert 30 == len(pids)
    only_zygote(zygotes)
    wait_until(lambda: len(family(zygotes)) == 2, "one zygote and one spare")
    wait_until(lambda: {each.pid for each in hand.processes()} == pids, "only the daemons are left")
