"""pyrunc as containerd meets it: stdio, execs, signals and waits; as in test_whole_life.py."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from shim.api import task_v2_pb2
from shim.ttrpc._envelope import encode_request
from shim.ttrpc._frame import REQUEST, encode_frame
from tests.engine.served import Served
from tests.engine.world import SHARED_PIDS
from tests.fakes import PATIENCE_S, wait_until

SLEEP = "exec sleep 60"
WHOLE_LIFE = ["create", "start", "exit", "delete"]


@contextlib.contextmanager
def fifo(path: Path) -> Iterator[int]:
    """Make a fifo and open it as a client does that reads it."""
    os.mkfifo(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(fd, True)
    yield fd
    os.close(fd)


def read_all(fd: int) -> bytes:
    """Read to the end."""
    received = b""
    while data := os.read(fd, 65536):
        received += data
    return received


def test_stdio_comes_through(served: Served) -> None:
    """Input to its end after CloseIO, both outputs, all of it before Delete is done."""
    bundle = served.bundle("stdio")
    with fifo(bundle / "out") as out, fifo(bundle / "err") as err:
        os.mkfifo(bundle / "in")
        paths = {name: str(bundle / short) for name, short in (("stdin", "in"), ("stdout", "out"), ("stderr", "err"))}
        served.run("stdio", "cat; echo done; echo oops >&2; exit 7", **paths)
        client = os.open(bundle / "in", os.O_WRONLY)
        served.call("CloseIO", id="stdio", stdin=True)
        os.write(client, b"hello\n")
        os.close(client)
        answer = served.call("Wait", id="stdio")
        state = served.call("State", id="stdio")
        served.call("Delete", id="stdio")
        texts = read_all(out), read_all(err)

    assert (b"hello\ndone\n", b"oops\n") == texts
    assert 7 == answer.exit_status
    assert paths == {name: getattr(state, name) for name in paths}


def test_much_output_comes_through_a_slow_reader(served: Served) -> None:
    """The container waits for it; Delete does for the rest."""
    bundle = served.bundle("much")
    size = 3_000_000
    with fifo(bundle / "out") as out:
        served.run("much", f"head -c {size} /dev/zero", stdout=str(bundle / "out"))
        waiting, answers = served.later("Wait", id="much")
        received = 0
        for _ in range(10):
            received += len(os.read(out, 4096))
            time.sleep(0.002)
        while received < size:
            received += len(os.read(out, 65536))
        waiting.join(PATIENCE_S)
        served.call("Delete", id="much")
        rest = read_all(out)

    assert [0] == [answer.exit_status for answer in answers]
    assert (size, b"") == (received, rest)


def test_an_exec_lives_in_its_container(served: Served) -> None:
    """With its own stdio, state, exit and events; deleted without one."""
    bundle = served.bundle("execs")
    served.run("execs", SLEEP)
    with fifo(bundle / "out") as out:
        pid = served.exec("execs", "e1", "echo from exec; exit 9", stdout=str(bundle / "out"))
        answer = served.call("Wait", id="execs", exec_id="e1")
        state = served.call("State", id="execs", exec_id="e1")
        deleted = served.call("Delete", id="execs", exec_id="e1")
        text = read_all(out)
    gone = served.fails("State", id="execs", exec_id="e1")
    served.call("Kill", id="execs", signal=9)
    served.call("Wait", id="execs")
    served.call("Delete", id="execs")

    assert b"from exec\n" == text
    assert [9, 9, 9] == [answer.exit_status, state.exit_status, deleted.exit_status]
    assert [pid, pid, "e1"] == [state.pid, deleted.pid, state.id]
    assert (5, "process does not exist e1: not found") == gone
    assert ["create", "start", "exec-added e1", "exec-started e1", "exit e1", "exit", "delete"] == served.events(
        "execs", 7
    )


def test_an_exec_is_killed_by_its_id(served: Served) -> None:
    """Its container lives on; a second kill finds nobody."""
    pid = served.run("victim", SLEEP)
    served.exec("victim", "e1", SLEEP)
    served.call("Kill", id="victim", exec_id="e1", signal=15)
    answer = served.call("Wait", id="victim", exec_id="e1")

    assert 143 == answer.exit_status
    assert (5, "process already finished: not found") == served.fails("Kill", id="victim", exec_id="e1", signal=9)
    assert served.is_alive(pid)
    served.call("Kill", id="victim", signal=9)
    served.call("Wait", id="victim")
    served.call("Delete", id="victim")


def test_an_inits_exit_is_told_after_its_execs(served: Served) -> None:
    """Although it died first; no other exec starts meanwhile."""
    pid = served.run("order", SLEEP)
    first = served.exec("order", "e1", SLEEP)
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not served.is_alive(pid))
    names = iter(f"late{number}" for number in range(1000))

    def is_refused() -> bool:
        name = next(names)
        served.add_exec("order", name, SLEEP)
        return served.fails("Start", id="order", exec_id=name)[0] == 9  # before that it is the runtime that refuses

    assert wait_until(is_refused)
    os.kill(first, signal.SIGKILL)
    answer = served.call("Wait", id="order")
    served.call("Delete", id="order")

    assert 137 == answer.exit_status
    assert ["exit e1", "exit", "delete"] == [topic for topic in _until_delete(served, "order") if "added" not in topic][
        -3:
    ]


def _until_delete(served: Served, container: str) -> list[str]:
    """Wait for the last event of a container and return them all."""
    assert wait_until(lambda: "/tasks/delete" in served.containerd.topics(container))
    return served.events(container, 0)


def test_shared_pids_are_killed_with_their_init(served: Served) -> None:
    """The execs of such a container would live on; their exits come first."""
    pid = served.run("shared", SLEEP, spec=SHARED_PIDS)
    other = served.exec("shared", "e1", SLEEP)
    os.kill(pid, signal.SIGKILL)
    answers = [served.call("Wait", id="shared", exec_id=name) for name in ("e1", "")]
    served.call("Delete", id="shared")

    assert [137, 137] == [answer.exit_status for answer in answers]
    assert ["exit e1", "exit", "delete"] == served.events("shared", 7)[-3:]
    assert not served.is_alive(other)


def test_a_failed_exec_releases_who_waits(served: Served) -> None:
    """And is told by no exit."""
    served.run("badexec", SLEEP)
    served.add_exec("badexec", "e1", SLEEP)
    waiting, answers = served.later("Wait", id="badexec", exec_id="e1")
    served.runc.fails("exec", "no such file or directory")
    failed = served.fails("Start", id="badexec", exec_id="e1")
    served.runc.behave()
    waiting.join(PATIENCE_S)
    served.call("Delete", id="badexec", exec_id="e1")
    served.call("Kill", id="badexec", signal=9)
    served.call("Wait", id="badexec")
    served.call("Delete", id="badexec")

    assert (2, "OCI runtime exec failed: no such file or directory") == failed
    assert [0] == [answer.exit_status for answer in answers]
    assert ["create", "start", "exec-added e1", "exit", "delete"] == served.events("badexec", 5)


def test_two_hundred_waits_delay_nobody(served: Served) -> None:
    """Each is answered once; those whose client goes are forgotten."""
    served.run("waits", SLEEP)
    request = task_v2_pb2.WaitRequest(id="waits").SerializeToString()
    body = encode_request("containerd.task.v2.Task", "Wait", request)
    with socket.socket(socket.AF_UNIX) as peer, socket.socket(socket.AF_UNIX) as leaver:
        for sock in (peer, leaver):
            sock.connect(str(served.path))
            sock.sendall(b"".join(encode_frame(number, REQUEST, 0, body) for number in range(1, 401, 2)))
        leaver.close()
        start = time.monotonic()
        for _ in range(20):
            served.call("State", id="waits")
        took = time.monotonic() - start
        served.call("Kill", id="waits", signal=9)
        received = 0
        peer.settimeout(PATIENCE_S)
        answer = len(served.call("Wait", id="waits").SerializeToString()) + 10 + 2
        while received < 200 * answer:
            received += len(peer.recv(65536))
    served.call("Delete", id="waits")

    assert took < 5
    assert 200 * answer == received


def test_a_wait_has_a_deadline(served: Served) -> None:
    """Which ends the wait alone."""
    served.run("deadline", SLEEP)
    code = served.fails("Wait", id="deadline", timeout_s=0.05)[0]
    served.call("Kill", id="deadline", signal=9)
    answer = served.call("Wait", id="deadline")
    served.call("Delete", id="deadline")

    assert (4, 137) == (code, answer.exit_status)


def test_a_logger_does_not_outlive_its_daemon(own: Served) -> None:
    """Even one that ignores what it is told: Delete waits as long as it may, and the daemon's end is the logger's."""
    bundle = own.bundle("logged")
    logger = bundle / "logger"
    logger.write_text(f"#!/bin/sh\ntrap '' TERM\necho $$ >{bundle}/logger.pid\nexec 5>&-\nexec sleep 1000 3<&- 4<&-\n")
    logger.chmod(0o755)
    own.run("logged", "exit 3", stdout=f"binary://{logger}")
    own.call("Wait", id="logged")
    pid = int((bundle / "logger.pid").read_text())
    own.call("Delete", id="logged", timeout_s=2.0)
    before = os.path.exists(f"/proc/{pid}")
    own.call("Shutdown")

    assert before
    assert wait_until(lambda: own.process.poll() is not None)
    assert wait_until(lambda: not os.path.exists(f"/proc/{pid}") or b"Z" in Path(f"/proc/{pid}/stat").read_bytes())
