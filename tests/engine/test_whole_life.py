"""pyrunc as containerd meets it: containers from Create to Delete, and the daemon that holds them.

A daemon in its own process, over its socket, with events; only the runtime is a fake, a script whose containers are
plain processes.
"""

import contextlib
import threading
import time
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.api import events_pb2, task_types_pb2, task_v2_pb2, task_v3_pb2
from shim.api.runctypes_pb2 import CheckpointOptions as LinuxCheckpointOptions
from shim.api.task_v2_pb2 import DeleteResponse
from shim.ttrpc import ConnectionClosedError, RpcError
from tests.engine.served import Served
from tests.fakes import PATIENCE_S, wait_until

SLEEP = "exec sleep 60"
WHOLE_LIFE = ["create", "start", "exit", "delete"]


@pytest.mark.parametrize("api", [task_v2_pb2, task_v3_pb2], ids=["v2", "v3"])
def test_a_container_lives_and_is_killed(served: Served, api: object) -> None:
    """Create, start, wait, kill, delete; each answer, each event with what it says, in order."""
    name = f"life{id(api)}"
    version = task_v2_pb2 if api is task_v2_pb2 else task_v3_pb2
    pid = served.create(name, SLEEP, api=version)
    created = served.call("State", api=version, id=name)
    waiting, answers = served.later("Wait", api=version, id=name)
    start = served.call("Start", api=version, id=name)
    running = served.call("State", api=version, id=name)
    assert wait_until(lambda: served.is_alive(pid))
    served.call("Kill", api=version, id=name, signal=9)
    waiting.join(PATIENCE_S)
    stopped = served.call("State", api=version, id=name)
    deleted = served.call("Delete", api=version, id=name)
    topics = served.events(name, 4)
    events = [event.message for event in served.containerd.of(name)]

    assert [pid] * 4 == [answer.pid for answer in (created, start, running, deleted)]
    assert ["CREATED", "RUNNING", "STOPPED"] == [
        task_types_pb2.Status.Name(answer.status) for answer in (created, running, stopped)
    ]
    assert [137] * 3 == [answer.exit_status for answer in (*answers, stopped, deleted)]
    assert answers[0].exited_at == stopped.exited_at == deleted.exited_at
    assert abs(answers[0].exited_at.seconds - time.time()) < 60
    assert WHOLE_LIFE == topics
    end = {"pid": pid, "exit_status": 137, "exited_at": answers[0].exited_at}
    assert [
        events_pb2.TaskStart(container_id=name, pid=pid),
        events_pb2.TaskExit(container_id=name, id=name, **end),
        events_pb2.TaskDelete(container_id=name, **end),
    ] == events[1:]
    assert not served.is_alive(pid)
    assert not (served.root / "ns" / name).exists()
    assert (5, "container not created: not found") == served.fails("State", api=version, id=name)


@pytest.mark.parametrize("status", [0, 3, 255])
def test_a_container_that_ends_at_once(served: Served, status: int) -> None:
    """Start is told before exit, however short the life; State keeps its pid."""
    name = f"short{status}"
    pid = served.run(name, f"exit {status}")
    ended = served.call("Wait", id=name)
    state = served.call("State", id=name)
    served.call("Delete", id=name)

    assert (status, status, pid) == (ended.exit_status, state.exit_status, state.pid)
    assert WHOLE_LIFE == served.events(name, 4)


def test_a_container_that_ends_while_it_is_started(served: Served) -> None:
    """The runtime returns long after the end."""
    served.runc.exits_early("start")
    pid = served.run("during", "exit 5")
    served.runc.behave()
    state = served.call("State", id="during")
    served.call("Delete", id="during")

    assert (pid, task_types_pb2.STOPPED, 5) == (state.pid, state.status, state.exit_status)
    assert WHOLE_LIFE == served.events("during", 4)


def test_a_created_container_may_be_deleted(served: Served) -> None:
    """Its init is killed, and its exit told before its deletion."""
    pid = served.create("created", SLEEP)
    answer = served.call("Delete", id="created")

    assert (137, pid) == (answer.exit_status, answer.pid)
    assert ["create", "exit", "delete"] == served.events("created", 3)
    assert not served.is_alive(pid)


def test_a_created_container_may_be_killed(served: Served) -> None:
    """An exit without a start."""
    served.create("doomed", SLEEP)
    served.call("Kill", id="doomed", signal=9)
    answer = served.call("Wait", id="doomed")
    code = served.fails("Start", id="doomed")
    served.call("Delete", id="doomed")

    assert 137 == answer.exit_status
    assert (2, "cannot start a stopped process") == code
    assert ["create", "exit", "delete"] == served.events("doomed", 3)


def test_a_failed_create_leaves_nothing(served: Served) -> None:
    """Not even its id; the runtime's words reach the client."""
    served.runc.fails("create", "exec: nope: executable file not found in $PATH")
    failed = served.fails("Create", id="failed", bundle=_bundle(served, "failed"))
    served.runc.behave()
    unknown = served.fails("State", id="failed")
    served.run("failed", "exit 0")
    served.call("Wait", id="failed")
    served.call("Delete", id="failed")

    assert 2 == failed[0]
    assert "OCI runtime create failed: exec: nope: executable file not found in $PATH" == failed[1]
    assert (5, "container not created: not found") == unknown
    assert WHOLE_LIFE == served.events("failed", 4)


def _bundle(served: Served, container: str) -> str:
    """Make a bundle without creating its container."""
    path = served.bundle(container)
    (path / "config.json").write_text("{}")
    return str(path)


def test_a_failed_start_may_be_repeated(served: Served) -> None:
    """The container stays created."""
    served.create("again", "exit 0")
    served.runc.fails("start", "not now")
    failed = served.fails("Start", id="again")
    state = served.call("State", id="again").status
    served.runc.behave()
    served.call("Start", id="again")
    served.call("Wait", id="again")
    served.call("Delete", id="again")

    assert (2, "OCI runtime start failed: not now") == failed
    assert task_types_pb2.CREATED == state
    assert WHOLE_LIFE == served.events("again", 4)


def test_pause_and_resume(served: Served) -> None:
    """State says so, and no exec starts in between."""
    pid = served.run("paused", SLEEP)
    served.call("Pause", id="paused")
    paused = served.call("State", id="paused").status
    refused = served.fails("Exec", id="paused", exec_id="e1")
    served.call("Resume", id="paused")
    running = served.call("State", id="paused").status
    listed = served.call("Pids", id="paused").processes
    served.call("Update", id="paused", resources={"value": b'{"memory":{"limit":1}}'})
    updated = (served.root / "ns" / "paused" / "resources").read_text()
    served.call("Kill", id="paused", signal=9)
    served.call("Wait", id="paused")
    served.call("Delete", id="paused")

    assert (task_types_pb2.PAUSED, task_types_pb2.RUNNING) == (paused, running)
    assert 3 == refused[0] or refused == (2, "cannot exec in a paused state")
    assert pid in [process.pid for process in listed]
    assert '{"memory":{"limit":1}}' == updated
    assert ["create", "start", "paused", "resumed", "exit", "delete"] == served.events("paused", 6)


def test_a_container_goes_on_from_a_checkpoint(served: Served, tmp_path: Path) -> None:
    """It ends with the checkpoint, and begins again under another name with its own stdio."""
    image = str(tmp_path / "image")
    served.run("frozen", SLEEP)
    options = AnyMessage(
        type_url="containerd.linux.runc.CheckpointOptions",
        value=LinuxCheckpointOptions(exit=True).SerializeToString(),
    )
    served.call("Checkpoint", id="frozen", path=image, options=options)
    status = served.call("Wait", id="frozen").exit_status
    served.call("Delete", id="frozen")
    pid = served.create("thawed", "echo text; exit 5", checkpoint=image, stdout=f"file://{tmp_path}/out")
    served.call("Start", id="thawed")
    exit_ = served.call("Wait", id="thawed").exit_status
    served.call("Delete", id="thawed")

    assert (137, 0, 5) == (status, pid, exit_)
    assert "text\n" == (tmp_path / "out").read_text()
    assert WHOLE_LIFE == served.events("thawed", 4)
    told = served.events("frozen", 5)
    assert ["create", "start", "delete"] == [event for event in told if event not in ("exit", "checkpointed")]
    assert "checkpointed" in told


def test_a_restore_that_fails_may_be_repeated(served: Served, tmp_path: Path) -> None:
    """The container stays created, with nothing of it in the runtime."""
    image = tmp_path / "image"
    served.create("unthawed", "exit 5", checkpoint=str(image))
    failed = served.fails("Start", id="unthawed")
    state = served.call("State", id="unthawed")
    image.mkdir()
    (image / "inventory.img").touch()
    served.call("Start", id="unthawed")
    served.call("Wait", id="unthawed")
    served.call("Delete", id="unthawed")

    assert (2, f"OCI runtime restore failed: no checkpoint in {image}") == failed
    assert (0, task_types_pb2.CREATED) == (state.pid, state.status)
    assert WHOLE_LIFE == served.events("unthawed", 4)


def test_requests_that_cannot_be_met_have_gos_answers(served: Served) -> None:
    """Codes and texts that clients look at."""
    served.run("answers", SLEEP)
    told = [
        served.fails("Start", id="answers"),
        served.fails("Delete", id="answers"),
        served.fails("Resume", id="answers"),
        served.fails("Kill", id="answers", exec_id="nope", signal=9),
        served.fails("Create", id="answers", bundle=str(served.bundle("answers"))),
        served.fails("Start", id="nope"),
    ]
    served.call("Kill", id="answers", signal=9)
    served.call("Wait", id="answers")
    told.append(served.fails("Kill", id="answers", signal=9))
    served.call("Delete", id="answers")

    assert [
        (2, "cannot start a running process"),
        (2, "cannot delete a running process"),
        (2, "cannot resume a running process"),
        (5, "process does not exist nope: not found"),
        (6, "container answers: already exists"),
        (5, "container not created: not found"),
        (5, "process already finished: not found"),
    ] == told


def test_a_client_that_goes_during_create_leaves_a_container(served: Served) -> None:
    """The runtime is not stopped half way; containerd deletes what it does not want."""
    gate = served.runc.hangs("create")
    with served.connect() as client:
        with contextlib.suppress(Exception):
            served.create("orphan", SLEEP, client=client, timeout_s=0.05)
        gate.wait_reached()
    gate.release()
    assert wait_until(lambda: served.call("Connect", id="orphan").task_pid)
    served.runc.behave()
    served.call("Delete", id="orphan")

    assert ["create", "exit", "delete"] == served.events("orphan", 3)


def test_many_containers_live_at_once(served: Served) -> None:
    """Each in its own order, whatever the others do."""
    errors: list[BaseException] = []

    def live(number: int) -> None:
        try:
            with served.connect() as client:
                name = f"many{number}"
                for _ in range(2):
                    served.create(name, f"exit {number}", client=client)
                    served.call("Start", id=name, client=client)
                    assert number == served.call("Wait", id=name, client=client).exit_status
                    served.call("Delete", id=name, client=client)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=live, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [] == errors
    for number in range(6):
        assert WHOLE_LIFE * 2 == served.events(f"many{number}", 8)


def test_events_survive_a_restart_of_containerd(served: Served) -> None:
    """What happened while it was away is told in order when it is back."""
    served.create("away", "exit 4")
    assert ["create"] == served.events("away", 1)
    served.containerd.stop()
    served.call("Start", id="away")
    served.call("Wait", id="away")
    served.call("Delete", id="away")
    served.containerd.start()

    assert WHOLE_LIFE == served.events("away", 4)


def test_the_daemon_knows_two_services_and_says_so(served: Served) -> None:
    """Others are UNIMPLEMENTED, which containerd's fallback needs."""
    connected = [served.call("Connect", api=api, id="x") for api in (task_v2_pb2, task_v3_pb2)]

    assert [served.process.pid] * 2 == [answer.shim_pid for answer in connected]
    with (
        served.connect() as client,
        pytest.raises(RpcError, match=r"UNIMPLEMENTED: service containerd\.task\.v9\.Task"),
    ):
        client.call_raw("containerd.task.v9.Task", "State", b"", timeout_s=PATIENCE_S)


def test_shutdown_ends_the_daemon_once_it_is_empty(own: Served) -> None:
    """Not before; then the answer comes, all events are out, and nothing is left."""
    own.run("last", SLEEP)
    own.call("Shutdown", id="last", now=True)
    alive = own.process.poll()
    own.call("Kill", id="last", signal=9)
    own.call("Wait", id="last")
    own.call("Delete", id="last")
    own.call("Shutdown", id="last")

    assert alive is None
    assert 0 == own.process.wait(PATIENCE_S)
    assert not own.path.exists()
    assert WHOLE_LIFE == own.events("last", 4)


def test_sigterm_ends_the_daemon_and_leaves_the_container(own: Served) -> None:
    """Its socket goes; containerd then runs `delete`, which kills what is left."""
    pid = own.run("left", SLEEP)
    waiting, answers = own.later("Wait", id="left")
    assert wait_until(lambda: own.call("State", id="left").pid == pid)
    own.process.terminate()
    code = own.process.wait(PATIENCE_S)
    survived = own.is_alive(pid)
    waiting.join(PATIENCE_S)

    assert (0, True) == (code, survived)
    assert [ConnectionClosedError] == [type(answer) for answer in answers]
    assert not own.path.exists()


def test_delete_cleans_up_after_a_daemon_that_was_killed(own: Served) -> None:
    """By what is on disk; it tells who it was, and a second one finds nothing."""
    pid = own.run("crashed", SLEEP)
    own.process.kill()
    own.process.wait()
    results = [own.action("crashed", "delete") for _ in range(2)]

    assert [(0, b"")] * 2 == [(result.returncode, result.stderr) for result in results]
    assert [(pid, 137)] * 2 == [
        (answer.pid, answer.exit_status) for answer in (DeleteResponse.FromString(result.stdout) for result in results)
    ]
    assert wait_until(lambda: not own.is_alive(pid))
    assert not (own.root / "ns" / "crashed").exists()
