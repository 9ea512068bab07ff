"""Stdin, stdout and stderr without a terminal: through ctr's fifos, through fifos of the test's own, into files."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from shim.api.task_types_pb2 import RUNNING, STOPPED
from shim.testing.containerd import Containerd
from tests.integration.client import Fifo, Guests, TaskClient, descriptors, wait_until

Connect = Callable[[str], TaskClient]
Remove = Callable[[str], None]

MIB: Final = 1 << 20


def digest(content: bytes) -> str:
    """Return a hash; comparing megabytes would make failures unreadable."""
    return hashlib.sha256(content).hexdigest()


def noise(size: int) -> bytes:
    """Return bytes in which any loss, repetition or change of order shows."""
    return random.Random(size).randbytes(size)  # noqa: S311 - no secret


# Input.


def test_input_to_its_end(containerd: Containerd, name: str) -> None:
    """What ctr reads on its stdin reaches the container, and so does the end of it."""
    arguments = containerd.run_arguments(name, "cat")
    with containerd.popen(*arguments, stdin=subprocess.PIPE) as process:
        # A ctr whose input ends before the container has been created never says so, whichever shim it talks to.
        containerd.wait_status(name, "RUNNING", 30)
        stdout, _ = process.communicate(b"one\ntwo\n", 30)

    assert (0, b"one\ntwo\n") == (process.returncode, stdout)


def test_no_input(containerd: Containerd, name: str) -> None:
    """An end of input without any input is one in the container too."""
    with containerd.popen(*containerd.run_arguments(name, "cat"), stdin=subprocess.PIPE) as process:
        containerd.wait_status(name, "RUNNING", 30)
        stdout, _ = process.communicate(None, 30)

    assert (0, b"") == (process.returncode, stdout)


def test_input_of_exec(containerd: Containerd, running: str) -> None:
    """An exec reads ctr's stdin to its end."""
    result = containerd.exec(running, "sha256sum", input="text")

    assert f"{digest(b'text')}  -\n" == result.stdout


def test_large_input(containerd: Containerd, name: str, tmp_path: Path) -> None:
    """Sixteen megabytes go in and come out as they were."""
    content = noise(16 * MIB)
    source, sink = tmp_path / "in", tmp_path / "out"
    source.write_bytes(content)
    with source.open("rb") as stdin, sink.open("wb") as stdout:
        process = containerd.popen(*containerd.run_arguments(name, "cat"), stdin=stdin, stdout=stdout)
        with process:
            assert 0 == process.wait(100)

    assert digest(content) == digest(sink.read_bytes())


def test_close_io_ends_the_input(running: str, task: TaskClient, fifo: Callable[[str], Fifo], tmp_path: Path) -> None:
    """A client that goes away ends no input, another may go on; CloseIO does."""
    stdin, stdout = tmp_path / "stdin", fifo("stdout")
    os.mkfifo(stdin)
    task.exec("e", "cat", stdin=str(stdin), stdout=stdout.path)
    task.start("e")
    for text in (b"first client\n", b"second client\n"):
        with stdin.open("wb") as client:
            client.write(text)

        assert text == stdout.read(len(text))

    # Nothing may happen now, which can only be watched for a while.
    time.sleep(0.5)

    assert RUNNING == task.state("e").status

    task.close_stdin("e")
    task.close_stdin("e")

    assert b"" == stdout.read()
    assert 0 == task.wait("e").exit_status
    task.delete("e")


def test_close_io_waits_for_the_client(
    running: str, task: TaskClient, fifo: Callable[[str], Fifo], tmp_path: Path
) -> None:
    """After CloseIO what the client still writes arrives; its own end is the end."""
    stdin, stdout = tmp_path / "stdin", fifo("stdout")
    os.mkfifo(stdin)
    task.exec("e", "cat", stdin=str(stdin), stdout=stdout.path)
    task.start("e")
    with stdin.open("wb", buffering=0) as client:
        client.write(b"before")
        task.close_stdin("e")
        client.write(b" and after")

        assert b"before and after" == stdout.read(16)
        assert RUNNING == task.state("e").status

    assert b"" == stdout.read()
    assert 0 == task.wait("e").exit_status
    task.delete("e")


def test_close_io_before_start(running: str, task: TaskClient, fifo: Callable[[str], Fifo], tmp_path: Path) -> None:
    """A CloseIO that comes before Start is not lost."""
    stdin, stdout = tmp_path / "stdin", fifo("stdout")
    os.mkfifo(stdin)
    task.exec("e", "cat", stdin=str(stdin), stdout=stdout.path)
    task.close_stdin("e")
    task.start("e")

    assert b"" == stdout.read()
    assert 0 == task.wait("e").exit_status
    task.delete("e")


def test_close_io_of_init(guests: Guests, name: str, fifo: Callable[[str], Fifo], tmp_path: Path) -> None:
    """Init's input ends at CloseIO too, even if that came before Start."""
    stdin, stdout = tmp_path / "stdin", fifo("stdout")
    os.mkfifo(stdin)
    task = guests.create(name, "cat", stdin=str(stdin), stdout=stdout.path)
    with stdin.open("wb") as client:
        client.write(b"text")
    task.close_stdin()
    task.start()

    assert b"text" == stdout.read()
    assert 0 == task.wait().exit_status
    assert 0 == task.delete().exit_status


# Output.


def test_outputs_are_apart(containerd: Containerd, name: str) -> None:
    """Stdout and stderr arrive each on its own."""
    result = containerd.run(name, "sh", "-c", "echo out; echo err >&2; echo more")

    assert ("out\nmore\n", "err\n") == (result.stdout, result.stderr)


def test_large_output(containerd: Containerd, name: str, tmp_path: Path) -> None:
    """Sixty-four megabytes come out as they were."""
    content = noise(64 * MIB)
    (tmp_path / "data").write_bytes(content)
    mount = f"type=bind,src={tmp_path},dst=/mnt,options=rbind:ro"
    arguments = containerd.run_arguments(name, "cat", "/mnt/data", options=["--mount", mount])
    with (tmp_path / "out").open("wb") as stdout:
        process = containerd.popen(*arguments, stdout=stdout)
        with process:
            assert 0 == process.wait(100)

    assert digest(content) == digest((tmp_path / "out").read_bytes())


def test_large_output_on_both(containerd: Containerd, running: str, tmp_path: Path) -> None:
    """Eight megabytes on each output at the same time do not mix."""
    contents = [noise(8 * MIB), noise(8 * MIB + 1)]
    for number, content in enumerate(contents, start=1):
        (containerd.bundle(running) / "rootfs" / f"data{number}").write_bytes(content)
    command = ["tasks", "exec", "--exec-id", "e", running, "sh", "-c", "cat /data1 & cat /data2 >&2; wait"]
    with (tmp_path / "1").open("wb") as stdout, (tmp_path / "2").open("wb") as stderr:
        process = containerd.popen(*command, stdout=stdout, stderr=stderr)
        with process:
            assert 0 == process.wait(100)

    assert [digest(content) for content in contents] == [digest((tmp_path / n).read_bytes()) for n in ("1", "2")]


def test_slow_reader(containerd: Containerd, running: str, task: TaskClient, fifo: Callable[[str], Fifo]) -> None:
    """A reader that takes its time holds up the process, not the shim, and gets every byte."""
    content = noise(MIB)
    (containerd.bundle(running) / "rootfs" / "data").write_bytes(content)
    stdout = fifo("stdout")
    task.exec("e", "cat", "/data", stdout=stdout.path)
    task.start("e")
    time.sleep(0.5)

    assert RUNNING == task.state("e").status
    assert 0 == task.run("other", "true")

    received = []
    for _ in range(16):
        time.sleep(0.02)
        received.append(stdout.read(MIB // 16))

    assert b"" == stdout.read()
    assert digest(content) == digest(b"".join(received))
    assert 0 == task.wait("e").exit_status
    task.delete("e")


def test_reader_leaves_and_another_comes(
    containerd: Containerd,
    running: str,
    task: TaskClient,
    fifo: Callable[[str], Fifo],
    tmp_path: Path,
) -> None:
    """While nobody reads, output waits; the process neither ends nor notices. So a containerd may restart."""
    stdin, stdout = tmp_path / "stdin", fifo("stdout")
    os.mkfifo(stdin)
    command = "echo one && read line && echo two && echo three && touch /written && read line && echo four"
    task.exec("e", "sh", "-c", command, stdin=str(stdin), stdout=stdout.path)
    task.start("e")

    assert b"one\n" == stdout.read(4)

    stdout.close()
    with stdin.open("wb", buffering=0) as client:
        client.write(b"\n")
        wait_until((containerd.bundle(running) / "rootfs" / "written").exists, "both lines have been written")
        stdout.open()

        assert b"two\nthree\n" == stdout.read(10)

        client.write(b"\n")

    assert b"four\n" == stdout.read()
    assert 0 == task.wait("e").exit_status
    task.delete("e")


def test_detached_output_holds_up_nothing(containerd: Containerd, name: str, connect: Connect, remove: Remove) -> None:
    """A container whose ctr has gone, and that fills its pipes, can still be used, killed and deleted."""
    containerd.run(name, "sh", "-c", "yes; exit 3", detach=True)
    task = connect(name)
    time.sleep(0.5)

    assert RUNNING == task.state().status
    assert 0 == task.run("e", "true")

    started = time.monotonic()
    remove(name)

    assert 30 > time.monotonic() - started


def test_null_io(containerd: Containerd, name: str, connect: Connect, remove: Remove) -> None:
    """Without any stdio the process reads an end and may write: nothing fails."""
    command = "cat && echo a && echo b >&2 && exit 5; exit 6"
    containerd.run(name, "sh", "-c", command, detach=True, options=["--null-io"])
    task = connect(name)
    code = task.wait().exit_status
    state = task.state()

    assert 5 == code
    assert (STOPPED, "", "", "") == (state.status, state.stdin, state.stdout, state.stderr)
    remove(name)


def test_one_output_only(running: str, task: TaskClient, fifo: Callable[[str], Fifo]) -> None:
    """An output that was not asked for goes to /dev/null; the other one arrives."""
    stdout, stderr = fifo("stdout"), fifo("stderr")
    command = ("sh", "-c", "echo out && echo err >&2 && exit 7")
    task.exec("e1", *command, stdout=stdout.path)
    task.exec("e2", *command, stderr=stderr.path)
    for exec_id, output, text in (("e1", stdout, b"out\n"), ("e2", stderr, b"err\n")):
        task.start(exec_id)

        assert text == output.read()
        assert 7 == task.wait(exec_id).exit_status
        task.delete(exec_id)


def test_file_log(containerd: Containerd, name: str, tmp_path: Path, remove: Remove, connect: Connect) -> None:
    """A `file://` target takes both outputs, is made with its folder, and is appended to."""
    log = tmp_path / "new" / "log"
    for number in range(2):
        container = f"{name}-{number}"
        command = f"echo out {number}; echo err {number} >&2"
        containerd.run(container, "sh", "-c", command, detach=True, options=["--log-uri", f"file://{log}"])
        connect(container).wait()
        remove(container)

    assert ["err 0", "err 1", "out 0", "out 1"] == sorted(log.read_text().splitlines())
    assert 0o644 == log.stat().st_mode & 0o777


def test_file_log_keeps_the_order(running: str, task: TaskClient, tmp_path: Path) -> None:
    """All that a process writes before its end is in the file once it has been deleted."""
    log = tmp_path / "log"
    task.exec("e", "seq", "100000", stdout=f"file://{log}")
    task.start("e")
    task.wait("e")
    task.delete("e")

    assert "".join(f"{number}\n" for number in range(1, 100001)) == log.read_text()


def test_background_child_does_not_hang_delete(running: str, task: TaskClient, fifo: Callable[[str], Fifo]) -> None:
    """A child that keeps the output open delays Delete up to its deadline at most; then the reader sees the end."""
    stdout = fifo("stdout")
    task.exec("e", "sh", "-c", "sleep 1000 & echo text", stdout=stdout.path)
    task.start("e")
    task.wait("e")
    started = time.monotonic()
    task.delete("e", timeout_s=4)

    assert 10 > time.monotonic() - started
    assert b"text\n" == stdout.read()


def test_background_child_of_init_does_not_hang_delete(containerd: Containerd, name: str) -> None:
    """Children of init that keep its output open end with it, so an attached ctr ends at once."""
    result = containerd.run(name, "sh", "-c", "sleep 1000 & echo text", timeout_s=20)

    assert "text\n" == result.stdout


def test_no_descriptor_is_left(running: str, task: TaskClient, fifo: Callable[[str], Fifo], tmp_path: Path) -> None:
    """After execs with stdio of every kind the shim has the descriptors that it had before."""
    shim = task.connect().shim_pid
    stdin = tmp_path / "stdin"
    os.mkfifo(stdin)

    def run_all(number: int) -> None:
        stdout, stderr = fifo(f"out{number}"), fifo(f"err{number}")
        kinds: list[dict[str, str]] = [
            {"stdin": str(stdin), "stdout": stdout.path, "stderr": stderr.path},
            {"stdout": f"file://{tmp_path}/log"},
            {},
        ]
        for kind in kinds:
            task.exec("e", "true", stdin=kind.get("stdin", ""), stdout=kind.get("stdout", ""))
            task.start("e")
            task.wait("e")
            task.delete("e")
        task.exec("e", "/nosuch", stdin=str(stdin), stdout=stdout.path)
        with pytest.raises(Exception, match="no such file"):
            task.start("e")
        task.delete("e")

    run_all(0)
    before = descriptors(shim)
    for number in range(1, 6):
        run_all(number)

    assert before == descriptors(shim)
