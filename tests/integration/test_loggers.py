"""Output that goes to a program, `binary://`: as ctr asks for it, and as clients of the shim do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from shim.api.task_types_pb2 import RUNNING
from shim.testing.containerd import Containerd
from shim.ttrpc import RpcError
from tests.integration.client import Guests, TaskClient, descriptors, wait_until

pytestmark = pytest.mark.every_form

READY: Final = "exec 5>&-"
COPY: Final = 'cat <&3 >>"$here/out" & cat <&4 >>"$here/err" & wait'
NOTE: Final = 'echo $$ >"$here/pid"; env | grep ^CONTAINER_ | sort >"$here/env"; echo "$*" >"$here/args"'


@pytest.fixture
def logger(tmp_path: Path) -> Callable[..., str]:
    """Return a writer of loggers, shell scripts whose `$here` is the test's folder."""

    def write(*lines: str) -> str:
        path = tmp_path / "logger"
        path.write_text("\n".join(["#!/bin/sh", f"here={tmp_path}", *lines, ""]))
        path.chmod(0o755)
        return str(path)

    return write


def has_gone(folder: Path) -> bool:
    """Say whether the logger that noted its pid is no process of the system any more."""
    return not Path(f"/proc/{(folder / 'pid').read_text().strip()}").exists()


def test_ctr_logs_to_a_program(
    containerd: Containerd, name: str, tmp_path: Path, logger: Callable[..., str], remove: Callable[[str], None]
) -> None:
    """All output is there once the task has been deleted, and the logger is reaped by then."""
    uri = f"binary://{logger(NOTE, READY, COPY)}?tag=x"
    command = "echo out; echo err >&2; seq 20000"
    containerd.run(name, "sh", "-c", command, detach=True, options=["--log-uri", uri])
    containerd.wait_status(name, "STOPPED")
    remove(name)

    assert "out\n" + "".join(f"{number}\n" for number in range(1, 20001)) == (tmp_path / "out").read_text()
    assert "err\n" == (tmp_path / "err").read_text()
    assert f"CONTAINER_ID={name}\nCONTAINER_NAMESPACE={containerd.namespace}\n" == (tmp_path / "env").read_text()
    assert "tag x\n" == (tmp_path / "args").read_text()
    assert has_gone(tmp_path)


def test_an_exec_logs_under_its_own_name(task: TaskClient, tmp_path: Path, logger: Callable[..., str]) -> None:
    """By the second version of the protocol; the shim keeps nothing open in the end."""
    shim = task.connect().shim_pid
    before = descriptors(shim)
    task.exec("e", "sh", "-c", "echo out", stdout=f"binary-v2://{logger(NOTE, 'echo >&5', READY, COPY)}")
    task.start("e")
    task.wait("e")
    task.delete("e")

    assert "out\n" == (tmp_path / "out").read_text()
    assert "CONTAINER_ID=e\n" in (tmp_path / "env").read_text()
    assert has_gone(tmp_path)
    wait_until(lambda: before == descriptors(shim), "the shim has closed what was for the logger")


def test_a_container_outlives_its_logger(task: TaskClient, tmp_path: Path, logger: Callable[..., str]) -> None:
    """It writes more than any pipe holds, is not killed by that, and its own exit status is told."""
    task.exec("e", "sh", "-c", "seq 100000 && exit 9", stdout=f"binary://{logger(NOTE, 'exit 1')}")
    task.start("e")
    status = task.wait("e").exit_status
    task.delete("e")

    assert 9 == status
    assert has_gone(tmp_path)


def test_a_logger_that_is_killed_takes_nobody_with_it(
    task: TaskClient, tmp_path: Path, logger: Callable[..., str]
) -> None:
    """In the middle of the output."""
    task.exec("e", "sh", "-c", "while true; do echo text; done", stdout=f"binary://{logger(NOTE, READY, 'sleep 1000')}")
    task.start("e")
    os.kill(int((tmp_path / "pid").read_text()), 9)
    wait_until(lambda: has_gone(tmp_path), "the logger is reaped")

    assert RUNNING == task.state("e").status

    task.kill(9, "e")

    assert 137 == task.wait("e").exit_status
    task.delete("e")


def test_a_logger_that_is_not_ready_fails_the_create(
    guests: Guests, name: str, tmp_path: Path, logger: Callable[..., str]
) -> None:
    """Nothing of the container is left, and its id is free."""
    uri = f"binary-v2://{logger(NOTE, 'exit 1')}"
    with pytest.raises(RpcError, match="did not call ready"):
        guests.create(name, "true", stdout=uri)
    assert has_gone(tmp_path)

    client = guests.client(name)
    with pytest.raises(RpcError, match="container not created: not found"):
        client.state()


def test_a_terminal_logs_to_a_program(task: TaskClient, tmp_path: Path, logger: Callable[..., str]) -> None:
    """What the terminal shows; the logger ends with it."""
    uri = f"binary://{logger(NOTE, READY, COPY)}"
    task.exec("e", "sh", "-c", "tty; echo text", terminal=True, stdout=uri)
    task.start("e")
    task.wait("e")
    task.delete("e")
    wait_until(lambda: has_gone(tmp_path), "the logger has ended")

    assert b"/dev/pts/0\r\ntext\r\n" == (tmp_path / "out").read_bytes()
