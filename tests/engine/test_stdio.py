"""The stdio of a process without a terminal: the client's fifos and files on one side, pipes on the other."""

import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.engine.call import ChildFds
from shim.engine.process import Process
from shim.engine.stdio import StdinHold, Stdio, Streams, scheme_of
from shim.errors import StdioError
from tests.engine.world import NO_STDIO, World
from tests.fakes import PATIENCE_S, LoopThread, open_descriptors, wait_until

MODULE = "shim.engine.stdio"


def read_soon(fd: int, patience_s: float = PATIENCE_S) -> bytes | None:
    """Read from a non-blocking descriptor; None when nothing came."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            return os.read(fd, 65536)
        except BlockingIOError:
            time.sleep(0.002)
    return None


def read_nothing(fd: int) -> bytes | None:
    """Read what should not come."""
    return read_soon(fd, 0.05)


class Client:
    """The client's fifos, and the process's ends of the pipes as the runtime would hold them."""

    def __init__(self, folder: Path, thread: LoopThread) -> None:
        self.folder = folder
        for name in ("in", "out", "err"):
            os.mkfifo(folder / name)
        self.stdio = Stdio(str(folder / "in"), str(folder / "out"), str(folder / "err"))
        self.streams = Streams(thread.loop, self.stdio)
        self.process = [-1, -1, -1]

    def reader(self, name: str) -> int:
        """Open a fifo for reading, without waiting for its writer."""
        return os.open(self.folder / name, os.O_RDONLY | os.O_NONBLOCK)

    def writer(self) -> int:
        """Open stdin for writing; its reader must be there."""
        return os.open(self.folder / "in", os.O_WRONLY | os.O_NONBLOCK)

    def launch(self) -> None:
        """Open everything, and give the pipes to a process."""
        self.streams.open()
        fds = self.streams.child_fds
        self.process = [os.dup(fd) if fd is not None else -1 for fd in fds]
        for fd in self.process[:1]:
            os.set_blocking(fd, False)
        self.streams.start()

    def end(self, *numbers: int) -> None:
        """Close some of the process's descriptors."""
        for number in numbers:
            if self.process[number] >= 0:
                os.close(self.process[number])
            self.process[number] = -1


@pytest.fixture
def client(tmp_path: Path, thread: LoopThread) -> Iterator[Client]:
    """A client with fifos; nothing may be open in the end."""
    before = open_descriptors()
    client = Client(tmp_path, thread)
    yield client
    client.end(0, 1, 2)
    client.streams.close()
    client.streams.close()
    thread.settle()
    assert before == open_descriptors()


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/run/fifo/out", ("fifo", "/run/fifo/out")),
        ("fifo:///run/out", ("fifo", "/run/out")),
        ("file:///var/log/x", ("file", "/var/log/x")),
        ("binary:///bin/logger?id=x", ("binary", "/bin/logger?id=x")),
        ("", ("fifo", "")),
    ],
)
def test_scheme_of(target: str, expected: tuple[str, str]) -> None:
    """A bare path is a fifo."""
    assert expected == scheme_of(target)


def test_nothing_wanted_is_nothing_given(thread: LoopThread) -> None:
    """The process gets /dev/null three times; there is nothing to wait for."""
    before = open_descriptors()
    streams = Streams(thread.loop, NO_STDIO)
    streams.open()
    fds = streams.child_fds
    streams.start()

    assert ChildFds(None, None, None) == fds
    assert streams.wait_drained(0.0)
    assert streams.console_socket is None
    streams.close_stdin()
    streams.resize(80, 24)
    streams.process_exited()
    streams.close()
    assert before == open_descriptors()
    assert [True, False] == [NO_STDIO.is_null, Stdio(stderr="/x").is_null]


def test_output_goes_to_its_own_fifo_and_ends_with_the_process(client: Client) -> None:
    """Not with its exit but with the last holder of the pipe; then the client sees the end."""
    out, err = client.reader("out"), client.reader("err")
    client.launch()
    os.write(client.process[1], b"to out")
    os.write(client.process[2], b"to err")
    got = read_soon(out), read_soon(err)
    nothing = read_nothing(out)
    client.streams.process_exited()
    before = client.streams.wait_drained(0.05)
    client.end(1, 2)
    drained = client.streams.wait_drained(PATIENCE_S)
    ends = read_soon(out), read_soon(err)
    os.close(out)
    os.close(err)

    assert (b"to out", b"to err") == got
    assert nothing is None
    assert [False, True] == [before, drained]
    assert (b"", b"") == ends


def test_output_survives_a_client_that_goes_and_one_that_comes(client: Client) -> None:
    """As at a restart of containerd: the process never notices, nothing that fits a pipe is lost."""
    out, err = client.reader("out"), client.reader("err")
    client.launch()
    os.write(client.process[1], b"one")
    first = read_soon(out)
    os.close(out)
    os.write(client.process[1], b"two")
    time.sleep(0.02)
    os.write(client.process[1], b"three")
    again = client.reader("out")
    second = b""
    while len(second) < 8:
        second += read_soon(again) or b""
    client.end(1)
    end = read_soon(again)
    for fd in (again, err):
        os.close(fd)

    assert (b"one", b"twothree", b"") == (first, second, end)


def test_open_waits_for_the_clients_reader(client: Client) -> None:
    """It opens its ends whenever it likes."""
    opened: list[int] = []

    def read_later() -> None:
        time.sleep(0.05)
        opened.extend([client.reader("out"), client.reader("err")])

    thread = threading.Thread(target=read_later)
    start = time.monotonic()
    thread.start()
    client.launch()
    took = time.monotonic() - start
    thread.join()
    for fd in opened:
        os.close(fd)

    assert took >= 0.04


def test_open_gives_up_when_no_reader_comes(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says which fifo nobody wanted."""
    monkeypatch.setattr(f"{MODULE}.OPEN_LIMIT_S", 0.05)
    out = client.reader("out")
    with pytest.raises(StdioError) as caught:
        client.streams.open()
    os.close(out)

    assert f"failed to open {client.stdio.stderr}: nobody opened it for reading" == str(caught.value)


def test_input_ends_only_after_close_io_and_the_last_writer(client: Client) -> None:
    """Clients come and go before that; repeating is fine."""
    out, err = client.reader("out"), client.reader("err")
    client.launch()
    stdin = client.process[0]
    first = client.writer()
    os.write(first, b"one")
    got = [read_soon(stdin)]
    os.close(first)
    got.append(read_nothing(stdin))
    second = client.writer()
    client.streams.close_stdin()
    client.streams.close_stdin()
    os.write(second, b"two")
    got.append(read_soon(stdin))
    got.append(read_nothing(stdin))
    os.close(second)
    got.append(read_soon(stdin))
    for fd in (out, err):
        os.close(fd)

    assert [b"one", None, b"two", None, b""] == got


def test_close_io_before_anybody_wrote_is_the_end(client: Client) -> None:
    """No client need ever come."""
    out, err = client.reader("out"), client.reader("err")
    client.launch()
    client.streams.close_stdin()
    end = read_soon(client.process[0])
    for fd in (out, err):
        os.close(fd)

    assert b"" == end


def test_close_io_loses_nothing_that_was_written(client: Client) -> None:
    """Input that waits in the fifo comes first."""
    out, err = client.reader("out"), client.reader("err")
    client.streams.open()
    writer = client.writer()
    os.write(writer, b"x" * 60_000)
    client.streams.close_stdin()
    os.close(writer)
    client.process[0] = os.dup(client.streams.child_fds.stdin or -1)
    client.streams.start()
    received = b""
    while data := os.read(client.process[0], 65536):
        received += data
    for fd in (out, err):
        os.close(fd)

    assert b"x" * 60_000 == received


def test_close_io_before_there_is_stdio_is_remembered(client: Client, world: World) -> None:
    """A client may be that fast (nerdctl#5042)."""
    out, err = client.reader("out"), client.reader("err")
    process = Process(world.container(), "e1", client.stdio, b"{}")
    process.close_stdin()
    client.launch()
    before = read_nothing(client.process[0])
    process.attach(client.streams)
    after = read_soon(client.process[0])
    for fd in (out, err):
        os.close(fd)

    assert (None, b"") == (before, after)


def test_close_io_before_open_counts(client: Client, thread: LoopThread) -> None:
    """The hold is not even taken."""
    hold = StdinHold(thread.loop)
    hold.release()
    hold.open(client.stdio.stdin)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    hold.start(write_end)
    end = os.read(read_end, 10)
    os.close(read_end)
    hold.close()

    assert b"" == end


def test_a_process_that_closes_its_stdin_breaks_nothing(client: Client) -> None:
    """What the client writes goes nowhere, and it is not blocked."""
    out, err = client.reader("out"), client.reader("err")
    client.launch()
    client.end(0)
    writer = client.writer()
    for _ in range(40):
        os.set_blocking(writer, True)
        os.write(writer, b"y" * 65536)
    os.close(writer)
    for fd in (out, err):
        os.close(fd)


def test_only_what_is_wanted_has_a_pipe(client: Client, thread: LoopThread) -> None:
    """An empty path is /dev/null."""
    out = client.reader("out")
    streams = Streams(thread.loop, Stdio(stdout=client.stdio.stdout))
    streams.open()
    fds = streams.child_fds
    streams.close()
    os.close(out)

    assert (None, True, None) == (fds.stdin, fds.stdout is not None, fds.stderr)


def test_a_file_takes_both_outputs(tmp_path: Path, thread: LoopThread) -> None:
    """Its folders are made; the process may write to either in turn."""
    path = tmp_path / "a" / "b" / "log"
    streams = Streams(thread.loop, Stdio(stdout=f"file://{path}", stderr="/ignored"))
    before = os.umask(0o022)
    streams.open()
    os.umask(before)
    fds = [os.dup(fd) for fd in (streams.child_fds.stdout, streams.child_fds.stderr) if fd is not None]
    streams.start()
    for number in range(6):
        os.write(fds[number % 2], b"%d\n" % number)
        assert wait_until(lambda number=number: path.read_bytes().endswith(b"%d\n" % number))  # type: ignore[misc]
    for fd in fds:
        os.close(fd)
    assert streams.wait_drained(PATIENCE_S)
    streams.close()

    assert b"0\n1\n2\n3\n4\n5\n" == path.read_bytes()
    assert 0o644 == stat.S_IMODE(path.stat().st_mode)


def test_plain_files_are_appended_to_but_not_made(tmp_path: Path, thread: LoopThread) -> None:
    """Paths without a scheme that are no fifos."""
    (tmp_path / "log").write_bytes(b"before\n")
    stdio = Stdio(stdout=str(tmp_path / "log"), stderr=str(tmp_path / "log"))
    streams = Streams(thread.loop, stdio)
    streams.open()
    fds = [os.dup(fd) for fd in (streams.child_fds.stdout, streams.child_fds.stderr) if fd is not None]
    streams.start()
    for fd in fds:
        os.write(fd, b"x\n")
        os.close(fd)
    assert streams.wait_drained(PATIENCE_S)
    streams.close()
    missing = Streams(thread.loop, Stdio(stdout=str(tmp_path / "none")))
    with pytest.raises(StdioError, match=rf"^failed to open {tmp_path}/none: no such file or directory$"):
        missing.open()
    missing.close()

    assert b"before\nx\nx\n" == (tmp_path / "log").read_bytes()


def test_a_plain_file_for_both_outputs_is_opened_once(tmp_path: Path, thread: LoopThread) -> None:
    """A file system without atomic appends must not see two writers."""
    path = tmp_path / "log"
    path.touch()
    streams = Streams(thread.loop, Stdio(stdout=str(path), stderr=str(path)))
    before = open_descriptors()
    streams.open()
    mine = [fd for fd in open_descriptors() if fd not in before and os.readlink(f"/proc/self/fd/{fd}") == str(path)]
    os.lseek(mine[0], 5, os.SEEK_SET)
    offsets = [os.lseek(fd, 0, os.SEEK_CUR) for fd in mine]
    streams.close()

    assert [5, 5] == offsets


def test_a_fifo_whose_name_goes_is_held_all_the_same(
    tmp_path: Path, thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may remove its fifos as soon as they are open."""
    path = tmp_path / "out"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    opened = os.open

    def open_and_remove(name: str, flags: int, *mode: int) -> int:
        fd = opened(name, flags, *mode)
        if name == str(path):
            path.unlink()
        return fd

    monkeypatch.setattr(os, "open", open_and_remove)
    streams = Streams(thread.loop, Stdio(stdout=str(path)))
    streams.open()
    child = os.dup(streams.child_fds.stdout or -1)
    streams.start()
    os.write(child, b"x")
    got = read_soon(reader)
    os.close(child)
    streams.close()
    os.close(reader)

    assert b"x" == got


def test_input_may_be_a_plain_file(tmp_path: Path, thread: LoopThread) -> None:
    """Its end is the end."""
    (tmp_path / "input").write_bytes(b"hello")
    streams = Streams(thread.loop, Stdio(stdin=str(tmp_path / "input")))
    streams.open()
    stdin = os.dup(streams.child_fds.stdin or -1)
    streams.start()
    got = os.read(stdin, 100), os.read(stdin, 100)
    os.close(stdin)
    streams.close()
    thread.settle()

    assert (b"hello", b"") == got


@pytest.mark.parametrize("target", ["binary:///bin/x", "http://x", "ttrpc+unix:///x?streaming_id=1"])
def test_an_unknown_scheme_is_refused_by_name(thread: LoopThread, target: str) -> None:
    """Before anything is opened."""
    with pytest.raises(StdioError) as caught:
        Streams(thread.loop, Stdio(stdout=target))

    scheme = target.partition("://")[0]
    assert f"failed to create init process I/O: unknown STDIO scheme {scheme}" == str(caught.value)


def test_the_processs_ends_belong_to_who_is_asked(
    client: Client, thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root inside a user namespace, as a rule; the shim's own ends stay its own."""
    owned: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "fchown", lambda fd, uid, gid: owned.append((fd, uid, gid)))
    readers = [client.reader(name) for name in ("out", "err")]
    streams = Streams(thread.loop, client.stdio, 1000, 0)
    streams.open()
    fds = streams.child_fds
    streams.close()
    for fd in readers:
        os.close(fd)

    assert [(fds.stdin, 1000, 0), (fds.stdout, 1000, 0), (fds.stderr, 1000, 0)] == owned


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_an_owner_that_is_refused_leaves_nothing_open(
    client: Client, thread: LoopThread, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """At whichever of the three."""
    calls: list[int] = []

    def refuse(fd: int, _uid: int, _gid: int) -> None:
        calls.append(fd)
        if len(calls) == failing:
            raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    readers = [client.reader(name) for name in ("out", "err")]
    before = open_descriptors()
    streams = Streams(thread.loop, client.stdio, 1000, 0)
    with pytest.raises(StdioError, match=r"^failed to create init process I/O: operation not permitted$"):
        streams.open()
    streams.close()
    thread.settle()
    after = open_descriptors()
    for fd in readers:
        os.close(fd)

    assert before == after


@pytest.mark.parametrize("stage", ["made", "opened", "started", "ended"])
def test_close_leaves_nothing_open_however_far_it_got(client: Client, thread: LoopThread, stage: str) -> None:
    """A failed Create may stop at any point."""
    readers = [client.reader(name) for name in ("out", "err")]
    before = open_descriptors()
    streams = Streams(thread.loop, client.stdio)
    if stage != "made":
        streams.open()
    if stage in ("started", "ended"):
        streams.start()
    if stage == "ended":
        assert streams.wait_drained(PATIENCE_S)
    streams.close()
    thread.settle()
    after = open_descriptors()
    for fd in readers:
        os.close(fd)

    assert before == after


def test_every_descriptor_is_close_on_exec(client: Client) -> None:
    """Else an engine that is spawned meanwhile would hold the pipe open."""
    readers = [client.reader(name) for name in ("out", "err")]
    before = set(open_descriptors())
    client.streams.open()
    opened = [fd for fd in open_descriptors() if fd not in before]
    inheritable = [fd for fd in opened if os.get_inheritable(fd)]
    for fd in readers:
        os.close(fd)

    assert 12 == len(opened)
    assert [] == inheritable
