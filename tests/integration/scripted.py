"""The fast path in C as a program of its own, compiled with sanitizers, and a scripted zygote for it to talk to.

`PLAIN` means that the program's main ran, as PyInstaller's bootloader would: nothing has happened yet.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from shim.host import identity
from shim.runtime.zygote_protocol import FOLDER_VARIABLE, SWITCH_VARIABLE, socket_name
from tests.integration.conftest import PROJECT

SOURCE: Final = PROJECT / "build/fastpath/fastpath.c"
HARNESS: Final = Path(__file__).parent / "fastpath"
WARNINGS: Final = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow", "-Wstrict-prototypes")
SANITIZERS: Final = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
NOBODY: Final = 65534
START: Final = ("-namespace", "n", "-id", "c", "start")
PLAIN: Final = (42, b"plain\n", b"")
BROKEN: Final = (1, b"", b"containerd-shim: the process that did the work ended without a word\n")
LIMIT_S: Final = 60.0

Outcome = tuple[int, bytes, bytes]
Script = Callable[[socket.socket], None]


def compile_program(target: Path, *sources: Path, flags: tuple[str, ...] = SANITIZERS) -> Path:
    """Compile with warnings as errors; fails the test where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.fail("there is no C compiler: install the Debian packages gcc and libc6-dev", pytrace=False)
    command = [compiler, *WARNINGS, *map(str, sources), *flags, "-o", str(target)]
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
        env={"PATH": os.environ["PATH"], FOLDER_VARIABLE: str(folder), SWITCH_VARIABLE: "on", **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        user=user,
        timeout=LIMIT_S,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr
