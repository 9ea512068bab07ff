"""What the fast path says to its zygote, what it makes of the answers, and when it gives up."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Final

import pytest

from shim.runtime.zygote_protocol import FOLDER_VARIABLE, SWITCH_VARIABLE
from tests.integration import scripted
from tests.integration.client import wait_until
from tests.integration.scripted import (
    BROKEN,
    HARNESS,
    LIMIT_S,
    PLAIN,
    START,
    Script,
    Zygote,
    compile_program,
    run,
    says,
    socket_path,
    take_order,
)

program, folder = scripted.program, scripted.folder
FUZZED: Final = 100_000


# What it asks.


def test_order_is_one_byte_and_four_descriptors(program: Path, folder: Path, tmp_path: Path) -> None:
    """Descriptors 0 to 2 are the program's own, the fourth is its working directory; the rest is in /proc."""
    seen: list[object] = []

    def script(connection: socket.socket) -> None:
        asked, fds, _, _ = socket.recv_fds(connection, 64, 8)
        seen.extend([asked, fds])
        connection.sendall(b"A")
        data, fds, _, _ = socket.recv_fds(connection, 64, 8)
        pid, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        seen.extend([data, [os.readlink(f"/proc/self/fd/{fd}") for fd in fds], pid, user])
        for fd in fds:
            os.close(fd)
        connection.sendall(b"X\0")

    with Zygote(socket_path(folder, program), script):
        child = subprocess.Popen(
            [program, *START],
            cwd=tmp_path,
            env={FOLDER_VARIABLE: str(folder), SWITCH_VARIABLE: "on"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with child:
            assert child.stdin is not None
            assert child.stdout is not None
            pipes = [f"pipe:[{os.fstat(each.fileno()).st_ino}]" for each in (child.stdin, child.stdout)]

    assert 0 == child.returncode
    assert [b"Q", [], b"S", [*pipes, os.devnull, str(tmp_path)], child.pid, 0] == seen


@pytest.mark.parametrize("words", [START, ("delete",), ("-v",), ("--v",), ("-version",), ("--version",)])
def test_actions_that_containerd_waits_for_are_asked(program: Path, folder: Path, words: tuple[str, ...]) -> None:
    """start, delete and the version end with the zygote's exit code, and main never runs."""
    with Zygote(socket_path(folder, program), says(b"A", b"X\7")):
        assert (7, b"", b"") == run(program, folder, *words)


# What it makes of the answer.


@pytest.mark.parametrize("code", [0, 1, 2, 127, 255])
def test_exit_code_is_the_answer(program: Path, folder: Path, code: int) -> None:
    """Whatever a process can end with."""
    with Zygote(socket_path(folder, program), says(b"A", b"X", bytes([code]))):
        assert (code, b"", b"") == run(program, folder, *START)


@pytest.mark.parametrize("answer", [b"R", b"", b"Z", b"X\0", b"\0", b"RAX\0", b"a", b"\xff" * 70_000])
def test_anything_but_acceptance_is_the_plain_path(program: Path, folder: Path, answer: bytes) -> None:
    """A refusal, the end, garbage, and more than anybody asked for."""
    with Zygote(socket_path(folder, program), lambda connection: deliver(connection, answer)) as zygote:
        assert PLAIN == run(program, folder, *START)

    assert 1 == zygote.connections


def deliver(connection: socket.socket, *answer: bytes) -> None:
    """Send as much as the peer takes."""
    with contextlib.suppress(OSError):
        says(*answer)(connection)


@pytest.mark.parametrize("answer", [b"", b"X", b"R", b"A", b"\0\0", b"Y\0", b"Q" * 70_000])
def test_an_order_is_never_carried_out_twice(program: Path, folder: Path, answer: bytes) -> None:
    """Once it has been sent it may have been done: the program ends with one clear error, and main never runs."""
    with Zygote(socket_path(folder, program), lambda connection: deliver(connection, b"A", answer)):
        assert BROKEN == run(program, folder, *START)


def test_acceptance_by_who_is_gone_is_the_plain_path(program: Path, folder: Path) -> None:
    """Nobody has the order then; if it could still be sent, that is told."""

    def script(connection: socket.socket) -> None:
        connection.recv(1)
        connection.shutdown(socket.SHUT_RD)  # so the order cannot be sent
        connection.sendall(b"A")

    with Zygote(socket_path(folder, program), script):
        assert PLAIN == run(program, folder, *START)


def test_what_follows_the_exit_code_is_not_read(program: Path, folder: Path) -> None:
    """The answer is complete with it."""
    with Zygote(socket_path(folder, program), lambda connection: deliver(connection, b"A", b"X\3" + b"x" * 70_000)):
        assert (3, b"", b"") == run(program, folder, *START)


def test_end_before_the_question_is_the_plain_path(program: Path, folder: Path) -> None:
    """A zygote that is killed as it accepts."""
    with Zygote(socket_path(folder, program), lambda connection: None):
        assert PLAIN == run(program, folder, *START)


def test_a_zygote_that_hangs_is_done_without(program: Path, folder: Path) -> None:
    """After a second the plain path is taken, and no order comes any more."""
    orders: list[bytes] = []

    def script(connection: socket.socket) -> None:
        connection.recv(1)
        orders.append(connection.recv(1))  # returns at the program's end of the conversation

    with Zygote(socket_path(folder, program), script):
        assert PLAIN == run(program, folder, *START)

    assert [b""] == orders


def test_acceptance_at_the_last_moment_counts_on_both_sides(program: Path, folder: Path) -> None:
    """Sent around the time limit, it is followed by an order or it is not: never both paths, never none."""
    orders: list[bytes] = []

    def script_after(pause_s: float) -> Script:
        def script(connection: socket.socket) -> None:
            connection.recv(1)
            time.sleep(pause_s)
            try:
                connection.sendall(b"A")
                orders.append(take_order(connection))
                connection.sendall(b"X\5")
            except OSError:
                orders.append(b"")

        return script

    for pause_s in (0.98, 0.99, 0.995, 0.998, 1.0, 1.002, 1.005, 1.01):
        orders.clear()
        with Zygote(socket_path(folder, program), script_after(pause_s)):
            outcome = run(program, folder, *START)

        assert outcome == ((5, b"", b"") if orders[0] else PLAIN)


def test_an_order_has_no_time_limit(program: Path, folder: Path) -> None:
    """A start may wait for its input for longer than a zygote may take to accept."""

    def script(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(b"A")
        take_order(connection)
        time.sleep(2.5)
        connection.sendall(b"X\6")

    with Zygote(socket_path(folder, program), script):
        assert (6, b"", b"") == run(program, folder, *START)


def test_stop_signals_do_not_end_an_order(program: Path, folder: Path) -> None:
    """As in a `start` of its own, which ignores them; before that they end the program."""
    pids: list[int] = []

    def script(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(b"A")
        take_order(connection)
        pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        ignored = 1 << (signal.SIGTERM - 1) | 1 << (signal.SIGINT - 1)
        wait_until(lambda: ignored_signals(pid) & ignored == ignored, "the program ignores them")
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
        pids.append(pid)
        connection.sendall(b"X\4")

    with Zygote(socket_path(folder, program), script):
        assert (4, b"", b"") == run(program, folder, *START)

    assert 1 == len(pids)


def ignored_signals(pid: int) -> int:
    """Return the mask of the signals that a process ignores."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn"))


def test_answers_are_read_as_a_second_reader_reads_them(tmp_path: Path) -> None:
    """A hundred thousand answers of likely and of random bytes, under the sanitizers."""
    fuzz = compile_program(tmp_path / "fuzz", HARNESS / "fuzz.c")
    done = subprocess.run([fuzz, str(FUZZED)], capture_output=True, text=True, timeout=LIMIT_S, check=False)

    assert (0, f"{FUZZED} answers\n", "") == (done.returncode, done.stdout, done.stderr)
