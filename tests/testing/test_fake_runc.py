"""The fake runc: what it does without a plan, and how each plan changes that.

tests/integration/test_fake_runc.py compares its words with runc's.
"""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.testing import FakeRunc, wait_until
from shim.testing.fake_runc import Moment
from shim.testing.runc_state import is_alive, mark
from tests.fakes import PATIENCE_S

MOMENTS: tuple[Moment, ...] = ("at first", "before the pid file", "after the pid file", "before the answer")


class World:
    """A fake runc, and a bundle for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runc = FakeRunc(folder / "bin")
        self.root = folder / "root"
        self.bundle = folder / "bundle"
        self.bundle.mkdir()
        self.log = folder / "log.json"
        self.wants("sleep", "1000")

    def wants(self, *args: str) -> None:
        """Write a config.json with these args."""
        (self.bundle / "config.json").write_text(json.dumps({"process": self.process(*args)}))

    def process(self, *args: str) -> dict[str, object]:
        """Return the process of a spec."""
        return {"args": args, "env": ["PATH=/bin:/usr/bin", "MARK=yes"], "cwd": str(self.folder)}

    def popen(self, *words: str, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Begin a call."""
        options = ["--root", str(self.root), "--log", str(self.log), "--log-format", "json"]
        return subprocess.Popen([self.runc.path, *options, *words], stdout=stdout, stderr=subprocess.DEVNULL)

    def run(self, *words: str) -> int:
        """Do a call, and return its exit code."""
        return self.popen(*words).wait(PATIENCE_S)

    def output(self, *words: str) -> bytes:
        """Do a call, and return what it printed."""
        with self.popen(*words, stdout=subprocess.PIPE) as process:
            return process.communicate(timeout=PATIENCE_S)[0]

    def create(self) -> int:
        """Create c1."""
        return self.run("create", "--bundle", str(self.bundle), "--pid-file", str(self.pid_file), "c1")

    def exec(self, *args: str) -> int:
        """Run an exec in c1."""
        path = self.folder / "process.json"
        path.write_text(json.dumps(self.process(*args)))
        return self.run("exec", "--process", str(path), "--detach", "--pid-file", str(self.folder / "e.pid"), "c1")

    @property
    def pid_file(self) -> Path:
        """Where create leaves the pid."""
        return self.folder / "init.pid"

    @property
    def status(self) -> str:
        """What `state` says."""
        status: str = json.loads(self.output("state", "c1"))["status"]
        return status

    def messages(self) -> list[str]:
        """Return what has been logged."""
        return [json.loads(line)["msg"] for line in self.log.read_text().splitlines()]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A fake runc; none of its processes outlives the test."""
    world = World(tmp_path)
    with world.runc:
        yield world
    assert wait_until(lambda: not world.runc.processes())


def test_a_container_goes_through_its_life(world: World) -> None:
    """Its init waits for start, runs what the spec says, and is gone when killed."""
    world.wants("sh", "-c", "echo $MARK $PWD > out; exec sleep 1000")

    assert 0 == world.create()
    assert "created" == world.status
    assert not (world.folder / "out").exists()
    assert 0 == world.run("start", "c1")
    assert wait_until(lambda: (world.folder / "out").exists() and (world.folder / "out").read_text())
    assert f"yes {world.folder}\n" == (world.folder / "out").read_text()
    assert "running" == world.status
    pid = int(world.pid_file.read_text())
    assert [pid] == json.loads(world.output("ps", "--format", "json", "c1")) == world.runc.processes()
    assert 0 == world.run("kill", "c1", "9")
    assert wait_until(lambda: "stopped" == world.status)
    assert b"null" == world.output("ps", "--format", "json", "c1")
    assert 0 == world.run("delete", "c1")
    assert 1 == world.run("state", "c1")


def test_pause_stops_and_resume_continues_all(world: World) -> None:
    """Execs too."""
    world.create()
    world.run("start", "c1")
    assert 0 == world.exec("sleep", "1000")
    pids = world.runc.processes()
    world.run("pause", "c1")

    assert 2 == len(pids)
    assert "paused" == world.status
    assert wait_until(lambda: all("\nState:\tT" in Path(f"/proc/{pid}/status").read_text() for pid in pids))
    assert 255 == world.exec("true")
    world.run("resume", "c1")
    assert "running" == world.status
    world.run("kill", "--all", "c1", "KILL")
    assert wait_until(lambda: not world.runc.processes())


def test_checkpoint_and_restore_go_by_the_image(world: World) -> None:
    """The container is gone unless it is left running; what is restored runs at once."""
    image = world.folder / "image"
    world.create()
    world.run("start", "c1")
    assert 0 == world.run("checkpoint", "--image-path", str(image), "--leave-running", "c1")
    assert "running" == world.status
    assert 0 == world.run("checkpoint", "--image-path", str(image), "c1")
    assert 1 == world.run("state", "c1")
    words = ["--detach", "--pid-file", str(world.pid_file), "-no-subreaper", "--bundle", str(world.bundle), "c1"]

    assert 1 == world.run("restore", "--image-path", str(world.folder), *words)
    assert 0 == world.run("restore", "--image-path", str(image), *words)
    assert "running" == world.status


def test_a_console_socket_gets_the_terminal(world: World) -> None:
    """Its name as the message, its master as the descriptor; the init has the other end."""
    world.wants("sh", "-c", "tty; exec sleep 1000")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(world.folder / "console"))
        listener.listen()
        options = ["--bundle", str(world.bundle), "--console-socket", str(world.folder / "console")]
        with world.popen("create", *options, "c1") as process:
            connection, _ = listener.accept()
            with connection:
                name, fds, _, _ = socket.recv_fds(connection, 4096, 1)
        world.run("start", "c1")
    with open(fds[0], "rb") as master:
        line = master.readline()

    assert 0 == process.returncode
    assert name == line.strip()


def test_update_keeps_the_resources(world: World) -> None:
    """For the test to look at."""
    world.create()
    with subprocess.Popen(
        [world.runc.path, "--root", str(world.root), "update", "--resources=-", "c1"], stdin=subprocess.PIPE
    ) as process:
        process.communicate(b'{"pids":{}}')

    assert '{"pids":{}}' == (world.root / "c1/resources").read_text()


@pytest.mark.parametrize("command", ["start", "kill", "delete", "pause", "resume", "ps", "state", "update", "exec"])
def test_a_planned_failure_has_the_tests_words(world: World, command: str) -> None:
    """On stderr and in the log; the next call is as ever."""
    world.create()
    world.runc.fails(command, "it is Friday", status=4, once=True)

    assert 4 == world.run(command, "c1")
    assert ["it is Friday"] == world.messages()
    assert "created" == world.status


def test_the_oldest_plan_counts_until_it_is_forgotten(world: World) -> None:
    """Once is once; any is any."""
    world.runc.fails("features", "first", once=True)
    world.runc.fails("any", "second")

    assert [1, 1, 1] == [world.run("features"), world.run("features"), world.run("ps", "c1")]
    world.runc.behave()
    assert 0 == world.run("features")
    assert ["first", "second", "second"] == world.messages()


def test_output_can_be_put_in_its_mouth(world: World) -> None:
    """Nothing else is done then."""
    world.runc.says("ps", b"[1, 2]", errors=b"hm", status=3)
    with subprocess.Popen([world.runc.path, "ps", "c1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        said = process.communicate()

    assert ((b"[1, 2]", b"hm"), 3) == (said, process.returncode)


@pytest.mark.parametrize("at", MOMENTS)
def test_a_call_hangs_at_a_moment_until_it_is_released(world: World, at: Moment) -> None:
    """The pid file tells the moments apart."""
    gate = world.runc.hangs("create", at=at)
    options = ["--bundle", str(world.bundle), "--pid-file", str(world.pid_file)]
    with world.popen("create", *options, "c1") as process:
        hanging = gate.wait_reached()

        assert [process.pid] == hanging
        assert (MOMENTS.index(at) >= 2) == world.pid_file.exists()
        assert (MOMENTS.index(at) >= 1) == bool(world.runc.processes())
        gate.release()
        assert 0 == process.wait(PATIENCE_S)
    assert world.pid_file.exists()


def test_a_call_that_hung_can_fail_after_it(world: World) -> None:
    """As one does whose patience has ended."""
    gate = world.runc.hangs("features", text="too late", status=9)
    with world.popen("features") as process:
        gate.wait_reached()
        gate.release()

    assert (9, ["too late"]) == (process.returncode, world.messages())


@pytest.mark.parametrize("at", MOMENTS)
def test_a_call_dies_at_a_moment(world: World, at: Moment) -> None:
    """What it has done by then stays done."""
    world.runc.dies("create", at=at)

    assert -signal.SIGKILL == world.create()
    assert (MOMENTS.index(at) >= 2) == world.pid_file.exists()
    assert (MOMENTS.index(at) >= 1) == bool(world.runc.processes())


def test_calls_that_hang_end_with_the_tests_folder(world: World, tmp_path: Path) -> None:
    """Nobody may be left when a test has failed."""
    gate = world.runc.hangs("features")
    with world.popen("features") as process:
        gate.wait_reached()
        world.runc.folder.rename(tmp_path / "moved")
        code = process.wait(PATIENCE_S)
    (tmp_path / "moved").rename(world.runc.folder)

    assert 70 == code


@pytest.mark.parametrize("command", ["create", "exec"])
def test_what_is_started_can_be_over_before_the_answer(world: World, command: str) -> None:
    """The pid file names a process that has ended."""
    if command == "exec":
        world.create()
        world.run("start", "c1")
    world.runc.exits_early(command, 3)
    pid_file = world.folder / "e.pid" if command == "exec" else world.pid_file

    assert 0 == (world.create() if command == "create" else world.exec("sleep", "1000"))
    assert int(pid_file.read_text()) not in world.runc.processes()


def test_start_can_answer_after_inits_end(world: World) -> None:
    """Whose status is its own."""
    world.wants("true")
    world.create()
    world.runc.exits_early("start")

    assert 0 == world.run("start", "c1")
    assert [] == world.runc.processes()
    assert "stopped" == world.status


def test_calls_are_recorded_as_they_saw_themselves(world: World) -> None:
    """Arguments, environment, descriptors, working directory, pid."""
    read, write = os.pipe()
    with subprocess.Popen(
        [world.runc.path, "features"], env={"A": "b"}, cwd=world.folder, stdin=read, stdout=write, pass_fds=[write]
    ) as process:
        pass
    world.run("ps", "c1")
    (call, _) = world.runc.calls()
    pipe = os.readlink(f"/proc/self/fd/{write}")
    os.close(read)
    os.close(write)

    assert (["features"], str(world.folder), process.pid) == (call.arguments, call.cwd, process.pid)
    assert "b" == call.environment["A"]
    assert {0, 1, 2, write} == call.descriptors.keys()
    assert [pipe] * 3 == [call.descriptors[fd] for fd in (0, 1, write)]
    assert ["features", "ps"] == world.runc.commands()
    world.runc.forget()
    assert [] == world.runc.calls()


def test_a_call_in_a_folder_that_is_gone_is_recorded_too(world: World) -> None:
    """As calls of a shim are whose first bundle has been removed."""
    gone = world.folder / "gone"
    gone.mkdir()
    with subprocess.Popen(["sh", "-c", 'rmdir "$PWD"; exec "$0" features', world.runc.path], cwd=gone):
        pass

    assert ["features"] == world.runc.commands()
    assert "" == world.runc.calls()[0].cwd


def test_a_pid_that_was_given_again_is_another_process() -> None:
    """By the time at which it began."""
    own = mark(os.getpid())
    pid, started = own.split()

    assert is_alive(own)
    assert not is_alive(f"{pid} {int(started) + 1}")
    assert not is_alive("")


def test_an_interpreter_with_a_long_path_is_started_by_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reads 256 bytes of a script's first line, and no spaces in a name."""
    folder = tmp_path / "with spaces"
    folder.mkdir()
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {os.path.realpath("/proc/self/exe")} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    runc = FakeRunc(folder / "bin")
    done = subprocess.run([runc.path, "features"], capture_output=True)

    assert (0, b"") == (done.returncode, done.stderr)
    assert b"mountOptions" in done.stdout
