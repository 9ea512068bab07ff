"""Copying on the loop: pipes, files and terminals; slow readers, and readers that are gone."""

import fcntl
import os
import threading
import time
import tty
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.engine.pump import Pump
from tests.fakes import PATIENCE_S, LoopThread, wait_until


class Bench:
    """Two ends to copy between, the other ends of both, and the pump."""

    def __init__(self, thread: LoopThread, source: int, sink: int, *, is_tty: bool = False) -> None:
        self.thread = thread
        self.done = threading.Event()
        for fd in (source, sink):
            os.set_blocking(fd, False)
        self.pump = Pump(thread.loop, source, sink, self.done.set, is_tty=is_tty)

    def start(self) -> None:
        """Begin to copy."""
        self.thread.call(self.pump.start)

    def is_done(self) -> bool:
        """Wait for the end."""
        return self.done.wait(PATIENCE_S)


@pytest.fixture
def pipes() -> Iterator[list[int]]:
    """Two pipes: [read end, write end] of the source, then of the sink; closed in the end if still open."""
    fds = [*os.pipe(), *os.pipe()]
    yield fds
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def close(fds: list[int], number: int) -> None:
    """Close one of the descriptors."""
    os.close(fds[number])
    fds[number] = -1


def write_all(fd: int, chunk: bytes, times: int) -> int:
    """Write a chunk many times and return the checksum of it all."""
    checksum = 0
    for number in range(times):
        piece = number.to_bytes(8, "big") + chunk[8:]
        checksum = zlib.crc32(piece, checksum)
        view = memoryview(piece)
        while view:
            view = view[os.write(fd, view) :]
    return checksum


def read_all(fd: int, size: int = 1 << 16) -> int:
    """Read to the end and return the checksum of it all."""
    checksum = 0
    while data := os.read(fd, size):
        checksum = zlib.crc32(data, checksum)
    return checksum


@pytest.mark.parametrize(("splices", "megabytes"), [(True, 64), (False, 8)])
def test_many_megabytes_come_through_intact(
    thread: LoopThread, pipes: list[int], splices: bool, megabytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the kernel's help and without."""
    if not splices:
        monkeypatch.delattr(os, "splice")
    bench = Bench(thread, pipes[0], pipes[3])
    bench.start()
    sent: list[int] = []

    def write() -> None:
        sent.append(write_all(pipes[1], os.urandom(1 << 20), megabytes))
        close(pipes, 1)

    writer = threading.Thread(target=write)

    def end() -> None:
        if bench.is_done():
            close(pipes, 3)

    closer = threading.Thread(target=end)
    for each in (writer, closer):
        each.start()
    received = read_all(pipes[2])
    for each in (writer, closer):
        each.join()

    assert [received] == sent


def test_a_slow_reader_stops_the_reading(thread: LoopThread, pipes: list[int]) -> None:
    """The source fills up, the loop idles, and all that was written comes in the end."""
    bench = Bench(thread, pipes[0], pipes[3])
    bench.start()
    os.set_blocking(pipes[1], False)
    written = 0
    while wait_until(lambda: thread.call(lambda: True)):
        try:
            written += os.write(pipes[1], b"x" * 4096)
        except BlockingIOError:
            time.sleep(0.02)
            try:
                written += os.write(pipes[1], b"x" * 4096)
            except BlockingIOError:
                break
    before = time.thread_time(), time.process_time()
    time.sleep(0.1)
    busy = time.process_time() - before[1]
    close(pipes, 1)
    received = 0
    os.set_blocking(pipes[2], True)
    while received < written:
        received += len(os.read(pipes[2], 65536))

    assert 2 * 65536 <= written <= 4 * 65536
    assert busy < 0.05
    assert bench.is_done()
    assert written == received


@pytest.mark.parametrize("splices", [True, False])
def test_a_sink_that_breaks_is_drained(
    thread: LoopThread, pipes: list[int], splices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer never notices (containerd#12462)."""
    if not splices:
        monkeypatch.delattr(os, "splice")
    bench = Bench(thread, pipes[0], pipes[3])
    bench.start()
    os.write(pipes[1], b"first")
    assert b"first" == os.read(pipes[2], 5)
    close(pipes, 2)
    write_all(pipes[1], bytes(1 << 20), 3)
    assert not bench.done.is_set()
    close(pipes, 1)

    assert bench.is_done()


def test_a_sink_that_breaks_while_it_is_full_is_drained(thread: LoopThread, pipes: list[int]) -> None:
    """Who waited for room in it goes on."""
    bench = Bench(thread, pipes[0], pipes[3])
    bench.start()
    writer = threading.Thread(target=lambda: write_all(pipes[1], bytes(1 << 20), 2))
    writer.start()
    time.sleep(0.03)
    assert writer.is_alive()
    close(pipes, 2)
    writer.join(PATIENCE_S)
    close(pipes, 1)

    assert not writer.is_alive()
    assert bench.is_done()


def test_a_file_takes_everything(thread: LoopThread, pipes: list[int], tmp_path: Path) -> None:
    """At its end, beside what others append."""
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    done = threading.Event()
    os.set_blocking(pipes[0], False)
    pump = Pump(thread.loop, pipes[0], fd, done.set)
    thread.call(pump.start)
    os.write(pipes[1], b"one\n")
    assert wait_until(lambda: path.read_bytes() == b"before\none\n")
    with open(path, "ab") as other:
        other.write(b"other\n")
    write_all(pipes[1], b"y" * 1024, 2000)
    close(pipes, 1)
    assert done.wait(PATIENCE_S)
    os.close(fd)

    assert path.read_bytes().startswith(b"before\none\nother\n")
    assert 17 + 2000 * 1024 == path.stat().st_size


def test_a_disk_that_is_full_is_drained(thread: LoopThread, pipes: list[int]) -> None:
    """Output is lost, the container lives."""
    fd = os.open("/dev/full", os.O_WRONLY)
    bench = Bench(thread, pipes[0], fd)
    bench.start()
    write_all(pipes[1], bytes(1 << 20), 2)
    close(pipes, 1)

    assert bench.is_done()
    os.close(fd)


@pytest.mark.parametrize("kind", ["file", "null"])
def test_a_source_that_cannot_be_watched_is_copied_too(
    thread: LoopThread, pipes: list[int], tmp_path: Path, kind: str
) -> None:
    """A client may name a plain file, or /dev/null, as stdin."""
    (tmp_path / "input").write_bytes(b"z" * 200_000)
    fd = os.open(tmp_path / "input" if kind == "file" else os.devnull, os.O_RDONLY)
    bench = Bench(thread, fd, pipes[3])
    bench.start()
    received = b""
    while kind == "file" and len(received) < 200_000:
        received += os.read(pipes[2], 65536)

    assert bench.is_done()
    assert b"z" * (200_000 if kind == "file" else 0) == received
    os.close(fd)


def test_stop_ends_at_once_and_once(thread: LoopThread, pipes: list[int]) -> None:
    """Before it started, too."""
    bench = Bench(thread, pipes[0], pipes[3])
    counts: list[int] = []
    bench.pump._on_done = lambda: counts.append(1)
    bench.start()
    thread.call(bench.pump.stop)
    thread.call(bench.pump.stop)
    thread.call(bench.pump.finish)
    never = Bench(thread, pipes[0], pipes[3])
    thread.call(never.pump.stop)

    assert [1] == counts
    assert never.done.is_set()
    os.write(pipes[1], b"x")
    thread.settle()
    assert b"x" == os.read(pipes[0], 1)


def test_many_pumps_share_the_loop(thread: LoopThread) -> None:
    """A busy one does not starve the others."""
    sets = [[*os.pipe(), *os.pipe()] for _ in range(20)]
    benches = [Bench(thread, fds[0], fds[3]) for fds in sets]
    for bench in benches:
        bench.start()
    stop = threading.Event()
    drained = threading.Thread(target=lambda: read_all(sets[0][2]))
    flood = threading.Thread(target=lambda: [write_all(sets[0][1], bytes(65536), 1) for _ in iter(stop.is_set, True)])
    for each in (flood, drained):
        each.start()
    for number, fds in enumerate(sets[1:]):
        os.write(fds[1], b"%d" % number)
        assert b"%d" % number == os.read(fds[2], 10)
    stop.set()
    flood.join()
    for bench, fds in zip(benches, sets, strict=True):
        os.close(fds[1])
        assert bench.is_done()
        os.close(fds[3])
    drained.join()
    for fds in sets:
        os.close(fds[0])
        os.close(fds[2])


class Terminal:
    """A pty whose master is copied to a pipe."""

    def __init__(self, thread: LoopThread) -> None:
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        self.name = os.ttyname(self.slave)
        self.read_end, self.write_end = os.pipe()
        self.bench = Bench(thread, self.master, self.write_end, is_tty=True)
        self.bench.start()

    def hang_up(self) -> None:
        """Close the process's end."""
        if self.slave >= 0:
            os.close(self.slave)
        self.slave = -1

    def close(self) -> None:
        """Close what the test has left open."""
        self.hang_up()
        for fd in (self.master, self.read_end, self.write_end):
            os.close(fd)


@pytest.fixture
def terminal(thread: LoopThread) -> Iterator[Terminal]:
    """A terminal."""
    terminal = Terminal(thread)
    yield terminal
    thread.call(terminal.bench.pump.stop)
    terminal.close()


def test_a_terminal_nobody_has_open_is_not_over(terminal: Terminal) -> None:
    """A process may open it again; only its end, told from outside, is the end."""
    os.write(terminal.slave, b"one")
    assert b"one" == os.read(terminal.read_end, 10)
    terminal.hang_up()
    time.sleep(0.06)
    assert not terminal.bench.done.is_set()
    terminal.slave = os.open(terminal.name, os.O_RDWR | os.O_NOCTTY)
    os.write(terminal.slave, b"two")

    assert b"two" == os.read(terminal.read_end, 10)


def test_a_terminals_last_words_come_through(terminal: Terminal, thread: LoopThread) -> None:
    """What was written before the exit, all of it."""
    text = b"x" * 3000
    os.write(terminal.slave, text)
    terminal.hang_up()
    thread.call(terminal.bench.pump.finish)
    received = b""
    while len(received) < 3000:
        received += os.read(terminal.read_end, 65536)

    assert text == received
    assert terminal.bench.is_done()


def test_a_terminal_held_open_by_a_child_ends_when_it_is_quiet(terminal: Terminal, thread: LoopThread) -> None:
    """A background process must not keep the container's stdio for ever."""
    thread.call(terminal.bench.pump.finish)
    thread.call(terminal.bench.pump.finish)
    os.write(terminal.slave, b"still here")

    assert b"still here" == os.read(terminal.read_end, 20)
    assert terminal.bench.is_done()


def test_a_terminals_slow_reader_gets_the_backlog(terminal: Terminal, thread: LoopThread) -> None:
    """However long after the exit it reads."""
    fcntl.fcntl(terminal.write_end, 1031, 4096)  # F_SETPIPE_SZ
    os.set_blocking(terminal.slave, False)
    written = 0
    while True:
        try:
            written += os.write(terminal.slave, b"y" * 512)
        except BlockingIOError:
            time.sleep(0.01)
            try:
                written += os.write(terminal.slave, b"y" * 512)
            except BlockingIOError:
                break
    terminal.hang_up()
    thread.call(terminal.bench.pump.finish)
    time.sleep(0.3)
    assert not terminal.bench.done.is_set()
    received = 0
    while received < written:
        received += len(os.read(terminal.read_end, 65536))

    assert terminal.bench.is_done()
