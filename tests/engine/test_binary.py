"""Log targets that are programs: how they are started, get ready, read, end, and what happens when they do not."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.engine import binary
from shim.engine.binary import BinaryLogger, Farewell, LoggedStreams, logger_command
from shim.engine.call import ChildFds
from shim.errors import StdioError
from shim.runtime.logger import Logger
from tests.engine.loggers import CALL_READY, COPY, READY, OwnReaper, write_logger
from tests.fakes import PATIENCE_S, LoopThread, open_descriptors, wait_until


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("binary:///bin/log", ["/bin/log"]),
        ("binary-v2:///bin/log?", ["/bin/log"]),
        ("binary:///bin/log?a=1&b=2", ["/bin/log", "a", "1", "b", "2"]),
        ("binary:///bin/log?z=1&a=2&z=3", ["/bin/log", "z", "1", "a", "2"]),
        ("binary:///bin/log?only", ["/bin/log", "only", ""]),
        ("binary:///bin/log?k=a=b&&e=", ["/bin/log", "k", "a=b", "e", ""]),
        ("binary:///a%20b/l%C3%B6g?k+1=a+b%2Bc%26", ["/a b/lög", "k 1", "a b+c&"]),
        ("binary:///bin/log?bad=%zz&good=1&x;y=2&short=%4", ["/bin/log", "good", "1"]),
        ("binary:///bin/log?a=1#fragment", ["/bin/log", "a", "1"]),
    ],
)
def test_logger_command(uri: str, expected: list[str]) -> None:
    """Each key once, in its order of appearance, with its first value."""
    assert expected == logger_command(uri)


@pytest.mark.parametrize("uri", ["binary://", "binary://bin/log", "binary:///a%2", "binary:///%zz", "binary:///%00"])
def test_a_uri_without_a_program_is_refused(uri: str) -> None:
    """In words that name it."""
    with pytest.raises(StdioError) as caught:
        logger_command(uri)

    assert str(caught.value).startswith(f"failed to create init process I/O: {uri}: ")


class Logged:
    """A process whose output goes to a script, from its start to the script's end."""

    def __init__(self, folder: Path, thread: LoopThread) -> None:
        self.folder = folder
        self.thread = thread
        self.reaper = OwnReaper()
        self.log = folder / "shim.log"
        self.log.touch()
        self.logger = Logger.open(str(self.log), is_debug=False)
        self.streams: list[LoggedStreams] = []
        self.farewell = Farewell(thread.loop)

    def make(self, *lines: str, scheme: str = "binary", query: str = "", **owner: int) -> LoggedStreams:
        """Return streams to a script."""
        uri = f"{scheme}://{write_logger(self.folder, *lines)}{query}"
        logger = BinaryLogger(self.reaper, uri, "e1", "ns")
        self.streams.append(LoggedStreams(self.thread.loop, self.logger, self.farewell, logger, **owner))
        return self.streams[-1]

    def open(self, *lines: str, scheme: str = "binary", query: str = "", **owner: int) -> LoggedStreams:
        """Return open streams to a script."""
        streams = self.make(*lines, scheme=scheme, query=query, **owner)
        streams.open()
        streams.start()
        return streams

    def read(self, name: str) -> str:
        """Return what the script has written."""
        return (self.folder / name).read_text()

    def status(self) -> int:
        """Wait for the script's end, and return its exit status."""
        exit_ = self.reaper.spawned[-1].wait(PATIENCE_S)
        assert exit_ is not None
        return exit_.status


@pytest.fixture
def logged(tmp_path: Path, thread: LoopThread) -> Iterator[Logged]:
    """A maker of loggers; in the end none of them lives and nothing is open."""
    before = open_descriptors()
    logged = Logged(tmp_path, thread)
    yield logged
    for streams in logged.streams:
        streams.close()
    thread.settle()
    for child in logged.reaper.spawned:
        child.kill(signal.SIGKILL)
        assert child.wait(PATIENCE_S) is not None
    os.close(logged.logger.fd)
    thread.settle()
    assert wait_until(lambda: before == open_descriptors())


def output(streams: LoggedStreams) -> tuple[int, int]:
    """Return the process's ends of stdout and stderr."""
    _, stdout, stderr = streams.child_fds
    assert stdout is not None
    assert stderr is not None
    return stdout, stderr


def test_a_logger_gets_output_arguments_and_names(logged: Logged) -> None:
    """Its environment is two variables, its stdio is /dev/null, and no other descriptor reaches it."""
    streams = logged.open(
        'printf "%s\\n" "$@" >"$here/args"',
        'tr "\\0" "\\n" </proc/$$/environ >"$here/env"',
        # By the shell alone: what it starts for a pipeline or a redirection shows in its own descriptors.
        'for at in /proc/$$/fd/*; do [ -e "$at" ] && fds="$fds ${at##*/}"; done',
        'for fd in 0 1 2; do [ "/proc/$$/fd/$fd" -ef /dev/null ] && null="$null $fd"; done',
        'echo "$fds" >"$here/fds"; echo "$null" >"$here/null"',
        READY,
        COPY,
        query="?tag=x+y&empty",
    )
    stdout, stderr = output(streams)
    os.write(stdout, b"to out")
    os.write(stderr, b"to err")
    is_drained = streams.wait_drained(PATIENCE_S)

    assert is_drained
    assert ["tag", "x y", "empty", ""] == logged.read("args").split("\n")[:-1]
    assert {"CONTAINER_ID=e1", "CONTAINER_NAMESPACE=ns"} == set(logged.read("env").split())
    assert ["0", "1", "2"] == logged.read("null").split()
    assert {"0", "1", "2", "3", "4", "5"} == {fd for fd in logged.read("fds").split() if int(fd) < 10}
    assert ("to out", "to err", "ended\n") == (logged.read("out"), logged.read("err"), logged.read("end"))
    assert 0 == logged.status()
    assert "" == logged.log.read_text()


@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
def test_the_process_waits_for_a_logger_to_be_ready(logged: Logged, scheme: str) -> None:
    """Nothing is written before."""
    streams = logged.open("sleep 0.2", 'echo >"$here/was-ready"', CALL_READY, COPY, scheme=scheme)

    assert (logged.folder / "was-ready").exists()
    assert ChildFds(None, *output(streams)) == streams.child_fds


def test_an_old_logger_that_crashes_counts_as_ready(logged: Logged) -> None:
    """As Go's shim has it: the container runs without its log."""
    streams = logged.open("exit 3")

    assert 3 == logged.status()
    assert streams.wait_drained(PATIENCE_S)


def test_a_new_logger_must_say_that_it_is_ready(logged: Logged) -> None:
    """Or the operation fails, in upstream's words."""
    streams = logged.make("exit 3", scheme="binary-v2")
    with pytest.raises(StdioError) as caught:
        streams.open()

    text = f"logging binary {logged.folder}/logger did not call ready (it may have crashed or exited prematurely)"
    assert text == str(caught.value)


@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
def test_a_logger_that_never_gets_ready_is_killed(logged: Logged, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operation fails after the limit."""
    monkeypatch.setattr(binary, "READY_LIMIT_S", 0.1)
    streams = logged.make("exec sleep 1000", scheme=scheme)
    with pytest.raises(StdioError, match=r"^logging binary .*/logger did not call ready within 0\.1 s$"):
        streams.open()

    assert 137 == logged.status()


def test_a_logger_that_does_not_exist_fails_in_gos_words(logged: Logged, thread: LoopThread) -> None:
    """Which name it."""
    streams = LoggedStreams(
        thread.loop, logged.logger, logged.farewell, BinaryLogger(logged.reaper, "binary:///no/logger", "c", "n")
    )
    with pytest.raises(StdioError) as caught:
        streams.open()
    drained = streams.wait_drained(0.0)
    streams.close()

    prefix = "failed to create init process I/O: failed to start binary process"
    assert f"{prefix}: fork/exec /no/logger: no such file or directory" == str(caught.value)
    assert drained


def test_a_logger_that_dies_early_neither_blocks_nor_breaks_the_process(logged: Logged) -> None:
    """Far more than the pipes hold goes nowhere, and the shim's log says why."""
    streams = logged.open(CALL_READY, "exit 7", scheme="binary-v2")
    for fd in output(streams):
        chunk = memoryview(bytes(1 << 20))
        while chunk:
            chunk = chunk[os.write(fd, chunk) :]

    assert wait_until(lambda: 'msg="logging binary has ended early"' in logged.log.read_text())
    assert "status=7" in logged.log.read_text()
    assert streams.wait_drained(PATIENCE_S)


def test_a_logger_that_stops_at_the_end_of_its_input_gets_no_signal(logged: Logged) -> None:
    """So what it has read is written."""
    streams = logged.open(READY, 'trap "echo term >$here/term" TERM', COPY)
    stdout, _ = output(streams)
    os.write(stdout, b"x" * 50000)

    assert streams.wait_drained(PATIENCE_S)
    assert 50000 == len(logged.read("out"))
    assert not (logged.folder / "term").exists()


def test_a_logger_that_goes_on_gets_sigterm(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the end of its input."""
    monkeypatch.setattr(binary, "END_OF_INPUT_S", 0.05)
    streams = logged.open(READY, "exec sleep 1000")

    assert streams.wait_drained(PATIENCE_S)
    assert 128 + signal.SIGTERM == logged.status()


def test_a_logger_that_ignores_sigterm_is_killed(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its time is up, whether somebody waits for it or not."""
    monkeypatch.setattr(binary, "STOP_LIMIT_S", 0.1)
    streams = logged.open('trap "" TERM', READY, "exec sleep 1000")
    is_drained = streams.wait_drained(0.0)
    streams.close()

    assert not is_drained
    assert 137 == logged.status()


def test_a_logger_that_is_still_there_at_the_daemons_end_is_killed(logged: Logged, thread: LoopThread) -> None:
    """Nobody would be there when its time is up."""
    logged.open('trap "" TERM', READY, "exec sleep 1000").close()
    thread.loop.call_soon(logged.farewell.end)

    assert 137 == logged.status()


def test_a_logger_that_does_not_read_holds_up_delete_for_so_long_only(
    logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is told to go."""
    monkeypatch.setattr(binary, "STOP_LIMIT_S", 0.1)
    streams = logged.open(READY, "exec sleep 1000")
    os.write(output(streams)[0], b"x")
    start = time.monotonic()
    is_drained = streams.wait_drained(0.1)
    streams.close()

    assert not is_drained
    assert time.monotonic() - start < PATIENCE_S
    assert 128 + signal.SIGTERM == logged.status()


def test_pipes_belong_to_whom_the_options_say(logged: Logged) -> None:
    """As with any other kind of output."""
    streams = logged.open(READY, COPY, uid=1234, gid=2345)

    assert [(1234, 2345)] * 2 == [(info.st_uid, info.st_gid) for info in map(os.fstat, output(streams))]


@pytest.mark.parametrize("act", ["close_stdin", "process_exited", "start"])
def test_what_means_nothing_here_changes_nothing(logged: Logged, act: str) -> None:
    """There is no input, and the logger outlives the process."""
    streams = logged.open(READY, COPY)
    method: Callable[[], None] = getattr(streams, act)
    method()
    streams.resize(80, 24)
    os.write(output(streams)[0], b"x")

    assert streams.console_socket is None
    assert streams.wait_drained(PATIENCE_S)
    assert "x" == logged.read("out")
