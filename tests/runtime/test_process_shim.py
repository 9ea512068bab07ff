"""The shim of plain processes, called past containerd: what is hard to bring about through it."""

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.api.bootstrap_pb2 import BootstrapParams
from shim.api.task_v3_ttrpc import TaskRpcs
from shim.testing import EventService
from shim.ttrpc import Client, RpcError, connect
from tests.fakes import PATIENCE_S, wait_until
from tests.runtime.home import Home, ask


class Processes(Home):
    """A bundle, and the daemon that serves its one container, `c`."""

    def begin(self, containerd: EventService) -> Client:
        """Start the daemon, whose socket is in a folder of ours."""
        params = BootstrapParams(instance_id=self.id, namespace="n", socket_dir=str(self.sockets))
        started = self.start(stdin=params.SerializeToString(), TTRPC_ADDRESS=containerd.path)

        assert (0, b"") == (started.returncode, started.stderr)
        assert wait_until(self.daemons)
        return connect(self.address, timeout_s=PATIENCE_S)

    def create(self, client: Client, command: str, **stdio: Any) -> int:
        """Create the container; its process waits at its gate."""
        spec = {"process": {"args": shlex.split(command), "env": [f"PATH={os.environ['PATH']}"]}}
        (self.bundle / "config.json").write_text(json.dumps(spec))
        pid: int = ask(client, TaskRpcs.CREATE, id="c", bundle=str(self.bundle), **stdio).pid
        return pid

    def descriptors(self) -> int:
        """Count what the daemon has open."""
        (pid,) = self.daemons()
        return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[EventService]:
    """Who takes the events."""
    with EventService(tmp_path / "ttrpc") as containerd:
        yield containerd


@pytest.fixture
def home(tmp_path: Path, sockets: Path, containerd: EventService) -> Iterator[Processes]:
    """A bundle; its daemon has met no fault by the end, and ends before containerd does."""
    home = Processes(tmp_path, sockets, "fork", "examples.process_shim")
    home.python = ("-W", "error")
    yield home
    home.close()
    assert "level=error" not in home.log()
    assert "Warning" not in home.log()


@pytest.fixture
def client(home: Processes, containerd: EventService) -> Iterator[Client]:
    """Who calls the daemon."""
    with home.begin(containerd) as client:
        ask(client, TaskRpcs.CONNECT, id="c")  # so that the connection counts as open
        yield client


def refusal(client: Client, rpc: Any, **fields: Any) -> str:
    """Return the text of a call's failure."""
    with pytest.raises(RpcError) as caught:
        ask(client, rpc, **fields)
    return caught.value.message


def topics(containerd: EventService, last: str) -> list[str]:
    """Return the topics of the container's events, once the last one is there."""
    assert wait_until(lambda: last in containerd.topics("c"))
    return [topic.removeprefix("/tasks/") for topic in containerd.topics("c")]


def is_gone(pid: int) -> bool:
    """Say whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_process_waits_at_its_gate(home: Processes, client: Client) -> None:
    """It is there from Create on, and does nothing before Start."""
    pid = home.create(client, "sh -c 'echo it runs; exit 7'")
    before = ask(client, TaskRpcs.STATE, id="c")
    empty = (home.bundle / "output.log").read_text()
    ask(client, TaskRpcs.START, id="c")
    status = ask(client, TaskRpcs.WAIT, id="c").exit_status

    assert (pid, "") == (before.pid, empty)
    assert (7, "it runs\n") == (status, (home.bundle / "output.log").read_text())
    assert "has been started" in refusal(client, TaskRpcs.START, id="c")
    assert "already exists" in refusal(client, TaskRpcs.CREATE, id="c", bundle=str(home.bundle))
    ask(client, TaskRpcs.DELETE, id="c")


@pytest.mark.parametrize("how", ["deleted", "killed"])
def test_a_container_that_never_ran_can_be_deleted(
    home: Processes, client: Client, containerd: EventService, how: str
) -> None:
    """Its process ends, and its exit is told before its delete; nothing stays open."""
    before = home.descriptors()
    pid = home.create(client, "sleep 60")
    if how == "killed":
        ask(client, TaskRpcs.KILL, id="c", signal=9)
        ask(client, TaskRpcs.WAIT, id="c")
    deleted = ask(client, TaskRpcs.DELETE, id="c")

    assert (pid, 137) == (deleted.pid, deleted.exit_status)
    assert is_gone(pid)
    assert ["create", "exit", "delete"] == topics(containerd, "/tasks/delete")
    assert wait_until(lambda: home.descriptors() <= before + 1)  # one is its connection to containerd
    assert [] == [*home.bundle.glob("*.pid")]


def test_a_start_that_fails_may_be_repeated(home: Processes, client: Client, tmp_path: Path) -> None:
    """An exec whose output cannot be opened is as if it had not been started; nothing stays open."""
    home.create(client, "sleep 60")
    ask(client, TaskRpcs.START, id="c")
    before = home.descriptors()
    spec = AnyMessage(value=json.dumps({"args": ["/bin/echo", "hello"]}).encode())
    output = tmp_path / "folder" / "output"
    ask(client, TaskRpcs.EXEC, id="c", exec_id="e", spec=spec, stdout=str(output))
    text = refusal(client, TaskRpcs.START, id="c", exec_id="e")
    between = home.descriptors()
    output.parent.mkdir()
    ask(client, TaskRpcs.START, id="c", exec_id="e")
    status = ask(client, TaskRpcs.WAIT, id="c", exec_id="e").exit_status
    ask(client, TaskRpcs.DELETE, id="c", exec_id="e")
    ask(client, TaskRpcs.KILL, id="c", signal=9)
    ask(client, TaskRpcs.WAIT, id="c")
    ask(client, TaskRpcs.DELETE, id="c")

    assert "No such file or directory" in text
    assert between <= before
    assert (0, "hello\n") == (status, output.read_text())


def test_input_comes_from_a_fifo_to_its_end(home: Processes, client: Client, tmp_path: Path) -> None:
    """Though the client may be late to open it; CloseIO has nothing to add."""
    fifo = tmp_path / "stdin"
    os.mkfifo(fifo)
    home.create(client, "cat", stdin=str(fifo))
    ask(client, TaskRpcs.START, id="c")
    with fifo.open("wb") as writer:
        writer.write(b"x" * 100_000)
        writer.flush()
        ask(client, TaskRpcs.CLOSE_IO, id="c", stdin=True)
    status = ask(client, TaskRpcs.WAIT, id="c").exit_status
    ask(client, TaskRpcs.DELETE, id="c")

    assert (0, 100_000) == (status, len((home.bundle / "output.log").read_bytes()))


def test_a_client_that_never_comes_keeps_nothing_open(home: Processes, client: Client, tmp_path: Path) -> None:
    """The fifo of the input is let go with the process."""
    fifo = tmp_path / "stdin"
    os.mkfifo(fifo)
    before = home.descriptors()
    home.create(client, "true", stdin=str(fifo))
    ask(client, TaskRpcs.START, id="c")
    ask(client, TaskRpcs.WAIT, id="c")
    ask(client, TaskRpcs.DELETE, id="c")

    assert wait_until(lambda: home.descriptors() <= before + 1)


def test_a_terminal_is_refused(home: Processes, client: Client) -> None:
    """Rather than half served."""
    assert "a terminal: not implemented" == refusal(
        client, TaskRpcs.CREATE, id="c", bundle=str(home.bundle), terminal=True
    )


def test_shutdown_waits_for_the_last_container(home: Processes, client: Client) -> None:
    """And then is the end."""
    home.create(client, "true")
    ask(client, TaskRpcs.SHUTDOWN, id="c")
    ask(client, TaskRpcs.DELETE, id="c")
    ask(client, TaskRpcs.SHUTDOWN, id="c")

    assert home.has_ended()


def test_delete_of_a_dead_daemon_ends_what_it_left(home: Processes, containerd: EventService) -> None:
    """By the bundle's files, at the gate or running; a second one finds nothing."""
    with home.begin(containerd) as client:
        pids = [home.create(client, "sh -c 'sleep 60 & sleep 60'")]
        ask(client, TaskRpcs.START, id="c")
        spec = AnyMessage(value=json.dumps({"args": ["sleep", "60"]}).encode())
        ask(client, TaskRpcs.EXEC, id="c", exec_id="e", spec=spec)
        pids.append(ask(client, TaskRpcs.START, id="c", exec_id="e").pid)
        (daemon,) = home.daemons()
        os.kill(daemon, 9)
        assert wait_until(lambda: is_gone(daemon))
    first = home.run("-namespace", "n", "-id", home.id, "delete")
    gone = wait_until(lambda: all(is_gone(pid) for pid in pids))
    home.socket.unlink()

    assert (0, b"") == (first.returncode, first.stderr)
    assert TaskRpcs.DELETE.response.FromString(first.stdout).pid == pids[0]
    assert gone
