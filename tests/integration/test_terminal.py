"""Terminals: ctr under a pty of the test's own, and consoles by calls to the shim."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim import ttrpc
from shim.testing.containerd import Containerd
from tests.integration.client import Fifo, Guests, TaskClient, descriptors, wait_until

Open = Callable[..., "Screen"]


class Screen:
    """A ctr that runs in a terminal, whose other end is here."""

    def __init__(self, containerd: Containerd, *args: str, rows: int = 24, columns: int = 80) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        # What is shown shall be what the container's terminal made of it: this one adds no carriage returns.
        attributes = termios.tcgetattr(slave)
        attributes[1] &= ~termios.ONLCR
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        try:
            self.process = containerd.popen(*args, stdin=slave, stdout=slave, stderr=slave)
        finally:
            os.close(slave)
        self.shown = ""

    def read_until(self, text: str, timeout_s: float = 30.0) -> None:
        """Read until `text` has been shown."""
        deadline = time.monotonic() + timeout_s
        while text not in self.shown:
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {text!r} within {timeout_s} s, only {self.shown[-500:]!r}"
            chunk = self._read()
            assert chunk, f"the end came without {text!r}: {self.shown[-500:]!r}"

    def type(self, text: str) -> None:
        """Type at the keyboard."""
        os.write(self._master, text.encode())

    def end(self, timeout_s: float = 30.0) -> int:
        """Read to the end and return ctr's exit code."""
        while self._read():
            pass
        return self.process.wait(timeout_s)

    def close(self) -> None:
        """Hang up."""
        os.close(self._master)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def _read(self) -> str:
        try:
            chunk = os.read(self._master, 1 << 16).decode()
        except OSError:  # how a pty says that nobody has its other end any more
            return ""
        self.shown += chunk
        return chunk


@pytest.fixture
def screen(containerd: Containerd) -> Iterator[Open]:
    """Return a function that runs ctr in a terminal."""
    opened: list[Screen] = []

    def start(*args: str, rows: int = 24, columns: int = 80) -> Screen:
        opened.append(Screen(containerd, *args, rows=rows, columns=columns))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


# By ctr.


def test_run_in_a_terminal(containerd: Containerd, name: str, screen: Open) -> None:
    """All three of the process's descriptors are a terminal, and what it writes is shown as terminals do."""
    command = "test -t 0 && test -t 1 && test -t 2 && echo on && echo error >&2; read line; exit 4"
    shown = screen(*containerd.run_arguments(name, "sh", "-c", command, options=["--tty"]))
    shown.read_until("error\r\n")

    assert "on\r\nerror\r\n" == shown.shown

    shown.type("\n")

    assert 4 == shown.end()


def test_type_into_a_shell(containerd: Containerd, name: str, screen: Open) -> None:
    """A shell in a terminal does what is typed, until it is told to exit."""
    shown = screen(*containerd.run_arguments(name, "sh", options=["--tty"]))
    shown.read_until("# ")
    shown.type("echo $((6*7))\n")
    shown.read_until("42\r\n")
    shown.type("exit 3\n")

    assert 3 == shown.end()


def test_echo_and_end_of_input(containerd: Containerd, name: str, screen: Open) -> None:
    """The container's terminal echoes what is typed, hands it over line by line, and takes ^D for the end."""
    shown = screen(*containerd.run_arguments(name, "sh", "-c", "echo ready; cat", options=["--tty"]))
    shown.read_until("ready\r\n")
    shown.type("text\n")
    shown.read_until("text\r\ntext\r\n")
    shown.type("\x04")

    assert 0 == shown.end()
    assert "ready\r\ntext\r\ntext\r\n" == shown.shown


def test_size_follows_the_terminal(containerd: Containerd, name: str, screen: Open) -> None:
    """The container's terminal gets the size that ctr's has."""
    command = 'until test "$(stty size)" = "33 77"; do sleep 0.05; done; echo sized; read line'
    shown = screen(*containerd.run_arguments(name, "sh", "-c", command, options=["--tty"]), rows=33, columns=77)
    shown.read_until("sized\r\n")
    shown.type("\n")

    assert 0 == shown.end()


def test_exec_in_a_terminal(containerd: Containerd, running: str, screen: Open) -> None:
    """An exec in a terminal runs a shell like the container itself can."""
    shown = screen("tasks", "exec", "--tty", "--exec-id", "e", running, "sh")
    shown.read_until("# ")
    shown.type("test -t 0 && echo $((6*7))\n")
    shown.read_until("42\r\n")
    shown.type("exit 5\n")

    assert 5 == shown.end()


def test_interrupt_from_the_keyboard(containerd: Containerd, running: str, screen: Open) -> None:
    """The terminal is the process's controlling one: a typed ^C interrupts what runs in it."""
    shown = screen("tasks", "exec", "--tty", "--exec-id", "e", running, "sh", "-c", "echo ready; exec sleep 1000")
    shown.read_until("ready")
    shown.type("\x03")

    assert 128 + signal.SIGINT == shown.end()


def test_killed_ctr_leaves_the_container_running(containerd: Containerd, name: str, screen: Open) -> None:
    """A terminal that is closed ends its ctr, not the container; another ctr can attach and type on."""
    first = screen(*containerd.run_arguments(name, "sh", options=["--tty"], rm=False))
    first.read_until("# ")
    first.process.kill()
    first.process.wait()
    second = screen("tasks", "attach", name)
    second.type("echo $((6*7))\n")
    second.read_until("42\r\n")
    second.type("exit 0\n")

    assert 0 == second.end()
    containerd.ctr("tasks", "rm", "--force", name, check=False)
    containerd.ctr("containers", "rm", name)


# By calls.


def test_large_output_in_a_terminal(running: str, task: TaskClient, fifo: Callable[[str], Fifo]) -> None:
    """A megabyte and more of lines comes through a terminal whole."""
    # Not by ctr: on a busy machine it loses the end of what a terminal shows, whichever shim it talks to.
    stdout = fifo("stdout")
    task.exec("e", "seq", "200000", stdout=stdout.path, terminal=True)
    task.start("e")
    lines = stdout.read(timeout_s=60).split(b"\r\n")
    task.wait("e")
    task.delete("e")

    assert [b"%d" % number for number in range(1, 200001)] == lines[:-1]


def test_resize_of_an_exec(running: str, task: TaskClient, fifo: Callable[[str], Fifo], tmp_path: Path) -> None:
    """ResizePty sets the size that the process sees."""
    stdin, stdout = tmp_path / "stdin", fifo("stdout")
    os.mkfifo(stdin)
    command = "read x; stty size; read x; stty size"
    task.exec("e", "sh", "-c", command, stdin=str(stdin), stdout=stdout.path, terminal=True)
    task.start("e")
    for width, height, shown in ((100, 50, b"\r\n50 100\r\n"), (132, 43, b"\r\n43 132\r\n")):
        task.resize(width, height, "e")
        with stdin.open("wb") as client:
            client.write(b"\n")

        assert shown == stdout.read(len(shown))

    assert b"" == stdout.read()
    assert 0 == task.wait("e").exit_status
    with pytest.raises(ttrpc.RpcError, match="cannot resize a stopped container"):
        task.resize(80, 24, "e")
    task.delete("e")


def test_resize_before_start(guests: Guests, name: str, fifo: Callable[[str], Fifo]) -> None:
    """A size set between Create and Start is there when init looks."""
    stdout = fifo("stdout")
    task = guests.create(name, "stty", "size", stdout=stdout.path, terminal=True)
    task.resize(132, 43)
    task.start()

    # Stty asks its input for the size.
    assert b"43 132\r\n" == stdout.read()
    assert 0 == task.wait().exit_status
    state = task.state()

    assert (True, stdout.path, "") == (state.terminal, state.stdout, state.stderr)
    assert 0 == task.delete().exit_status


def test_resize_without_a_terminal(running: str, task: TaskClient) -> None:
    """A process without a terminal takes any size, without effect."""
    task.exec("e", "sleep", "1000")
    task.resize(80, 24, "e")
    task.start("e")
    task.resize(80, 24, "e")
    task.resize(80, 24)
    task.kill(signal.SIGKILL, "e")
    task.wait("e")
    task.delete("e")


def test_terminal_without_any_fifo(running: str, task: TaskClient) -> None:
    """A terminal that nobody looks at still is one."""
    task.exec("e", "sh", "-c", "test -t 0 && echo text && exit 6; exit 7", terminal=True)
    task.start("e")

    assert 6 == task.wait("e").exit_status
    task.delete("e")


def test_background_child_keeps_no_terminal_open(running: str, task: TaskClient, fifo: Callable[[str], Fifo]) -> None:
    """Once the process has ended, its reader sees the end, whatever children still have the terminal."""
    stdout = fifo("stdout")
    task.exec("e", "sh", "-c", "trap '' HUP; sleep 1000 & echo text", stdout=stdout.path, terminal=True)
    task.start("e")

    assert b"text\r\n" == stdout.read()
    assert 0 == task.wait("e").exit_status
    task.delete("e", timeout_s=5)


def test_terminals_leave_nothing(
    containerd: Containerd, running: str, task: TaskClient, fifo: Callable[[str], Fifo], tmp_path: Path
) -> None:
    """After execs with terminals no descriptor, no pty and no socket is left."""
    shim = task.connect().shim_pid
    stdin = tmp_path / "stdin"
    os.mkfifo(stdin)

    def run(number: int) -> None:
        stdout = fifo(f"out{number}")
        task.exec("e", "true", stdin=str(stdin), stdout=stdout.path, terminal=True)
        task.start("e")
        task.wait("e")
        task.delete("e")
        task.exec("e", "/nosuch", stdin=str(stdin), stdout=stdout.path, terminal=True)
        with pytest.raises(ttrpc.RpcError, match="no such file"):
            task.start("e")
        task.delete("e")

    run(0)
    before = descriptors(shim)
    for number in range(1, 6):
        run(number)
    wait_until(lambda: before == descriptors(shim), f"the shim has the descriptors it had before: {before}")
    devices = containerd.exec(running, "ls", "/dev/pts").stdout.split()

    assert ["ptmx"] == devices
    assert [] == [path.name for path in containerd.tmp.glob("pty*")]


def test_terminal_needs_a_reader_that_exists(running: str, task: TaskClient, tmp_path: Path) -> None:
    """A fifo that is not there is named in the answer, and the exec can be deleted."""
    task.exec("e", "true", stdout=f"{tmp_path}/missing", terminal=True)
    with pytest.raises(ttrpc.RpcError, match="missing: no such file or directory"):
        task.start("e")
    task.delete("e")
