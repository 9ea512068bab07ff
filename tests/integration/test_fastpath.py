"""The fast path in C, compiled with sanitizers and run against a scripted zygote: what it asks, and when it gives up.

"plain" means that the program's main ran, as PyInstaller's bootloader would: nothing has happened yet.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from shim.host import identity
from shim.runtime.zygote_protocol import FOLDER_VARIABLE, OFF_VARIABLE, socket_name
from tests.integration.client import wait_until
from tests.integration.conftest import PROJECT

SOURCE: Final = PROJECT / "build/fastpath/fastpath.c"
HARNESS: Final = Path(__file__).parent / "fastpath"
WARNINGS: Final = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow", "-Wstrict-prototypes")
SANITIZERS: Final = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
NOBODY: Final = 65534
START: Final = ("-namespace", "n", "-id", "c", "start")
PLAIN: Final = (42, b"plain\n", b"")
BROKEN: Final = (1, b"", b"containerd-shim: the process that did the work ended without a word\n")
FUZZED: Final = 100_000
LIMIT_S: Final = 60.0

Outcome = tuple[int, bytes, bytes]
Script = Callable[[socket.socket], None]


def compile_program(target: Path, *sources: Path, flags: tuple[str, ...] = SANITIZERS) -> Path:
    """Compile with warnings as errors; fails the test where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.fail("there is no C compiler: install the Debian packages gcc and libc6-dev", pytrace=False)
    command = [compiler, *WARNINGS, *flags, *map(str, sources), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (0, "") == (done.returncode, done.stderr)
    return target


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program whose constructor is the fast path."""
    return compile_program(tmp_path_factory.mktemp("fastpath") / "program", SOURCE, HARNESS / "plain.c")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder for the scripted zygote's socket, as it has to be, with a short name."""
    path = Path(tempfile.mkdtemp(prefix="fp-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def socket_path(folder: Path, program: Path) -> Path:
    """Return where the program looks for its zygote when this process starts it."""
    return folder / socket_name(identity.numbers(os.getpid(), str(program)))


class Zygote:
    """Listens where the program looks, and treats each connection by a script."""

    def __init__(self, path: Path, script: Script, euid: int = 0) -> None:
        self.connections = 0
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        path.chmod(0o777)
        os.seteuid(euid)  # who listens is whom the peer sees
        try:
            self._listener.listen()
        finally:
            os.seteuid(0)
        self._listener.settimeout(0.02)
        self._script = script
        self._is_open = True
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Zygote:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_open = False
        self._thread.join()
        self._listener.close()
        self.path.unlink()

    def _run(self) -> None:
        while self._is_open:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            connection.settimeout(LIMIT_S)
            with connection:
                self._script(connection)


def says(*chunks: bytes) -> Script:
    """Return a script that is asked, answers in chunks, taking the order after the first one, and hangs up."""

    def script(connection: socket.socket) -> None:
        connection.recv(1)
        for chunk in chunks[:1]:
            connection.sendall(chunk)
            if chunk[:1] == b"A":
                take_order(connection)
        for chunk in chunks[1:]:
            connection.sendall(chunk)

    return script


def take_order(connection: socket.socket) -> bytes:
    """Return the order, or b'' if there is none; its descriptors are closed."""
    data, fds, _, _ = socket.recv_fds(connection, 64, 8)
    for fd in fds:
        os.close(fd)
    return data


def run(
    program: Path,
    folder: Path | str,
    *words: str,
    environment: Mapping[str, str] | None = None,
    user: int | None = None,
    wrapper: tuple[str, ...] = (),
) -> Outcome:
    """Run the program to its end."""
    done = subprocess.run(
        [*wrapper, str(program), *words],
        env={"PATH": os.environ["PATH"], FOLDER_VARIABLE: str(folder), **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        user=user,
        timeout=LIMIT_S,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


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
            env={FOLDER_VARIABLE: str(folder)},
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


# When it does not even ask.


def assert_not_asked(zygote: Zygote, outcome: Outcome) -> None:
    """Fail unless the plain path was taken without a word to the zygote."""
    assert (PLAIN, 0) == (outcome, zygote.connections)


@pytest.mark.parametrize(
    "words",
    [(), ("-info",), ("-h",), ("start", "x"), ("-id", "c"), ("stop",), ("-v", "-info"), ("",), ("-debug", "-v")],
    ids=str,
)
def test_other_actions_are_not_asked(program: Path, folder: Path, words: tuple[str, ...]) -> None:
    """-info, a daemon, and what nobody knows."""
    with Zygote(socket_path(folder, program), says(b"A", b"X\0")) as zygote:
        assert_not_asked(zygote, run(program, folder, *words))


@pytest.mark.parametrize(
    "variable",
    [
        f"{OFF_VARIABLE}=off",
        "_PYI_ARCHIVE_FILE=/x",
        "_PYI_PARENT_PROCESS_LEVEL=1",
        "PYINSTALLER_RESET_ENVIRONMENT=1",
        "LD_LIBRARY_PATH=/x",
        "LD_BIND_NOW=1",
        "GLIBC_TUNABLES=",
        "MALLOC_ARENA_MAX=1",
        "SCHED_CORE=1",
    ],
)
def test_variables_that_steer_an_exec_are_not_passed_over(program: Path, folder: Path, variable: str) -> None:
    """The switch, the marks of a bootloader's own child, and what loader, libc and scheduler would obey."""
    name, _, value = variable.partition("=")
    with Zygote(socket_path(folder, program), says(b"A", b"X\0")) as zygote:
        assert_not_asked(zygote, run(program, folder, *START, environment={name: value}))


def test_switch_has_one_value(program: Path, folder: Path) -> None:
    """Only `off` is off."""
    with Zygote(socket_path(folder, program), says(b"A", b"X\0")):
        assert (0, b"", b"") == run(program, folder, *START, environment={OFF_VARIABLE: "on"})


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o600, 0o1700])
def test_folder_of_another_mode_is_not_trusted(program: Path, folder: Path, mode: int) -> None:
    """0700 and nothing else: others could have put the socket there."""
    folder.chmod(mode)
    with Zygote(socket_path(folder, program), says(b"A", b"X\0")) as zygote:
        assert_not_asked(zygote, run(program, folder, *START))


def test_folder_of_another_user_is_not_trusted(program: Path, folder: Path) -> None:
    """Whatever its mode."""
    with Zygote(socket_path(folder, program), says(b"A", b"X\0")) as zygote:
        os.chown(folder, NOBODY, NOBODY)
        assert_not_asked(zygote, run(program, folder, *START))


def test_link_to_a_folder_is_not_trusted(program: Path, folder: Path, tmp_path: Path) -> None:
    """It could lead elsewhere in the next moment."""
    link = tmp_path / "z"
    link.symlink_to(folder)
    with Zygote(socket_path(folder, program), says(b"A", b"X\0")) as zygote:
        assert len(str(link)) < 80
        assert_not_asked(zygote, run(program, link, *START))


def test_peer_of_another_user_is_not_trusted(program: Path, folder: Path) -> None:
    """Even in our own folder: it is hung up on before it is asked."""
    heard: list[bytes] = []
    with Zygote(socket_path(folder, program), lambda connection: heard.append(connection.recv(1)), NOBODY) as zygote:
        assert PLAIN == run(program, folder, *START)
        wait_until(lambda: bool(heard), "the connection's end")

    assert ([b""], 1) == (heard, zygote.connections)


def test_program_with_the_rights_of_another_is_not_asked_for(folder: Path) -> None:
    """A setuid program (AT_SECURE) takes its environment from somebody else."""
    sockets = folder / "z"
    sockets.mkdir(0o700)
    folder.chmod(0o755)
    program = compile_program(folder / "program", SOURCE, HARNESS / "plain.c", flags=())
    for path in (sockets, program):
        os.chown(path, NOBODY, NOBODY)
    for mode, is_asked in ((0o755, True), (0o4755, False)):
        program.chmod(mode)
        with Zygote(socket_path(sockets, program), says(b"A", b"X\0"), NOBODY) as zygote:
            outcome = run(program, sockets, *START, user=NOBODY if is_asked else None)

        assert ((0, b"", b"") if is_asked else PLAIN, int(is_asked)) == (outcome, zygote.connections)


def test_no_folder_is_the_plain_path(program: Path, folder: Path) -> None:
    """The usual case before the first start."""
    assert PLAIN == run(program, folder / "none", *START)


def test_folder_that_is_a_file_is_the_plain_path(program: Path, folder: Path) -> None:
    """Somebody's idea of keeping zygotes out."""
    (folder / "file").touch(0o700)

    assert PLAIN == run(program, folder / "file", *START)


def test_folder_with_a_long_name_is_the_plain_path(program: Path, folder: Path) -> None:
    """A socket's path has at most 107 bytes, and is not cut."""
    for size in range(80, 130):
        long = folder / ("x" * size)
        long.mkdir(0o700)

        assert PLAIN == run(program, long, *START)


@pytest.mark.parametrize("what", ["nothing", "stale", "file"])
def test_nobody_listening_is_the_plain_path(program: Path, folder: Path, what: str) -> None:
    """No socket, the socket of a zygote that was killed, or something else in its place."""
    path = socket_path(folder, program)
    if what == "stale":
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
    elif what == "file":
        path.touch()

    assert PLAIN == run(program, folder, *START)


def test_zygote_whose_queue_is_full_is_done_without(program: Path, folder: Path) -> None:
    """It listens, but has stopped to accept."""
    path = socket_path(folder, program)
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(path))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(path))

        assert PLAIN == run(program, folder, *START)


@pytest.mark.parametrize("closed", [0, 2])
def test_closed_descriptor_is_the_plain_path(program: Path, folder: Path, closed: int) -> None:
    """There would be nothing to pass, or the wrong thing."""
    wrapper = ("sh", "-c", f'exec "$@" {closed}>&-', "sh")
    with Zygote(socket_path(folder, program), says(b"A", b"X\0")) as zygote:
        assert_not_asked(zygote, run(program, folder, *START, wrapper=wrapper))


def test_parent_in_another_pid_namespace_is_the_plain_path(program: Path, folder: Path) -> None:
    """Its pid cannot be known, so no zygote can be its own."""
    with Zygote(folder / socket_name(identity.numbers(0, str(program))), says(b"A", b"X\0")) as zygote:
        assert_not_asked(zygote, run(program, folder, *START, wrapper=("unshare", "--pid", "--fork")))


@pytest.mark.parametrize("space", ["--net", "--uts", "--ipc", "--mount", "--cgroup"])
def test_another_namespace_has_another_zygote(program: Path, folder: Path, space: str) -> None:
    """The name of the socket says so: this one's is never asked."""
    with Zygote(socket_path(folder, program), says(b"A", b"X\0")) as zygote:
        assert_not_asked(zygote, run(program, folder, *START, wrapper=("unshare", space)))


def test_upgraded_program_has_another_zygote(program: Path, folder: Path, tmp_path: Path) -> None:
    """Even with the same bytes in the same place, and whatever the inode number."""
    own = tmp_path / "program"
    shutil.copy2(program, own)
    with Zygote(socket_path(folder, own), says(b"A", b"X\0")) as zygote:
        assert (0, b"", b"") == run(own, folder, *START)
        own.unlink()
        shutil.copy2(program, own)

        assert (PLAIN, 1) == (run(own, folder, *START), zygote.connections)
