"""Log drivers as processes: what they are told, when they are ready, and that none of a container's output is lost."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Final

import pytest

from shim.runtime.log_driver import Config
from shim.runtime.reaper import Exit, ForegroundReaper
from tests.fakes import PATIENCE_S, ROOT, python_path, wait_until

EXAMPLE: Final = str(ROOT / "examples/log_driver.py")
ENVIRONMENT: Final = {"CONTAINER_ID": "c1", "CONTAINER_NAMESPACE": "default"}
PRELUDE: Final = "import os, sys; from shim import log_driver, NotFoundError\n"


class Pipes:
    """The ends that a shim keeps of a driver's pipes, and the driver."""

    def __init__(self, folder: Path, words: list[str], environment: Mapping[str, str], missing: int) -> None:
        theirs = {}
        theirs[3], self.stdout = os.pipe()
        theirs[4], self.stderr = os.pipe()
        self.ready, theirs[5] = os.pipe()
        self._errors = folder / "errors"
        errors = os.open(self._errors, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC)
        # Numbers below 10 may be among those that are passed.
        high = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for number, fd in theirs.items()}
        passed = {number: fd for number, fd in high.items() if number != missing}
        env = {**environment, "PYTHONPATH": python_path()}
        command = [sys.executable, "-W", "error", *words]
        self.child = ForegroundReaper().spawn(command, env=env, stderr=errors, pass_fds=passed)
        for fd in (*theirs.values(), *high.values(), errors):
            os.close(fd)

    def is_ready(self) -> bytes:
        """Return what the driver says when it is ready, to the end of that."""
        text = b""
        while chunk := os.read(self.ready, 8):
            text += chunk
        return text

    def end_output(self) -> None:
        """Close the ends that the container writes to."""
        for fd in (self.stdout, self.stderr):
            os.close(fd)
        self.stdout = self.stderr = -1

    def end(self) -> tuple[int, str]:
        """Return the driver's exit status, and what it wrote to stderr."""
        exit_ = self.child.wait(PATIENCE_S)
        assert isinstance(exit_, Exit)
        return exit_.status, self._errors.read_text()

    def close(self) -> None:
        """Close all ends."""
        for fd in (self.stdout, self.stderr, self.ready):
            if fd >= 0:
                os.close(fd)


Start = Callable[..., Pipes]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return what starts a driver: words for Python, the environment, a descriptor that is left out."""
    made: list[Pipes] = []

    def starting(words: list[str], environment: Mapping[str, str] = ENVIRONMENT, missing: int = 0) -> Pipes:
        made.append(Pipes(tmp_path, words, environment, missing))
        return made[-1]

    yield starting
    for each in made:
        each.close()


def test_the_example_writes_both_streams_to_a_file(start: Start, tmp_path: Path) -> None:
    """Ready comes first, then lines as the container writes them, whole or not; the end of both ends it."""
    log = tmp_path / "log"
    driver = start([EXAMPLE, "file", str(log)])

    assert b"\0" == driver.is_ready()
    os.write(driver.stdout, b"one\ntw")
    assert wait_until(lambda: log.read_bytes() == b"c1 stdout: one\n")
    os.write(driver.stderr, b"oops\n")
    assert wait_until(lambda: log.read_bytes().endswith(b"c1 stderr: oops\n"))
    os.write(driver.stdout, b"o\nthree")
    driver.end_output()
    assert (0, "") == driver.end()
    assert b"c1 stdout: one\nc1 stderr: oops\nc1 stdout: two\nc1 stdout: three" == log.read_bytes()


def test_sigterm_ends_a_driver_that_has_read_all(start: Start, tmp_path: Path) -> None:
    """Output that was there is written, although somebody still holds the other ends."""
    log = tmp_path / "log"
    driver = start([EXAMPLE, "file", str(log)])
    driver.is_ready()
    os.kill(driver.child.pid, signal.SIGSTOP)
    os.write(driver.stdout, b"x\n" * 20000)
    os.write(driver.stderr, b"rest")
    os.kill(driver.child.pid, signal.SIGTERM)
    os.kill(driver.child.pid, signal.SIGCONT)

    assert (0, "") == driver.end()
    lines = log.read_bytes().split(b"\n")
    assert 20000 == lines.count(b"c1 stdout: x")
    assert b"c1 stderr: rest" == lines[-1]


@pytest.mark.parametrize("missing", sorted(ENVIRONMENT))
def test_a_driver_without_its_environment_says_so(start: Start, missing: str) -> None:
    """Exit status 1, one line, and no driver is made."""
    environment = {name: value for name, value in ENVIRONMENT.items() if name != missing}
    driver = start([EXAMPLE, "file", "/nonexistent/log"], environment)

    assert b"" == driver.is_ready()
    assert (1, f"log_driver.py: {missing} is not set: a shim starts this program, for a log URI binary://\n") == (
        driver.end()
    )


@pytest.mark.parametrize("missing", [3, 4, 5])
def test_a_driver_without_a_descriptor_says_so(start: Start, missing: int) -> None:
    """Exit status 1, and one line that names it."""
    driver = start([EXAMPLE, "file", "/nonexistent/log"], missing=missing)

    assert b"" == driver.is_ready()
    assert (1, f"log_driver.py: descriptor {missing} is not open: a shim opens it\n") == driver.end()


def test_a_driver_that_cannot_be_made_is_not_ready(start: Start) -> None:
    """Its error is one line, and `binary-v2` sees that descriptor 5 was closed without a byte."""
    driver = start([EXAMPLE, "file", "/nonexistent/log"])

    assert b"" == driver.is_ready()
    assert (1, "log_driver.py: [Errno 2] No such file or directory: '/nonexistent/log'\n") == driver.end()


def test_a_driver_that_fails_later_ends_with_its_error(start: Start) -> None:
    """It was ready by then."""
    script = (
        f"{PRELUDE}class Failing:\n"
        "    def __init__(self, config): pass\n"
        "    def wait(self): raise NotFoundError('no disk')\n"
        "log_driver.run(Failing)\n"
    )
    driver = start(["-c", script])

    assert b"\0" == driver.is_ready()
    assert (1, "-c: no disk\n") == driver.end()


def test_a_driver_outlives_the_shim_that_started_it(start: Start, tmp_path: Path) -> None:
    """Nobody reads whether it is ready, and what was written is still taken."""
    log = tmp_path / "log"
    driver = start([EXAMPLE, "file", str(log)])
    os.close(driver.ready)
    driver.ready = -1
    os.write(driver.stdout, b"last words\n")
    driver.end_output()

    assert (0, "") == driver.end()
    assert b"c1 stdout: last words\n" == log.read_bytes()


def test_what_a_driver_starts_gets_none_of_its_descriptors(start: Start) -> None:
    """Else a child would hold the container's pipes open, or the shim waiting for readiness."""
    script = (
        f"{PRELUDE}class Looking:\n"
        "    def __init__(self, config): pass\n"
        "    def wait(self): print(*map(os.get_inheritable, (3, 4)), file=sys.stderr)\n"
        "log_driver.run(Looking)\n"
    )
    driver = start(["-c", script])

    assert b"\0" == driver.is_ready()
    assert (0, "False False\n") == driver.end()


def test_a_line_without_end_comes_in_pieces() -> None:
    """Nothing is kept that a container could make grow for ever."""
    read_end, write_end = os.pipe()
    other, closed = os.pipe()
    os.close(closed)
    config = Config("c1", "default", FileIO(read_end), FileIO(other))
    lines = config.lines()
    os.write(write_end, b"x" * (48 << 10))
    os.write(write_end, b"x" * (16 << 10))
    name, piece = next(lines)
    os.write(write_end, b"y\nz")
    os.close(write_end)

    assert ("stdout", b"x" * (64 << 10)) == (name, piece)
    assert [("stdout", b"y\n"), ("stdout", b"z")] == list(lines)
    config.close()
