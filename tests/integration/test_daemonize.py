"""`start` by hand: what it answers, what daemon it leaves, how that meets signals, other users and other starts.

Each test runs in both ways of becoming a daemon (fork and re-exec), for each kind of shim; no containerd is needed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
import warnings
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.api import bootstrap_pb2, runc_options_pb2
from shim.testing import VERSIONS, FakeContainerd
from shim.testing.leftovers import SOCKET_FOLDER, processes, read_process, socket_name
from tests.integration import byhand
from tests.integration.byhand import OPTIONS_TYPE, Hand, finish, wait_gone
from tests.integration.client import wait_until
from tests.integration.conftest import SHIM

pytestmark = pytest.mark.every_form

LEGACY_OPTIONS = AnyMessage(
    type_url=OPTIONS_TYPE, value=runc_options_pb2.Options(no_new_keyring=True).SerializeToString()
).SerializeToString()
NOBODY = 65534


program, hand = byhand.program, byhand.hand


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test for each kind of shim that is asked for and each way to become a daemon."""
    byhand.pytest_generate_tests(metafunc)
    metafunc.parametrize("spawn", ["fork", "reexec"])


def params(hand: Hand, container: str, **fields: str) -> bytes:
    """Return the BootstrapParams that containerd 2.3 would send."""
    message = bootstrap_pb2.BootstrapParams(
        instance_id=container,
        namespace=hand.namespace,
        containerd_version="2.3.4",
        containerd_ttrpc_address=f"{hand.address}.ttrpc",
        containerd_grpc_address=hand.address,
        containerd_binary="/usr/bin/containerd",
    )
    message.MergeFrom(bootstrap_pb2.BootstrapParams(**fields))  # type: ignore[arg-type]
    return message.SerializeToString()


def daemon_pid(hand: Hand, container: str = "c1") -> int:
    """Return the pid of the daemon that serves a group."""
    return hand.client(container).connect().shim_pid


def descriptors(pid: int) -> dict[int, str]:
    """Return what a process has open."""
    return {int(entry.name): os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}


def socket_inode(path: Path) -> str:
    """Return the name that /proc gives to descriptors of the socket that is bound to a path."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    (inode,) = {words[6] for words in lines if words[7:] == [str(path)] and words[5] == "01" and words[3] == "00010000"}
    return f"socket:[{inode}]"


def members(group: int) -> list[int]:
    """Return the pids of a process group."""
    found = []
    for each in processes():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            found += [each.pid] if os.getpgid(each.pid) == group else []
    return found


# What `start` answers.


def test_answer_is_the_plain_address_without_input(hand: Hand) -> None:
    """A containerd before 2.3 without options gets the bare address of the socket that the contract computes."""
    done = hand.start("c1")

    assert (0, f"unix://{hand.socket_path('c1')}", "") == (done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize("stdin", [b"", LEGACY_OPTIONS], ids=["empty", "options"])
def test_answer_is_never_json(hand: Hand, stdin: bytes) -> None:
    """MAX_SHIM_VERSION, which 1.7 to 2.2 set alike, does not tempt the shim to a form that some of them misread."""
    done = hand.start("c1", stdin, environment={"MAX_SHIM_VERSION": "2"})

    assert (0, f"unix://{hand.socket_path('c1')}") == (done.returncode, done.stdout.decode())


def test_address_file_is_written_for_legacy_callers(hand: Hand) -> None:
    """containerd 1.6 and 1.7 find the shim by a file of mode 0644, whatever the umask; no temporary file stays."""
    done = hand.start("c1", umask=0o077)
    bundle = hand.bundle("c1")

    assert (bundle / "address").read_bytes() == done.stdout
    assert stat.S_IMODE((bundle / "address").stat().st_mode) == 0o644
    assert {path.name for path in bundle.iterdir()} == {"address", "config.json", "log", "rootfs", "work"}


def test_bootstrap_params_get_a_bootstrap_result(hand: Hand) -> None:
    """containerd 2.3 and later hear of version 3 over ttrpc, and no `address` file is written."""
    done = hand.start("c1", params(hand, "c1"))
    answer = bootstrap_pb2.BootstrapResult.FromString(done.stdout)

    assert (3, f"unix://{hand.socket_path('c1')}", "ttrpc") == (answer.version, answer.address, answer.protocol)
    assert b"" == done.stderr
    assert not (hand.bundle("c1") / "address").exists()
    assert hand.client("c1", service="containerd.task.v3.Task").connect().shim_pid == daemon_pid(hand)


@pytest.mark.parametrize("style", VERSIONS)
def test_every_containerd_gets_its_answer_to_the_byte(program: Path, spawn: str, style: str) -> None:
    """BootstrapResult from 2.3 on, the bare address before; each is understood as version 3 and 2, and serves."""
    with FakeContainerd(program, style=style, debug=True, environment={"CONTAINERD_SHIM_SPAWN": spawn}) as containerd:
        folder = containerd.socket_dir if style in ("2.3", "2.4") else str(SOCKET_FOLDER)
        name = socket_name(containerd.grpc_address, containerd.namespace, "c1")
        address = f"unix://{folder}/{name}".encode()
        containerd.bundle("c1").open_log()  # before there is a daemon, which may be there sooner than the second start
        answer = containerd.run_start("c1")
        shim = containerd.start("c1")
        pid = shim.probe()

        assert (b"\x08\x03\x12%c%b\x1a\x05ttrpc" % (len(address), address) if shim.is_v3 else address) == answer
        assert ((style in ("2.3", "2.4")), address.decode()) == (shim.is_v3, shim.endpoint.address)
        assert [pid] == [process.pid for process in containerd.processes()]
        containerd.bundle("c1").wait_for_log("serving api on socket")
        shim.call("Shutdown")
        wait_until(lambda: not containerd.processes(), "the daemon has gone")
        assert not Path(shim.socket_path).exists()
        assert 137 == containerd.delete("c1").exit_status
        assert [] == containerd.warnings


def test_socket_dir_is_honoured(hand: Hand) -> None:
    """The socket is made where containerd 2.3 says, in a folder of mode 0700 that need not exist, and nowhere else."""
    folder = hand.folder / "sockets"
    done = hand.start("c1", params(hand, "c1", socket_dir=str(folder)))
    path = folder / hand.socket_path("c1").name

    assert f"unix://{path}" == bootstrap_pb2.BootstrapResult.FromString(done.stdout).address
    assert hand.client("c1", f"unix://{path}").connect().shim_pid > 0
    assert (0o700, 0o600) == (stat.S_IMODE(folder.stat().st_mode), stat.S_IMODE(path.stat().st_mode))
    assert not hand.socket_path("c1").exists()


def test_params_of_another_container_are_legacy_input(hand: Hand) -> None:
    """Input counts as BootstrapParams only when it repeats the id of the flags: the encodings overlap."""
    done = hand.start("c1", params(hand, "c2"))

    assert f"unix://{hand.socket_path('c1')}" == done.stdout.decode()


def test_start_reads_its_input_to_the_end(hand: Hand) -> None:
    """Nothing is started while the caller may still be writing."""
    process = hand.popen_start("c1")
    time.sleep(1.0)

    assert process.poll() is None
    assert not hand.socket_path("c1").exists()
    assert f"unix://{hand.socket_path('c1')}" == finish(process).stdout.decode()


# The daemon that it leaves.


def test_daemon_holds_nothing_of_start(hand: Hand) -> None:
    """stdin and stdout are /dev/null, stderr is the log, where crashes belong; the rest is its own: sockets, loop."""
    done = hand.start("c1", debug=True)
    pid = daemon_pid(hand)
    hand.wait_log("c1", "serving api")
    opened = descriptors(pid)
    log = str(hand.bundle("c1") / "log")
    kinds = {re.sub(r":\[\d+\]$", "", opened[fd]) for fd in opened if fd > 2}

    assert 0 == done.returncode
    assert ["/dev/null", "/dev/null", log] == [opened[fd] for fd in range(3)]
    assert {"socket", "anon_inode:[eventpoll]", "pipe", log} == kinds
    # The loop's own pipe, both ends: nobody else has it.
    pipes = [target for target in opened.values() if target.startswith("pipe:")]
    assert 2 == len(pipes)
    assert 1 == len(set(pipes))


def test_daemon_listens_on_the_socket_that_start_bound(hand: Hand, spawn: str) -> None:
    """Re-executed it has the listener on descriptor 3, as Go's; forked it keeps start's."""
    hand.start("c1")
    opened = descriptors(daemon_pid(hand))
    listeners = [fd for fd, target in opened.items() if target == socket_inode(hand.socket_path("c1"))]

    assert 1 == len(listeners)
    assert spawn == "fork" or listeners == [3]
    assert stat.S_IMODE(hand.socket_path("c1").stat().st_mode) == 0o600


def test_daemon_is_an_orphan_in_a_group_of_its_own(hand: Hand) -> None:
    """Nobody shares its process group, its session is still the caller's, and `start` is not its parent any more."""
    process = hand.popen_start("c1")
    finish(process)
    pid = daemon_pid(hand)
    daemon = read_process(pid)

    assert daemon is not None
    # Its own pid when re-executed unfrozen or forked, else that of the frozen binary's loader, which is gone.
    wait_until(lambda: members(os.getpgid(pid)) == [pid], "it is alone in its group")
    assert os.getsid(0) == os.getsid(pid)
    assert process.pid != daemon.parent
    wait_until(lambda: [each.pid for each in hand.processes()] == [pid], "only the daemon is left")


def test_daemon_shows_its_flags(hand: Hand) -> None:
    """In `ps` it is the shim with namespace, id and address, and without an action, as Go's."""
    hand.start("c1", debug=True)
    pid = daemon_pid(hand)
    wanted = (SHIM, "-namespace", hand.namespace, "-id", "c1", "-address", hand.address, "-debug")

    def shown() -> tuple[str, ...]:
        process = read_process(pid)
        words = process.arguments if process is not None else ()
        return tuple(Path(word).name if Path(word).name == SHIM else word for word in words)[-len(wanted) :]

    wait_until(lambda: shown() == wanted, f"{shown()} is {wanted}")


def test_daemon_is_a_likelier_oom_victim_than_its_caller(hand: Hand) -> None:
    """Its oom_score_adj is one above that of the process that ran `start`, which is containerd."""
    script = 'echo 321 > /proc/self/oom_score_adj; "$@"; exit $?'
    hand.start("c1", wrapper=["sh", "-c", script, "sh"])

    assert "322\n" == Path(f"/proc/{daemon_pid(hand)}/oom_score_adj").read_text()


def test_daemon_outlives_its_first_bundle(hand: Hand) -> None:
    """It does not work in the bundle, which is removed before others of its group."""
    hand.start("c1")
    pid = daemon_pid(hand)
    wait_until(lambda: os.readlink(f"/proc/{pid}/cwd") == "/", "the daemon leaves the bundle")
    shutil.rmtree(hand.bundle("c1"))

    assert pid == daemon_pid(hand)


def test_daemon_needs_no_unpacked_files(hand: Hand) -> None:
    """Once `start` has ended and the daemon serves, nothing is in TMPDIR, and it serves on."""
    client = hand.serve("c1")
    client.connect()
    wait_until(lambda: list(hand.tmp.iterdir()) == [], "TMPDIR is empty")

    assert client.connect().shim_pid > 0


def test_daemon_logs_into_the_fifo_of_its_bundle(hand: Hand) -> None:
    """Records are logrus text, as in Go's shim, and only -debug shows the talkative ones."""
    hand.serve("c1", debug=True)
    hand.serve("c2").connect()
    talkative, record = hand.wait_log("c1", "serving api on socket").splitlines()
    when = r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z"'

    assert re.fullmatch(
        rf'{when} level=info msg="serving api on socket" socket={hand.socket_path("c1")} pid={daemon_pid(hand)}'
        r" runtime=io\.containerd\.pyrunc\.v1",
        record,
    )
    assert "level=debug" in talkative
    assert "" == hand.log("c2")


# Signals.


def test_sigusr1_dumps_stacks_and_the_daemon_lives_on(hand: Hand) -> None:
    """The dump goes to the log between Go's marker lines."""
    client = hand.serve("c1")
    pid = client.connect().shim_pid
    os.kill(pid, signal.SIGUSR1)
    text = hand.wait_log("c1", "=== END goroutine stack dump ===\n")

    assert text.startswith("=== BEGIN goroutine stack dump ===\n")
    assert "most recent call first" in text
    assert pid == client.connect().shim_pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_signal_ends_the_daemon_in_good_order(hand: Hand, number: signal.Signals) -> None:
    """SIGTERM and SIGINT end it, connected clients or not, and its socket goes first."""
    client = hand.serve("c1")
    pid = client.connect().shim_pid
    os.kill(pid, number)
    wait_gone(pid)

    assert not hand.socket_path("c1").exists()
    assert [] == hand.leftovers()


# Other starts, other users, Shutdown.


def test_second_start_of_a_group_finds_the_first(hand: Hand) -> None:
    """It prints the same address, writes its own `address` file, starts nothing, and the probe is not logged."""
    hand.bundle("c1", group="pod")
    hand.bundle("c2", group="pod")
    first, second = hand.start("c1"), hand.start("c2")
    pid = daemon_pid(hand, "pod")
    wait_until(lambda: [each.pid for each in hand.processes()] == [pid], "only the daemon is left")

    assert (0, f"unix://{hand.socket_path('pod')}".encode(), b"") == (second.returncode, second.stdout, second.stderr)
    assert first.stdout == second.stdout == (hand.bundle("c2") / "address").read_bytes()
    assert ("", "") == (hand.log("c1"), hand.log("c2"))


def test_ten_starts_at_once_give_one_daemon(hand: Hand) -> None:
    """All of them print the address of the same daemon, and there is no other."""
    names = [f"c{number}" for number in range(10)]
    for name in names:
        hand.bundle(name, group="pod")
    # With nothing to read, so that none of them waits for its turn.
    done = [finish(process) for process in [hand.popen_start(name, stdin=subprocess.DEVNULL) for name in names]]
    pid = daemon_pid(hand, "pod")

    assert {(0, f"unix://{hand.socket_path('pod')}", "")} == {
        (each.returncode, each.stdout.decode(), each.stderr.decode()) for each in done
    }
    wait_until(lambda: [each.pid for each in hand.processes()] == [pid], "only one daemon is left")


@pytest.mark.parametrize("group", [NOBODY, 0], ids=["nobody", "root-group"])
@pytest.mark.parametrize("user", [NOBODY, 0], ids=["nobody", "root"])
def test_another_user_or_group_is_refused(hand: Hand, user: int, group: int) -> None:
    """Whoever is not of the daemon's own uid and gid is hung up on at once, even where file modes let it in."""
    hand.folder.chmod(0o755)
    folder = hand.folder / "sockets"
    done = hand.start("c1", params(hand, "c1", socket_dir=str(folder)))
    address = bootstrap_pb2.BootstrapResult.FromString(done.stdout).address
    client = hand.client("c1", address)
    folder.chmod(0o755)
    (folder / hand.socket_path("c1").name).chmod(0o666)

    assert ((user, group) == (0, 0)) == can_call(address.removeprefix("unix://"), user, group)
    assert client.connect().shim_pid > 0
    if (user, group) != (0, 0):
        assert f"uid={user} gid={group}" in hand.wait_log("c1", "refusing connection")


def can_call(path: str, user: int, group: int) -> bool:
    """Say whether a process of this user and group gets an answer to a request."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads: this child makes system calls only
        pid = os.fork()
    if pid == 0:
        code = 2
        try:
            os.setgroups([])
            os.setgid(group)
            os.setuid(user)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(20)
                connection.connect(path)
                connection.sendall(bytes([0, 0, 0, 0, 0, 0, 0, 1, 1, 0]))  # an empty request, which gets a status
                code = 0 if connection.recv(1) else 1
        except (BrokenPipeError, ConnectionResetError):
            code = 1
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)

    assert code in (0, 1)
    return code == 0


def test_shutdown_with_a_container_does_nothing(hand: Hand) -> None:
    """The daemon ends only at a Shutdown that finds no container, and then takes its socket along."""
    client = hand.serve("c1")
    client.create(hand.create_request("c1"))
    client.shutdown()
    client.start()
    client.shutdown()
    client.kill(signal.SIGKILL)

    assert 137 == client.wait().exit_status
    client.shutdown()
    assert 137 == client.delete().exit_status
    pid = client.connect().shim_pid
    client.shutdown()
    wait_gone(pid)
    assert [] == hand.leftovers()
