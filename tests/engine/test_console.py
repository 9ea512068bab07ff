"""A process with a terminal: the socket that the pty comes over, and the copying after that."""

import array
import contextlib
import fcntl
import os
import socket
import stat
import struct
import termios
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.engine.binary import BinaryLogger
from shim.engine.console import Console, ConsoleSocket
from shim.engine.stdio import Stdio
from shim.errors import StdioError
from tests.engine.loggers import CALL_READY, COPY, OwnReaper, write_logger
from tests.fakes import PATIENCE_S, LoopThread, open_descriptors, wait_until


@pytest.fixture(autouse=True)
def runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where sockets are made."""
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder


def send(path: str, fds: list[int], text: bytes = b"/dev/pts/9") -> None:
    """Be runc: send descriptors over the console socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sock.sendmsg([text], rights)


def assert_true(value: bool) -> None:
    """Assert in a callback."""
    assert value


class Pty:
    """A client's fifos, a console, and a process on the other end of its pty."""

    def __init__(self, folder: Path, thread: LoopThread) -> None:
        for name in ("in", "out"):
            os.mkfifo(folder / name)
        self.stdio = Stdio(str(folder / "in"), str(folder / "out"), "/ignored", terminal=True)
        self.console = Console(thread.loop, self.stdio)
        self.out = os.open(folder / "out", os.O_RDONLY | os.O_NONBLOCK)
        self.slave = -1

    def launch(self) -> None:
        """Open the console and have the runtime send the pty."""
        self.console.open()
        assert self.console.console_socket is not None
        master, self.slave = os.openpty()
        tty.setraw(self.slave)
        send(self.console.console_socket, [master])
        os.close(master)
        self.console.start()

    def read(self, size: int) -> bytes:
        """Read what the client gets, until there is so much."""
        received = b""

        def is_enough() -> bool:
            nonlocal received
            with contextlib.suppress(BlockingIOError):
                received += os.read(self.out, 65536)
            return len(received) >= size

        wait_until(is_enough)
        return received

    def hang_up(self) -> None:
        """Close the process's end."""
        if self.slave >= 0:
            os.close(self.slave)
        self.slave = -1


@pytest.fixture
def pty(tmp_path: Path, thread: LoopThread, runtime_folder: Path) -> Iterator[Pty]:
    """A pty; nothing may be open in the end, and no socket left."""
    before = open_descriptors()
    pty = Pty(tmp_path, thread)
    yield pty
    pty.hang_up()
    pty.console.close()
    pty.console.close()
    os.close(pty.out)
    thread.settle()
    assert before == open_descriptors()
    assert [] == [*runtime_folder.iterdir()]


def test_the_socket_is_its_owners_and_short_lived(runtime_folder: Path) -> None:
    """In a folder of its own, which goes with it."""
    console_socket = ConsoleSocket()
    (folder,) = runtime_folder.iterdir()

    assert str(folder / "pty.sock") == console_socket.path
    assert folder.name.startswith("pty")
    assert 0o700 == stat.S_IMODE(folder.stat().st_mode)
    assert 0o1755 == stat.S_IMODE(os.stat(console_socket.path).st_mode)
    console_socket.close()
    assert [] == [*runtime_folder.iterdir()]


def test_a_long_runtime_folder_is_passed_over(runtime_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket's path has 107 bytes at most, to the last one."""
    room = 107 - len("/pty0123456789ab/pty.sock")
    for size in (room, room + 1):
        folder = Path(str(runtime_folder) + "/" + "x" * (size - len(str(runtime_folder)) - 1))
        folder.mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        console_socket = ConsoleSocket()
        path = console_socket.path
        console_socket.close()

        assert (size == room) is path.startswith(str(folder))
        assert len(path) <= 107


def test_a_folder_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text says what was wanted."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    before = open_descriptors()
    with pytest.raises(StdioError, match=r"^failed to create OCI runtime console socket: No such file or directory$"):
        ConsoleSocket()

    assert before == open_descriptors()


def test_receive_takes_one_descriptor() -> None:
    """For itself alone: no child shall have it."""
    console_socket = ConsoleSocket()
    read_end, write_end = os.pipe()
    send(console_socket.path, [write_end])
    os.close(write_end)
    received = console_socket.receive(PATIENCE_S)
    console_socket.close()
    os.write(received, b"x")

    assert b"x" == os.read(read_end, 10)
    assert not os.get_inheritable(received)
    os.close(received)
    os.close(read_end)


@pytest.mark.parametrize("count", [0, 2, 3, 6])
def test_receive_of_anything_else_is_an_error(count: int) -> None:
    """And nothing of it stays open."""
    before = open_descriptors()
    console_socket = ConsoleSocket()
    read_end, write_end = os.pipe()
    send(console_socket.path, [write_end] * count)
    with pytest.raises(StdioError, match=r"^failed to retrieve console master: got \d descriptors$"):
        console_socket.receive(PATIENCE_S)
    console_socket.close()
    os.close(read_end)
    os.close(write_end)

    assert before == open_descriptors()


@pytest.mark.parametrize("connects", [False, True])
def test_receive_of_nothing_gives_up(connects: bool) -> None:
    """Whether the runtime connected or not."""
    console_socket = ConsoleSocket()
    with socket.socket(socket.AF_UNIX) as silent:
        if connects:
            silent.connect(console_socket.path)
        with pytest.raises(StdioError, match=r"^failed to retrieve console master: timed out$"):
            console_socket.receive(0.03)
    console_socket.close()


def test_both_ways_are_copied(pty: Pty) -> None:
    """What the process writes, and what the client types."""
    pty.launch()
    os.write(pty.slave, b"hello")
    out = pty.read(5)
    client = os.open(pty.stdio.stdin, os.O_WRONLY | os.O_NONBLOCK)
    os.write(client, b"typed")
    typed = os.read(pty.slave, 100)
    os.close(client)

    assert (b"hello", b"typed") == (out, typed)
    assert (None, None, None) == pty.console.child_fds
    assert pty.console.console_socket is None


def test_a_client_may_leave_and_another_come(pty: Pty) -> None:
    """Until CloseIO; the process never sees an end in between."""
    pty.launch()
    typed = b""
    for text in (b"one", b"two"):
        client = os.open(pty.stdio.stdin, os.O_WRONLY | os.O_NONBLOCK)
        os.write(client, text)
        typed += os.read(pty.slave, 100)
        os.close(client)
    pty.console.close_stdin()
    os.write(pty.slave, b"still there")

    assert b"onetwo" == typed
    assert b"still there" == pty.read(11)


def test_resize_reaches_the_terminal(pty: Pty) -> None:
    """The kernel keeps 16 bits; before there is a terminal it has no effect."""
    pty.console.resize(1, 1)
    pty.launch()
    pty.console.resize(132 + (1 << 16), 50)
    size = struct.unpack("HHHH", fcntl.ioctl(pty.slave, termios.TIOCGWINSZ, bytes(8)))

    assert (50, 132, 0, 0) == size


def test_output_is_drained_at_the_exit(pty: Pty) -> None:
    """All of it, although the process is gone; then the client sees the end."""
    pty.launch()
    text = b"z" * 3000
    os.write(pty.slave, text)
    assert not pty.console.wait_drained(0.0)
    pty.hang_up()
    pty.console.process_exited()
    out = pty.read(3000)

    assert text == out
    assert pty.console.wait_drained(PATIENCE_S)
    assert wait_until(lambda: os.read(pty.out, 10) == b"")


def test_an_exit_before_the_copy_began_is_no_hang(pty: Pty, thread: LoopThread) -> None:
    """A short command may be over by the time its pty arrives."""
    gate = threading.Event()
    thread.loop.call_soon(lambda: assert_true(gate.wait(PATIENCE_S)))
    pty.console.process_exited()
    pty.launch()
    os.write(pty.slave, b"short")
    pty.hang_up()
    pty.console.process_exited()
    gate.set()

    assert b"short" == pty.read(5)
    assert pty.console.wait_drained(PATIENCE_S)


def test_without_a_reader_of_output_there_is_nothing_to_drain(thread: LoopThread) -> None:
    """A terminal that nobody watches must not fill up and stop its process."""
    console = Console(thread.loop, Stdio(terminal=True))
    console.open()
    assert console.console_socket is not None
    master, slave = os.openpty()
    tty.setraw(slave)
    send(console.console_socket, [master])
    os.close(master)
    console.start()
    os.set_blocking(slave, False)
    written, deadline = 0, time.monotonic() + PATIENCE_S
    while written < 200_000 and time.monotonic() < deadline:
        try:
            written += os.write(slave, b"x" * 1000)
        except BlockingIOError:
            time.sleep(0.001)
    os.close(slave)
    console.process_exited()
    drained = console.wait_drained(PATIENCE_S)
    console.close()
    thread.settle()

    assert (True, True) == (drained, written >= 200_000)


def test_a_logger_gets_what_a_terminal_shows_and_ends_with_it(
    tmp_path: Path, thread: LoopThread, runtime_folder: Path
) -> None:
    """By the end of its input alone: nobody signals it."""
    before = open_descriptors()
    reaper = OwnReaper()
    uri = f"binary-v2://{write_logger(tmp_path, CALL_READY, COPY)}"
    console = Console(thread.loop, Stdio(stdout=uri, terminal=True), BinaryLogger(reaper, uri, "c1", "ns"))
    console.open()
    assert console.console_socket is not None
    master, slave = os.openpty()
    tty.setraw(slave)
    send(console.console_socket, [master])
    os.close(master)
    console.start()
    os.write(slave, b"shown")
    os.close(slave)
    console.process_exited()
    is_drained = console.wait_drained(PATIENCE_S)
    exit_ = reaper.spawned[0].wait(PATIENCE_S)
    console.close()
    thread.settle()

    assert is_drained
    assert exit_ is not None
    assert 0 == exit_.status
    assert "shown" == (tmp_path / "out").read_text()
    assert before == open_descriptors()


def test_a_logger_that_dies_does_not_stop_a_terminal(tmp_path: Path, thread: LoopThread, runtime_folder: Path) -> None:
    """What it shows from then on goes nowhere."""
    reaper = OwnReaper()
    uri = f"binary://{write_logger(tmp_path, 'exit 1')}"
    console = Console(thread.loop, Stdio(stdout=uri, terminal=True), BinaryLogger(reaper, uri, "c1", "ns"))
    console.open()
    assert console.console_socket is not None
    master, slave = os.openpty()
    tty.setraw(slave)
    send(console.console_socket, [master])
    os.close(master)
    console.start()
    written = sum(os.write(slave, bytes(4096)) for _ in range(64))
    os.close(slave)
    console.process_exited()
    is_drained = console.wait_drained(PATIENCE_S)
    console.close()
    thread.settle()

    assert 64 * 4096 == written
    assert is_drained
    assert reaper.spawned[0].wait(PATIENCE_S) is not None


@pytest.mark.parametrize("target", ["file:///x", "http:///x"])
def test_a_terminal_needs_a_fifo(thread: LoopThread, target: str) -> None:
    """As in Go's shim; refused before anything is opened."""
    scheme = target.partition("://")[0]
    with pytest.raises(StdioError) as caught:
        Console(thread.loop, Stdio(stdout=target, terminal=True))

    expected = f"failed to create init process I/O: unknown STDIO scheme {scheme} for a terminal"
    assert expected == str(caught.value)


def test_a_pty_that_does_not_come_is_an_error(pty: Pty, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of the wait."""
    monkeypatch.setattr("shim.engine.console.OPEN_LIMIT_S", 0.03)
    pty.console.open()
    with pytest.raises(StdioError, match=r"^failed to retrieve console master: "):
        pty.console.start()


@pytest.mark.parametrize("stage", ["made", "opened", "started"])
def test_close_leaves_nothing_open_however_far_it_got(pty: Pty, stage: str) -> None:
    """The fixture looks: a failed Create may stop at any point."""
    if stage == "opened":
        pty.console.open()
    elif stage == "started":
        pty.launch()
    pty.console.close()

    assert pty.console.console_socket is None
