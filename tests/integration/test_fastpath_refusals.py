"""When the fast path does not even ask: one test for each reason, and the plain path goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from pathlib import Path

import pytest

from shim.host import identity
from shim.runtime.zygote_protocol import SWITCH_VARIABLE, socket_name
from tests.integration import scripted
from tests.integration.client import wait_until
from tests.integration.scripted import (
    HARNESS,
    NOBODY,
    PLAIN,
    SOURCE,
    START,
    Outcome,
    Zygote,
    compile_program,
    run,
    says,
    socket_path,
)

program, folder = scripted.program, scripted.folder


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
        f"{SWITCH_VARIABLE}=off",
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


@pytest.mark.parametrize("value", ["", "on", "1", "OFF", "off "])
def test_switch_has_one_value(program: Path, folder: Path, value: str) -> None:
    """Only `off` is off."""
    with Zygote(socket_path(folder, program), says(b"A", b"X\0")) as zygote:
        run(program, folder, *START, environment={SWITCH_VARIABLE: value})

    assert 1 == zygote.connections


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
