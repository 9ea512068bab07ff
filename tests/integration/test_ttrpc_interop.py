"""Our ttrpc and Go's over real sockets, in every pairing that Debian's containerd offers (`--containerd`).

Our clients call containerd's event service and Go's shim; Go's clients in `ctr shim`, containerd and Go's shim call our
servers.  Each of them runs with the blocking library and with asyncio's.  The daemon is private: Go's servers do not
survive every malformed request.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from shim import ttrpc
from shim.api import events_pb2
from shim.api import task_v2_pb2 as task_api
from shim.api.events_service_pb2 import ForwardRequest
from shim.api.events_service_ttrpc import EVENTS_RPCS, EventsRpcs
from shim.api.task_types_pb2 import RUNNING, STOPPED, ProcessInfo
from shim.api.task_v2_ttrpc import TaskRpcs
from shim.api.types_pb2 import Envelope
from shim.testing.containerd import GO_RUNTIME, Containerd
from shim.testing.events import EventLog
from shim.testing.leftovers import SOCKET_FOLDER, read_process, socket_name
from shim.testing.releases import Release
from shim.ttrpc import Code, Deferred, Method, RpcError, Service
from tests.integration import interop
from tests.integration.byhand import refusal
from tests.integration.client import wait_until
from tests.integration.interop import Ends, GoHand, Tap, Task

EVENTS: Final = EventsRpcs.FORWARD.service
LIFE: Final = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
TOO_LARGE: Final = 5 << 20
PRETENDED: Final = "io.containerd.pretended.v1"

pytest_generate_tests = interop.pytest_generate_tests
go, ends = interop.go, interop.ends


@pytest.fixture(scope="module")
def daemon(go: Release) -> Iterator[Containerd]:
    """Return a containerd of its own, which has to survive all tests."""
    with Containerd(go, runtime=GO_RUNTIME) as running:
        running.import_image()
        yield running
        assert running.is_running
        assert "panic" not in running.log
    assert [] == running.left_behind


@pytest.fixture(scope="module")
def log(daemon: Containerd) -> EventLog:
    """Return the events that containerd passes on."""
    return daemon.events()


@pytest.fixture
def hand(go: Release) -> Iterator[GoHand]:
    """Return a hand to run Go's shim with; in the end nothing may be left of what it started."""
    hand = GoHand(go)
    try:
        yield hand
    finally:
        left = hand.close()

    assert [] == left


@pytest.fixture
def name() -> str:
    """Return a container id that no other test has."""
    return f"interop-{secrets.token_hex(4)}"


# Our clients, Go's servers.


def envelope(namespace: str, topic: str, container: str = "") -> ForwardRequest:
    """Return an event about running out of memory."""
    event = events_pb2.TaskOOM(container_id=container)
    packed = AnyMessage(type_url=event.DESCRIPTOR.full_name, value=event.SerializeToString())
    request = ForwardRequest(envelope=Envelope(namespace=namespace, topic=topic, event=packed))
    request.envelope.timestamp.GetCurrentTime()
    return request


def test_containerd_takes_an_event(daemon: Containerd, log: EventLog, ends: Ends, name: str) -> None:
    """The answer is empty, and the event goes to containerd's own clients."""
    client = ends.connect(f"unix://{daemon.address}.ttrpc")

    assert Empty() == client.call(EventsRpcs.FORWARD, envelope(daemon.namespace, "/tasks/oom", name), timeout_s=10)
    assert daemon.namespace == log.wait("/tasks/oom", name).namespace


def test_containerd_refuses_what_is_wrong(daemon: Containerd, ends: Ends) -> None:
    """Each call gets its status, and the connection goes on; the envelope is there always, else containerd dies."""
    client = ends.connect(f"unix://{daemon.address}.ttrpc")
    forward = EventsRpcs.FORWARD

    assert (3, "event envelope has invalid namespace: identifier must not be empty: invalid argument") == refusal(
        lambda: client.call(forward, envelope("", "/tasks/oom"), timeout_s=10)
    )
    assert (3, """envelope topic "nope": must start with '/': invalid argument""") == refusal(
        lambda: client.call(forward, envelope(daemon.namespace, "nope"), timeout_s=10)
    )
    code, text = refusal(lambda: client.call_raw(EVENTS, "Forward", b"\xff\xff", timeout_s=10))

    assert (13, True) == (code, text.startswith("ttrpc: error unmarshalling payload: "))
    assert (12, "service no.Such") == refusal(lambda: client.call_raw("no.Such", "Forward", b"", timeout_s=10))
    assert (12, "method Backward") == refusal(lambda: client.call_raw(EVENTS, "Backward", b"", timeout_s=10))
    assert b"" == client.call_raw(
        EVENTS, "Forward", envelope(daemon.namespace, "/tasks/oom").SerializeToString(), timeout_s=10
    )


def test_many_calls_at_once_are_told_apart(daemon: Containerd, ends: Ends) -> None:
    """Containerd answers in another order than it is asked; every caller gets the answer to its own call."""
    client = ends.connect(f"unix://{daemon.address}.ttrpc")

    def call(number: int) -> tuple[int, str]:
        return refusal(lambda: client.call_raw(EVENTS, f"Method{number}", b"", timeout_s=20))

    with ThreadPoolExecutor(16) as threads:
        assert [(12, f"method Method{number}") for number in range(400)] == list(threads.map(call, range(400)))


def test_whole_life_in_gos_shim(hand: GoHand, ends: Ends, name: str) -> None:
    """Every step from Connect to Shutdown, with what the shim refuses in between, on one connection."""
    address = hand.start_go(name)
    task = Task(ends.connect(address), interop.task_service(hand.release), name)
    shim_pid = task.connect().shim_pid

    assert read_process(shim_pid) is not None
    assert (5, "container not created: not found") == refusal(task.state)
    assert (5, "container not created: not found") == refusal(
        lambda: task.call(TaskRpcs.PIDS, task_api.PidsRequest(id=name))
    )

    pid = task.call(TaskRpcs.CREATE, hand.create_request(name)).pid
    code, text = refusal(lambda: task.call(TaskRpcs.CREATE, hand.create_request(name)))

    assert (2, True) == (code, text.startswith("OCI runtime create failed: ") and "already exists" in text)
    assert (4, "context deadline exceeded") == refusal(lambda: task.wait(0.3))
    assert pid == task.start()
    assert (2, "cannot start a running process") == refusal(task.start)
    assert (5, "process does not exist nope: not found") == refusal(lambda: task.state("nope"))
    assert (RUNNING, pid) == ((state := task.state()).status, state.pid)

    task.shutdown()

    assert (shim_pid, pid) == ((both := task.connect()).shim_pid, both.task_pid)

    with ThreadPoolExecutor(50) as threads:
        waits = [threads.submit(task.wait) for _ in range(50)]
        wait_until(lambda: sum(future.running() for future in waits) == 50, "all of them wait")
        task.kill()

        assert [137] * 50 == [future.result() for future in waits]

    assert STOPPED == task.state().status
    assert (pid, 137) == ((deleted := task.delete()).pid, deleted.exit_status)
    assert deleted.exited_at.seconds > 0

    task.shutdown()
    wait_until(lambda: read_process(shim_pid) is None, "the shim ends")

    with pytest.raises(ttrpc.ConnectionClosedError):
        task.connect()
    assert not Path(address.removeprefix("unix://")).exists()


# Go's clients, our servers.


def ctr_shim(release: Release, ends: Ends, answer: Callable[[str, Any], Message | Deferred]) -> tuple[int, str, str]:
    """Serve at the socket of a made-up shim, and return exit status, output and errors of `ctr shim state`."""
    address = f"/run/{secrets.token_hex(8)}/c.sock"
    path = SOCKET_FOLDER / socket_name(address, "default", "c1")
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [str(release.ctr), "--address", address, "--namespace", "default", "shim", "--id", "c1", "state"]
    with ends.serve(f"unix://{path}", interop.scripted_tasks(ends, answer)):
        done = subprocess.run(command, capture_output=True, text=True, timeout=interop.LIMIT_S, check=False)
    return done.returncode, done.stdout, done.stderr


def test_ctr_reads_our_answer(go: Release, ends: Ends) -> None:
    """The release's own version of the task service is asked, and what we answer is printed."""
    calls = []

    def answer(rpc: str, request: task_api.StateRequest) -> Message:
        calls.append((rpc, request.id))
        return task_api.StateResponse(id=request.id, bundle="/b", pid=4711, status=RUNNING)

    code, output, errors = ctr_shim(go, ends, answer)

    assert (0, "", [("State", "c1")]) == (code, errors, calls)
    assert {"id": "c1", "bundle": "/b", "pid": 4711, "status": RUNNING}.items() <= json.loads(output).items()


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (RpcError(Code.NOT_FOUND, "no task c1"), "code = NotFound desc = no task c1"),
        (FileExistsError("is there"), "code = AlreadyExists desc = is there"),
        (ZeroDivisionError("by zero"), "code = Unknown desc = by zero"),
        (RpcError(99, "odd"), "code = Code(99) desc = odd"),
        (SystemExit(3), "code = Unknown desc = 3"),
    ],
    ids=["status", "built-in", "fault", "unknown-code", "exit"],
)
def test_ctr_reads_our_status(go: Release, ends: Ends, error: BaseException, shown: str) -> None:
    """Whatever a handler raises is a status to Go."""

    def answer(rpc: str, request: task_api.StateRequest) -> Message:
        raise error

    assert (1, "", f"ctr: rpc error: {shown}\n") == ctr_shim(go, ends, answer)


def test_ctr_reads_that_an_answer_is_too_large(go: Release, ends: Ends) -> None:
    """Over 4 MiB the answer is a status: Go's client of 1.6 would end with a panic, later ones fail the connection."""

    def answer(rpc: str, request: task_api.StateRequest) -> Message:
        return task_api.StateResponse(id="c" * TOO_LARGE)

    code, output, errors = ctr_shim(go, ends, answer)

    assert (1, "") == (code, output)
    assert errors.startswith("ctr: rpc error: code = ResourceExhausted desc = message length ")
    assert errors.endswith(" exceed maximum message size of 4194304\n")


def test_ctr_reads_an_answer_of_the_greatest_size(go: Release, ends: Ends) -> None:
    """What just fits into 4 MiB arrives whole."""
    size = (4 << 20) - 32

    def answer(rpc: str, request: task_api.StateRequest) -> Message:
        return task_api.StateResponse(id="c" * size)

    code, output, errors = ctr_shim(go, ends, answer)

    assert (0, "") == (code, errors)
    assert size == len(json.loads(output)["id"])


class PretendedShim:
    """A task service without containers: it keeps a story of one, with a process that sleeps as its init."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.calls: list[str] = []
        self.error: RpcError | None = None
        self._process = process
        self._exit = Deferred()
        self._is_killed = False

    def answer(self, rpc: str, request: Any) -> Message | Deferred:
        """Answer any call of containerd's."""
        self.calls.append(rpc)
        pid = self._process.pid
        status = 137 if self._is_killed else 0
        match rpc:
            case "Create":
                return task_api.CreateTaskResponse(pid=pid)
            case "Start":
                if self.error is not None:
                    raise self.error
                return task_api.StartResponse(pid=pid)
            case "State":
                state = STOPPED if self._is_killed else RUNNING
                return task_api.StateResponse(id=request.id, pid=pid, status=state, exit_status=status)
            case "Wait":
                return self._exit if not self._is_killed else task_api.WaitResponse(exit_status=status)
            case "Kill":
                self._is_killed = True
                self._exit.resolve(task_api.WaitResponse(exit_status=137))
                return Empty()
            case "Delete":
                return task_api.DeleteResponse(pid=pid, exit_status=status)
            case "Connect":
                return task_api.ConnectResponse(shim_pid=pid, task_pid=pid)
            case "Pids":
                large = AnyMessage(type_url="large", value=bytes(TOO_LARGE))
                return task_api.PidsResponse(processes=[ProcessInfo(pid=pid, info=large)])
            case "Shutdown":
                return Empty()
        raise RpcError(Code.UNIMPLEMENTED, f"method {rpc}")


@pytest.fixture
def pretended(daemon: Containerd, ends: Ends) -> Iterator[PretendedShim]:
    """Return a shim that containerd drives, served by this process."""
    socket = daemon.folder / f"pretended-{secrets.token_hex(4)}.sock"
    program = daemon.bin / "containerd-shim-pretended-v1"
    program.write_text(f'#!/bin/sh\ncase " $* " in *" start "*) printf unix://{socket};; esac\n')
    program.chmod(0o755)
    with subprocess.Popen(["sleep", "1000"]) as process:
        shim = PretendedShim(process)
        try:
            with ends.serve(f"unix://{socket}", interop.scripted_tasks(ends, shim.answer)):
                yield shim
                # A task whose start failed is still there under 1.6 and 1.7.
                for task in daemon.tasks():
                    daemon.ctr("tasks", "rm", "--force", task, check=False)
        finally:
            process.kill()


def test_containerd_drives_our_server(daemon: Containerd, pretended: PretendedShim, ends: Ends, name: str) -> None:
    """From create to delete, with an answer on the way that is too large: containerd survives, and so does the rest."""
    arguments = daemon.run_arguments(name, "true", options=["--null-io"], runtime=PRETENDED)
    with daemon.popen(*arguments) as waiting:
        wait_until(lambda: "Wait" in pretended.calls and "Start" in pretended.calls, "ctr waits")
        daemon.wait_status(name, "RUNNING")
        failed = daemon.ctr("tasks", "ps", name, check=False)

        assert 1 == failed.returncode
        assert "exceed maximum message size of 4194304" in failed.stderr
        assert "RUNNING" == daemon.tasks()[name].status

        daemon.ctr("tasks", "kill", "--signal", "SIGKILL", name)
        _, errors = waiting.communicate(timeout=interop.LIMIT_S)

    assert (137, b"") == (waiting.returncode, errors)
    assert {"Create", "Start", "State", "Pids", "Wait", "Kill", "Delete", "Shutdown"} <= set(pretended.calls)
    assert [] == ends.faults


def test_containerd_passes_our_status_on(daemon: Containerd, pretended: PretendedShim, name: str) -> None:
    """What the shim refuses is what `ctr` ends with."""
    pretended.error = RpcError(Code.FAILED_PRECONDITION, "not on a Sunday")
    done = daemon.run(name, "true", options=["--null-io"], runtime=PRETENDED, check=False)

    assert 1 == done.returncode
    assert "not on a Sunday" in done.stderr


# Go's publisher, our servers.


class Sink:
    """containerd's event service; keeps what comes."""

    def __init__(self, ends: Ends) -> None:
        self.envelopes: list[Envelope] = []
        self.contexts: list[ttrpc.CallContext] = []
        self.remaining: list[float | None] = []
        methods = [Method(rpc.name, rpc.request, rpc.response, ends.handler(self._forward)) for rpc in EVENTS_RPCS]
        self.service = Service(EVENTS, {method.name: method for method in methods})

    @property
    def topics(self) -> list[str]:
        """What has come so far."""
        return [envelope.topic for envelope in list(self.envelopes)]

    def wait(self, count: int) -> None:
        """Wait for events."""
        wait_until(lambda: len(self.envelopes) >= count, f"{count} events, only {self.topics}")

    def _forward(self, context: ttrpc.CallContext, request: ForwardRequest) -> Empty:
        self.remaining.append(context.remaining())
        self.contexts.append(context)
        self.envelopes.append(request.envelope)
        return Empty()


def live(task: Task) -> None:
    """Live a container's life after Create."""
    task.start()
    task.kill()
    task.wait()
    task.delete()


def test_gos_publisher_calls_our_server(hand: GoHand, ends: Ends, name: str) -> None:
    """On one connection, with ids 1, 3, 5, 7, the namespace as metadata and a deadline of five seconds, in order."""
    sink = Sink(ends)
    path = hand.folder / "sink.sock"
    with ends.serve(f"unix://{path}", [sink.service]), Tap(hand.folder / "tap.sock", path) as tap:
        task = Task(ends.connect(hand.start_go(name, tap.address)), interop.task_service(hand.release), name)
        task.call(TaskRpcs.CREATE, hand.create_request(name))
        live(task)
        sink.wait(4)  # before its shim ends, and with it what it has not sent yet
        task.shutdown()

    assert LIFE == sink.topics
    assert [hand.namespace] * 4 == [each.namespace for each in sink.envelopes]
    assert ["containerd.events.TaskCreate", "containerd.events.TaskStart"] == [
        each.event.type_url for each in sink.envelopes[:2]
    ]
    assert [(0, number) for number in (1, 3, 5, 7)] == [(each.connection, each.stream_id) for each in tap.seen]
    assert {("containerd-namespace-ttrpc", hand.namespace)} == {
        pair for each in sink.contexts for pair in each.metadata
    }
    assert all(0 < 5e9 - each.request.timeout_ns < 1e9 for each in tap.seen), tap.seen
    assert [True] * 4 == [left is not None and 0 < left <= 5.0 for left in sink.remaining]
    assert [] == ends.faults


def test_gos_publisher_finds_our_next_server(hand: GoHand, ends: Ends, name: str) -> None:
    """A server that ends closes its connections, so that Go's client opens another at the next event; none is lost."""
    first, second = Sink(ends), Sink(ends)
    address = f"unix://{hand.folder / 'sink.sock'}"
    with ends.serve(address, [first.service]):
        started = hand.start_go(name, address.removeprefix("unix://"))
        task = Task(ends.connect(started), interop.task_service(hand.release), name)
        task.call(TaskRpcs.CREATE, hand.create_request(name))
        first.wait(1)
    with ends.serve(address, [second.service]):
        live(task)
        second.wait(3)  # before its shim ends, and with it what it would send once more a second later
        task.shutdown()

    assert LIFE == first.topics + second.topics
