"""A runtime that hangs on one container: the daemon and its other containers never feel it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.api import task_types_pb2
from shim.ttrpc import Code
from tests.engine.served import Served
from tests.fakes import PATIENCE_S

SLEEP = "exec sleep 60"
WHOLE_LIFE = ["create", "start", "exit", "delete"]


@pytest.fixture
def short(tmp_path: Path) -> Iterator[Served]:
    """A daemon whose runtime has little time to create and to start."""
    with Served(tmp_path, "[limits]\ncreate = 0.4\nstart = 0.4\n") as served:
        yield served


@pytest.mark.parametrize("method", ["Start", "Pause", "Resume", "Kill", "Update", "Delete", "Checkpoint"])
def test_a_call_that_hangs_holds_up_nobody_else(own: Served, method: str) -> None:
    """State, Connect and Wait of the very container are answered at once, and another lives a whole life meanwhile."""
    pid = own.create("slow", SLEEP)
    if method not in ("Start", "Delete"):
        own.call("Start", id="slow")
    if method == "Resume":
        own.call("Pause", id="slow")
    state = own.call("State", id="slow").status
    waiting, exits = own.later("Wait", id="slow")
    gate = own.runc.hangs(method.lower(), once=True)
    more: dict[str, dict[str, Any]] = {
        "Kill": {"signal": 9},
        "Update": {"resources": {"value": b"{}"}},
        "Checkpoint": {"path": "/x"},
    }
    thread, answers = own.later(method, id="slow", timeout_s=None, **more.get(method, {}))
    gate.wait_reached()
    told = own.call("State", id="slow"), own.call("Connect", id="slow")
    own.run("quick", "exit 3")
    quick = own.call("Wait", id="quick").exit_status
    own.call("Delete", id="quick")
    before = [*answers, *exits]
    gate.release()
    thread.join(PATIENCE_S)
    if method not in ("Delete", "Kill"):
        own.call("Kill", id="slow", signal=9)
    waiting.join(PATIENCE_S)

    during = {"Pause": task_types_pb2.PAUSING}.get(method, state)
    assert (during, pid, pid) == (told[0].status, told[0].pid, told[1].task_pid)
    assert 3 == quick
    assert [] == before
    assert 1 == len(answers) == len(exits)
    assert WHOLE_LIFE == own.events("quick", 4)


def test_a_create_that_hangs_holds_up_nobody_else(own: Served) -> None:
    """Its container is not there yet, which is said at once."""
    gate = own.runc.hangs("create", once=True)
    thread, answers = own.later("Create", id="slow", bundle=_bundle(own, "slow"), timeout_s=None)
    gate.wait_reached()
    told = own.fails("State", id="slow"), own.call("Connect", id="slow").task_pid
    own.run("quick", "exit 3")
    own.call("Wait", id="quick")
    own.call("Delete", id="quick")
    before = [*answers]
    gate.release()
    thread.join(PATIENCE_S)
    own.call("Delete", id="slow")

    assert ((5, "container not created: not found"), 0) == told
    assert [] == before
    assert 0 < answers[0].pid


def test_a_create_that_hangs_fails_and_can_be_repeated(short: Served) -> None:
    """With what happened, and nothing of the first attempt left."""
    short.runc.hangs("create", at="before the answer", once=True)
    bundle = _bundle(short, "slow")
    failed = short.fails("Create", id="slow", bundle=bundle, options=short.options())
    left = (short.root / "ns" / "slow").exists()
    short.run("slow", "exit 3")
    exit_ = short.call("Wait", id="slow").exit_status
    short.call("Delete", id="slow")

    text = "runc create of container slow was not done after 0.4 s and has been killed"
    assert (Code.DEADLINE_EXCEEDED, f"OCI runtime create failed: {text}") == failed
    assert not left
    assert 3 == exit_
    assert WHOLE_LIFE == short.events("slow", 4)


def test_a_start_that_hangs_leaves_what_can_be_deleted(short: Served) -> None:
    """Even if init runs by then, which nobody knows."""
    short.create("slow", SLEEP)
    short.runc.hangs("start", at="before the answer", once=True)
    code, text = short.fails("Start", id="slow")
    state = short.call("State", id="slow").status
    deleted = short.call("Delete", id="slow")

    assert Code.DEADLINE_EXCEEDED == code
    assert text.startswith("OCI runtime start failed: runc start of container slow was not done after 0.4 s")
    assert task_types_pb2.CREATED == state
    assert 137 == deleted.exit_status
    assert ["create", "exit", "delete"] == short.events("slow", 3)


def _bundle(served: Served, container: str) -> str:
    path = served.bundle(container)
    spec = {"linux": {"namespaces": [{"type": "pid"}]}, "process": {"args": ["/bin/sh", "-c", SLEEP], "cwd": "/"}}
    (path / "config.json").write_text(json.dumps(spec))
    return str(path)
