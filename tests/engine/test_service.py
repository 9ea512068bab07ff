"""The Task service: messages in, messages out, and the statuses of what goes wrong; no runtime runs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from shim.api import events_pb2, task_types_pb2, task_v2_pb2, task_v3_pb2
from shim.api.runc_options_pb2 import Options, ProcessDetails
from shim.engine.service import INLINE, exec_spec
from shim.engine.task import State
from shim.errors import InvalidArgumentError, ShimError
from shim.runtime.timestamps import timestamp
from shim.ttrpc.service import Deferred
from shim.ttrpc.status import status_of
from tests.engine.caller import Caller
from tests.engine.world import FIRST_PID

GO_ZERO = -62135596800


both_versions = pytest.mark.parametrize("caller", [task_v2_pb2, task_v3_pb2], ids=["v2", "v3"], indirect=True)


def test_timestamp_of_nothing_is_gos_zero_time() -> None:
    """Its clients take it for "has not happened"."""
    assert (GO_ZERO, 0) == (timestamp(None).seconds, timestamp(None).nanos)
    assert 1714979289 == timestamp(1714979289.25).seconds
    assert 250_000_000 == pytest.approx(timestamp(1714979289.25).nanos, abs=1000)


@pytest.mark.parametrize(
    ("value", "terminal", "expected"),
    [
        (b'{"args": ["x"]}', False, b'{"args": ["x"]}'),
        (b'{"terminal":true,"args":[]}', True, b'{"terminal":true,"args":[]}'),
        (b'{"args": ["x"]}', True, b'{"args": ["x"], "terminal": true}'),
        (b'{"terminal":true,"args":[]}', False, b'{"terminal": false, "args": []}'),
    ],
)
def test_exec_spec_has_the_terminal_that_was_asked_for(value: bytes, terminal: bool, expected: bytes) -> None:
    """Else its bytes stay what they are."""
    assert expected == exec_spec(value, terminal=terminal)


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"null", b"\xff", b"n\0u\0l\0l\0"])
def test_exec_spec_that_is_none_is_refused(value: bytes) -> None:
    """Before its id is taken."""
    with pytest.raises(InvalidArgumentError, match=r"^exec spec: .*: invalid argument$"):
        exec_spec(value, terminal=False)


def test_every_state_of_a_process_has_a_status(caller: Caller) -> None:
    """State must never fail."""
    pid = caller.run()
    process = caller.engine.containers.get("c1").init
    told = {}
    for state in State:
        process._state = state
        told[state] = task_types_pb2.Status.Name(caller.call("state", id="c1").status)

    assert {
        State.CREATED: "CREATED",
        State.CHECKPOINTED: "CREATED",
        State.STARTING: "CREATED",
        State.RESTORING: "CREATED",
        State.RUNNING: "RUNNING",
        State.PAUSING: "PAUSING",
        State.PAUSED: "PAUSED",
        State.STOPPED: "STOPPED",
        State.DELETING: "STOPPED",
        State.DELETED: "STOPPED",
        State.FAILED: "CREATED",
    } == told
    assert pid > FIRST_PID


@both_versions
def test_a_life_of_a_container(caller: Caller) -> None:
    """The answers of each step, and the events with what they carry."""
    bundle = caller.bundle()
    pid = caller.create(bundle=bundle, stdin="", terminal=False).pid
    before = caller.call("state", id="c1")
    started = caller.call("start", id="c1")
    running = caller.call("state", id="c1").status
    caller.daemon.reaper.exit(pid, 3)
    after = caller.call("state", id="c1")
    deleted = caller.call("delete", id="c1")

    assert pid == started.pid == before.pid == after.pid == deleted.pid
    assert ("c1", bundle, task_types_pb2.CREATED, GO_ZERO, "") == (
        *(before.id, before.bundle, before.status, before.exited_at.seconds, before.exec_id),
    )
    assert task_types_pb2.RUNNING == running
    assert (task_types_pb2.STOPPED, 3, 1003) == (after.status, after.exit_status, after.exited_at.seconds)
    assert (3, 1003) == (deleted.exit_status, deleted.exited_at.seconds)
    end = {"pid": pid, "exit_status": 3, "exited_at": timestamp(1003.0)}
    assert [
        ("/tasks/create", events_pb2.TaskCreate(container_id="c1", bundle=bundle, io=events_pb2.TaskIO(), pid=pid)),
        ("/tasks/start", events_pb2.TaskStart(container_id="c1", pid=pid)),
        ("/tasks/exit", events_pb2.TaskExit(container_id="c1", id="c1", **end)),
        ("/tasks/delete", events_pb2.TaskDelete(container_id="c1", **end)),
    ] == caller.daemon.publisher.events
    assert (5, "container not created: not found") == caller.fails("state", id="c1")


def test_the_log_moves_when_its_container_is_deleted(caller: Caller) -> None:
    """To another one, or else to the next there is: a group's daemon has it from the first."""

    def end(container: str, pid: int) -> None:
        caller.daemon.reaper.exit(pid)
        caller.call("delete", id=container)

    pids = {name: caller.run(name) for name in ("c1", "c2", "c3")}
    end("c3", pids["c3"])
    moved = [list(caller.daemon.logs)]
    for name in ("c1", "c2"):
        end(name, pids[name])
        moved.append(list(caller.daemon.logs))
    caller.create("c4")

    second = [str(caller.folder / "c2" / "log")]
    assert [[], second, second] == moved
    assert [*second, str(caller.folder / "c4" / "log")] == caller.daemon.logs


@both_versions
def test_a_life_of_an_exec(caller: Caller) -> None:
    """No event of its deletion: that would be taken for the container's."""
    caller.run()
    spec = AnyMessage(type_url="any", value=b'{"args":[]}')
    names = {"id": "c1", "exec_id": "e1"}
    assert Empty() == caller.call("exec", "ExecProcessRequest", **names, spec=spec)
    before = caller.call("state", **names)
    pid = caller.call("start", **names).pid
    caller.daemon.reaper.exit(pid, 4)
    after = caller.call("state", **names)
    deleted = caller.call("delete", **names)

    assert (task_types_pb2.CREATED, 0, "e1") == (before.status, before.pid, before.id)
    assert (task_types_pb2.STOPPED, 4, pid) == (after.status, after.exit_status, after.pid)
    assert (4, pid) == (deleted.exit_status, deleted.pid)
    end = {"pid": pid, "exit_status": 4, "exited_at": timestamp(1004.0)}
    assert [
        ("/tasks/exec-added", events_pb2.TaskExecAdded(container_id="c1", exec_id="e1")),
        ("/tasks/exec-started", events_pb2.TaskExecStarted(container_id="c1", exec_id="e1", pid=pid)),
        ("/tasks/exit", events_pb2.TaskExit(container_id="c1", id="e1", **end)),
    ] == caller.daemon.publisher.events[2:]
    assert (5, "process does not exist e1: not found") == caller.fails("state", **names)


REQUESTS = [
    ("start", ""),
    ("delete", ""),
    ("state", ""),
    ("wait", ""),
    ("kill", ""),
    ("exec", "ExecProcessRequest"),
    ("resize_pty", "ResizePtyRequest"),
    ("close_io", "CloseIORequest"),
    ("pause", ""),
    ("resume", ""),
    ("update", "UpdateTaskRequest"),
    ("checkpoint", "CheckpointTaskRequest"),
    ("pids", ""),
    ("stats", ""),
]


@pytest.mark.parametrize(("method", "name"), REQUESTS)
def test_an_unknown_container_is_not_found(caller: Caller, method: str, name: str) -> None:
    """By every call that names one."""
    assert (5, "container not created: not found") == caller.fails(method, name, id="nope")


@pytest.mark.parametrize(("method", "name"), [*REQUESTS[:5], *REQUESTS[6:8]])
def test_an_unknown_exec_is_not_found(caller: Caller, method: str, name: str) -> None:
    """By every call that may name one."""
    caller.run()

    assert (5, "process does not exist nope: not found") == caller.fails(method, name, id="c1", exec_id="nope")


@both_versions
def test_connect_and_shutdown_know_no_unknown_container(caller: Caller) -> None:
    """containerd asks before Create, and for its own checks."""
    unknown = caller.call("connect", id="nope")
    pid = caller.run()
    known = caller.call("connect", id="c1")

    assert (os.getpid(), 0, "") == (unknown.shim_pid, unknown.task_pid, unknown.version)
    assert (os.getpid(), pid) == (known.shim_pid, known.task_pid)
    assert Empty() == caller.call("shutdown", id="nope", now=True)
    assert 0 == caller.daemon.shutdowns


def test_shutdown_ends_an_empty_shim_and_refuses_what_comes_after(caller: Caller) -> None:
    """With a container it does nothing; repeating is fine."""
    pid = caller.run()
    caller.call("shutdown", now=True)
    before = caller.daemon.shutdowns
    caller.daemon.reaper.exit(pid)
    caller.call("delete", id="c1")
    caller.call("shutdown")
    caller.call("shutdown")

    assert (0, 2) == (before, caller.daemon.shutdowns)
    assert (14, "shim is shutting down: unavailable") == caller.fails(
        "create", "CreateTaskRequest", id="c2", bundle=caller.bundle("c2")
    )


def test_shutdown_waits_for_a_create_under_way(caller: Caller) -> None:
    """Else the container would land in a process that ends."""
    seen: list[int] = []

    def act(_words: list[str]) -> int:
        caller.call("shutdown")
        seen.append(caller.daemon.shutdowns)
        return 0

    caller.daemon.reaper.acts["create"] = act
    caller.create()

    assert [0] == seen


def wait(caller: Caller, **fields: str) -> tuple[Deferred, list[Any]]:
    """Call Wait; the answer, or the status, comes into the list."""
    deferred: Deferred = caller.call("wait", **fields)
    answers: list[Any] = []

    def done(deferred: Deferred) -> None:
        try:
            answers.append(deferred.result())
        except ShimError as error:
            answers.append(status_of(error))

    deferred.on_done(done)
    return deferred, answers


@both_versions
def test_wait_is_answered_with_the_exit(caller: Caller) -> None:
    """Before a start too, any number of times, and at once when it is over."""
    pid = caller.create().pid
    answers = [wait(caller, id="c1")[1] for _ in range(3)]
    caller.call("start", id="c1")
    before = [*answers]
    caller.daemon.reaper.exit(pid, 3)
    answers.append(wait(caller, id="c1")[1])

    assert [[], [], []] != before
    assert [(3, 1003)] * 4 == [(each.exit_status, each.exited_at.seconds) for (each,) in answers]


def test_wait_for_an_exec_that_never_runs_is_released(caller: Caller) -> None:
    """With zeros after a failed start, with NOT_FOUND when it was deleted unused."""
    caller.run()
    spec = AnyMessage(value=b"{}")
    caller.call("exec", "ExecProcessRequest", id="c1", exec_id="e1", spec=spec)
    caller.call("exec", "ExecProcessRequest", id="c1", exec_id="e2", spec=spec)
    failed, unused = wait(caller, id="c1", exec_id="e1")[1], wait(caller, id="c1", exec_id="e2")[1]
    caller.daemon.reaper.acts["exec"] = lambda _words: 1
    code, text = caller.fails("start", id="c1", exec_id="e1")
    caller.call("delete", id="c1", exec_id="e2")

    assert 2 == code
    assert text.startswith("OCI runtime exec failed: ")
    assert [(0, GO_ZERO)] == [(each.exit_status, each.exited_at.seconds) for each in failed]
    assert [(5, "process e2 never ran: not found")] == unused


def test_a_wait_that_nobody_awaits_is_forgotten(caller: Caller) -> None:
    """Clients that come and go must not pile up."""
    pid = caller.run()
    deferred, answers = wait(caller, id="c1")
    deferred.abandon()
    held = len(caller.engine.containers.get("c1").init._waiters)
    caller.daemon.reaper.exit(pid)

    assert (0, []) == (held, answers)


def test_create_twice_is_refused_before_anything_is_touched(caller: Caller) -> None:
    """The living one's files stay as they are."""
    caller.run()
    path = Path(caller.folder / "c1" / "options.json")
    path.write_text("untouched")

    assert (6, "container c1: already exists") == caller.fails(
        "create", "CreateTaskRequest", id="c1", bundle=str(caller.folder / "c1")
    )
    assert "untouched" == path.read_text()


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"id": ""}, 3, "container id cannot be empty: invalid argument"),
        ({"checkpoint": "/x", "stdout": "a://x"}, 2, "failed to create init process I/O: unknown STDIO scheme a"),
        ({"options": AnyMessage(type_url="a.B")}, 3, "unsupported option type a.B: invalid argument"),
        ({"bundle": "/nonexistent"}, 2, "open /nonexistent/config.json: No such file or directory"),
        ({"stdout": "http://x"}, 2, "failed to create init process I/O: unknown STDIO scheme http"),
    ],
)
def test_a_create_that_makes_no_sense_leaves_no_container(
    caller: Caller, fields: dict[str, Any], code: int, text: str
) -> None:
    """And its id free; nothing is published."""
    named = {"id": "c1", "bundle": caller.bundle(), **fields}

    assert (code, text) == caller.fails("create", "CreateTaskRequest", **named)
    assert [] == caller.daemon.reaper.calls + caller.topics()
    assert 0 == len(caller.engine.containers)


def test_options_reach_the_runtime_and_the_bundle(caller: Caller) -> None:
    """What `delete` needs is left on disk."""
    options = Options(binary_name="crun", root=str(caller.folder / "r"), no_pivot_root=True, no_new_keyring=True)
    packed = AnyMessage(type_url="containerd.runc.v1.Options", value=options.SerializeToString())
    caller.create(options=packed)
    runc = caller.engine.containers.get("c1").runc
    left = json.loads((caller.folder / "c1" / "options.json").read_text())

    assert ["--no-pivot", "--no-new-keyring", "c1"] == caller.daemon.reaper.calls[0][-3:]
    assert ("crun", str(caller.folder / "r"), "ns") == (runc.binary, runc.root, runc.namespace)
    assert {
        "binary_name": "crun",
        "root": str(caller.folder / "r"),
        "no_pivot_root": True,
        "no_new_keyring": True,
    } == left
    assert "crun" == (caller.folder / "c1" / "runtime").read_text()


@both_versions
def test_pids_name_the_execs(caller: Caller) -> None:
    """With the bare name of the type, as containerd compares it."""
    pid = caller.run()
    caller.call("exec", "ExecProcessRequest", id="c1", exec_id="e1", spec=AnyMessage(value=b"{}"))
    exec_pid = caller.call("start", id="c1", exec_id="e1").pid
    caller.daemon.reaper.output = f"[{pid}, {exec_pid}]"
    processes = caller.call("pids", id="c1").processes

    assert [pid, exec_pid] == [process.pid for process in processes]
    assert ["", "containerd.runc.v1.ProcessDetails"] == [process.info.type_url for process in processes]
    assert ProcessDetails(exec_id="e1") == ProcessDetails.FromString(processes[1].info.value)


def test_stats_without_a_cgroup_are_not_found(caller: Caller) -> None:
    """The text is Go's."""
    caller.run()

    assert (5, "cgroup does not exist: not found") == caller.fails("stats", id="c1")


def test_state_of_a_paused_container_is_its_execs_too(caller: Caller) -> None:
    """But one that has stopped has stopped."""
    caller.run()
    for name in ("e1", "e2"):
        caller.call("exec", "ExecProcessRequest", id="c1", exec_id=name, spec=AnyMessage(value=b"{}"))
        pid = caller.call("start", id="c1", exec_id=name).pid
    caller.daemon.reaper.exit(pid)
    caller.call("pause", id="c1")
    told = [caller.call("state", id="c1", exec_id=name).status for name in ("", "e1", "e2")]
    caller.call("resume", id="c1")
    told.append(caller.call("state", id="c1", exec_id="e1").status)

    assert ["PAUSED", "PAUSED", "STOPPED", "RUNNING"] == [task_types_pb2.Status.Name(each) for each in told]
    assert ["/tasks/paused", "/tasks/resumed"] == caller.topics()[-2:]


def test_requests_about_stdio_are_fine_without_any(caller: Caller) -> None:
    """Repeatedly, and before the start."""
    caller.create()
    for _ in range(2):
        assert Empty() == caller.call("close_io", "CloseIORequest", id="c1", stdin=True)
        assert Empty() == caller.call("resize_pty", "ResizePtyRequest", id="c1", width=80, height=24)


def test_kill_and_update_reach_the_runtime(caller: Caller) -> None:
    """With the signal's number and the resources as they came."""
    caller.run()
    caller.call("kill", id="c1", signal=15)
    caller.call("kill", id="c1", signal=9, all=True)
    caller.call("update", "UpdateTaskRequest", id="c1", resources=AnyMessage(value=b"{}"))

    assert [["kill", "c1", "15"], ["kill", "--all", "c1", "9"], ["update", "--resources=-", "c1"]] == (
        caller.daemon.reaper.calls[-3:]
    )


@both_versions
def test_a_checkpoint_is_told(caller: Caller) -> None:
    """With its folder; options are not needed, and have to be a checkpoint's."""
    caller.run()
    options = AnyMessage(type_url="containerd.runc.v1.Options")
    refused = caller.fails("checkpoint", "CheckpointTaskRequest", id="c1", options=options)
    caller.call("checkpoint", "CheckpointTaskRequest", id="c1", path="/image")

    assert (3, "unsupported option type containerd.runc.v1.Options: invalid argument") == refused
    assert ["--image-path", "/image"] == caller.daemon.reaper.calls[-1][1:3]
    assert ("/tasks/checkpointed", events_pb2.TaskCheckpointed(container_id="c1", checkpoint="/image")) == (
        caller.daemon.publisher.events[-1]
    )


def test_a_container_from_a_checkpoint_has_no_pid_until_it_starts(caller: Caller) -> None:
    """Neither in the answer nor in the event, which names the checkpoint; and State says that it is created."""
    options = AnyMessage(type_url="containerd.runc.v1.Options", value=Options(criu_work_path="/cw").SerializeToString())
    answer = caller.create(checkpoint="/image", parent_checkpoint="/parent", options=options)
    state = caller.call("state", id="c1")
    started = caller.call("start", id="c1")
    (_, created), (topic, event) = caller.daemon.publisher.events
    assert isinstance(created, events_pb2.TaskCreate)

    assert (0, 0, task_types_pb2.CREATED) == (answer.pid, state.pid, state.status)
    assert (0, "/image") == (created.pid, created.checkpoint)
    assert ("/tasks/start", events_pb2.TaskStart(container_id="c1", pid=started.pid)) == (topic, event)
    assert ["restore", "--image-path", "/image", "--work-path", "/cw", "--parent-path", "/parent"] == (
        caller.daemon.reaper.calls[0][:7]
    )


def test_wait_for_a_container_that_is_never_restored_is_released(caller: Caller) -> None:
    """By its Delete, since it has no exit."""
    caller.create(checkpoint="/image")
    _, answers = wait(caller, id="c1")
    deleted = caller.call("delete", id="c1")

    assert [(5, "process c1 never ran: not found")] == answers
    assert (0, GO_ZERO) == (deleted.exit_status, deleted.exited_at.seconds)
    assert ["/tasks/create", "/tasks/delete"] == caller.topics()


def test_a_mount_is_told_with_the_creation(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it came in the request."""
    monkeypatch.setattr("shim.host.mount.mount_all", lambda mounts, target, run_helper: None)
    monkeypatch.setattr("shim.host.mount.unmount_recursive", lambda target: None)
    given = {"type": "bind", "source": "/s", "target": "/t", "options": ["ro", "rbind"]}
    caller.create(rootfs=[given])
    ((_, event),) = caller.daemon.publisher.events
    assert isinstance(event, events_pb2.TaskCreate)

    assert [given] == [
        {"type": m.type, "source": m.source, "target": m.target, "options": [*m.options]} for m in event.rootfs
    ]


def test_both_versions_serve_the_same_methods(caller: Caller) -> None:
    """All of the .proto's; those that never block run on the loop."""
    *services, sandbox = caller.engine.services()

    assert ["containerd.task.v2.Task", "containerd.task.v3.Task"] == [service.name for service in services]
    assert "containerd.runtime.sandbox.v1.Sandbox" == sandbox.name
    for service in services:
        assert 17 == len(service.methods)
        assert {name for name, method in service.methods.items() if method.is_inline} == INLINE
