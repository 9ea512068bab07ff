"""Calls that make no sense at the time: refused with the right code, in the words that clients know, and harmless.

By hand, without a containerd, which would not let most of them through.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from shim.api import task_v2_pb2
from shim.ttrpc import Code, RpcError
from tests.integration import byhand
from tests.integration.byhand import Hand, refusal
from tests.integration.client import TaskClient

pytestmark = pytest.mark.every_form

pytest_generate_tests = byhand.pytest_generate_tests
program, spawn, hand = byhand.program, byhand.spawn, byhand.hand


@pytest.fixture
def running(hand: Hand) -> Iterator[TaskClient]:
    """Return the client of a running container, which is killed and deleted afterwards if it is still there."""
    client = hand.serve("c1")
    client.create(hand.create_request("c1"))
    client.start()
    yield client
    if client.connect().task_pid:
        client.kill(signal.SIGKILL)
        client.wait()
        client.delete()


def test_create_twice(running: TaskClient, hand: Hand) -> None:
    """The second one is refused before it touches anything of the first."""
    code, text = refusal(lambda: running.create(hand.create_request("c1")))

    assert (Code.ALREADY_EXISTS, "container c1: already exists") == (code, text)
    assert running.state().pid == int((hand.bundle("c1") / "init.pid").read_text())


def test_start_twice(running: TaskClient) -> None:
    """Go's text."""
    assert (Code.UNKNOWN, "cannot start a running process") == refusal(running.start)


def test_delete_of_a_running_container(running: TaskClient) -> None:
    """Go's text; the container runs on."""
    assert (Code.UNKNOWN, "cannot delete a running process") == refusal(running.delete)
    assert running.run("e1", "true") == 0


def test_exec_with_a_fifo_that_is_missing(running: TaskClient, hand: Hand) -> None:
    """The fifo is named; who waits is released; no exit is told; the exec can be deleted and its id used again."""
    path = f"{hand.folder}/nosuch"
    running.exec("e1", "true", stdout=path)
    code, text = refusal(lambda: running.start("e1"))

    assert (Code.UNKNOWN, True) == (code, path in text and text.endswith("no such file or directory"))
    assert 0 == running.wait("e1", timeout_s=20).exit_status
    running.delete("e1")
    assert 3 == running.run("e1", "sh", "-c", "exit 3")
    assert 3 == hand.events.wait_for("/tasks/exit").message.exit_status


@pytest.mark.parametrize("spec", [b"", b"{", b"[]", b"\0\xff"], ids=["empty", "cut-off", "list", "garbage"])
def test_exec_whose_spec_is_no_process(running: TaskClient, spec: bytes) -> None:
    """It is refused, and its id stays free."""
    request = task_v2_pb2.ExecProcessRequest(id="c1", exec_id="e1", spec=AnyMessage(value=spec))
    code, text = refusal(lambda: running.call("Exec", request, Empty))

    assert (Code.INVALID_ARGUMENT, True) == (code, text.startswith("exec spec: "))
    assert 0 == running.run("e1", "true")


UNKNOWN_EXEC = {
    "State": task_v2_pb2.StateRequest,
    "Start": task_v2_pb2.StartRequest,
    "Delete": task_v2_pb2.DeleteRequest,
    "Kill": task_v2_pb2.KillRequest,
    "Wait": task_v2_pb2.WaitRequest,
    "CloseIO": task_v2_pb2.CloseIORequest,
    "ResizePty": task_v2_pb2.ResizePtyRequest,
}
UNKNOWN_ID: dict[str, type[Message]] = {
    **UNKNOWN_EXEC,
    "Exec": task_v2_pb2.ExecProcessRequest,
    "Pause": task_v2_pb2.PauseRequest,
    "Resume": task_v2_pb2.ResumeRequest,
    "Update": task_v2_pb2.UpdateTaskRequest,
    "Checkpoint": task_v2_pb2.CheckpointTaskRequest,
    "Pids": task_v2_pb2.PidsRequest,
    "Stats": task_v2_pb2.StatsRequest,
}


def test_unknown_container(hand: Hand) -> None:
    """Every call about it, of either version, answers NOT_FOUND with Go's text; Connect and Shutdown never fail."""
    hand.serve("c1")
    versions = [hand.client("c1", service=f"containerd.task.{version}.Task") for version in ("v2", "v3")]
    for client in versions:
        answers = {
            method: refusal(lambda: client.call(method, request(id="ghost"), Empty))  # noqa: B023
            for method, request in UNKNOWN_ID.items()
        }

        assert dict.fromkeys(UNKNOWN_ID, (Code.NOT_FOUND, "container not created: not found")) == answers
        assert 0 == client.connect().task_pid
    versions[0].shutdown()


def test_unknown_exec(running: TaskClient) -> None:
    """Every call about it answers NOT_FOUND and names it, in Go's words."""
    answers = {
        method: refusal(lambda: running.call(method, request(id="c1", exec_id="ghost"), Empty))  # noqa: B023
        for method, request in UNKNOWN_EXEC.items()
    }

    assert dict.fromkeys(UNKNOWN_EXEC, (Code.NOT_FOUND, "process does not exist ghost: not found")) == answers


def test_deletes_at_once(running: TaskClient, hand: Hand) -> None:
    """One of them deletes the container, the others hear that it is gone."""
    running.kill(signal.SIGKILL)
    running.wait()
    clients = [hand.client("c1") for _ in range(8)]

    def delete(client: TaskClient) -> str:
        try:
            return f"deleted {client.delete().exit_status}"
        except RpcError as error:
            return f"refused {error.code}"

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(delete, clients))

    assert ["deleted 137"] + [f"refused {Code.NOT_FOUND}"] * 7 == sorted(answers)
