"""What README.md tells about speaking ttrpc works: its files are written, its commands typed, their output compared.

A block of a file follows the file's name; a console block has commands after `$` and what they print.  Servers run
beside their clients and end by a signal.  Where the README writes to /tmp, the test has a folder of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.fakes import PATIENCE_S, ROOT, connect_soon, python_path

README: Final = (ROOT / "README.md").read_text()
BLOCK: Final = re.compile(
    r"(?:`(?P<file>[\w.]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


def section() -> str:
    """Return the part of the README that this is about."""
    (found,) = re.findall(r"^## Speak ttrpc from Python\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    return str(found)


def files() -> dict[str, str]:
    """Return the files that the README gives, by name."""
    return {match["file"]: match["text"] for match in BLOCK.finditer(section()) if match["language"] != "console"}


def commands() -> dict[str, str]:
    """Return what is typed, and what is printed then."""
    blocks = [match["text"] for match in BLOCK.finditer(section()) if match["language"] == "console"]
    parts = [part.partition("\n") for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return {command: output for command, _, output in parts}


def run(command: str, folder: Path, environment: dict[str, str]) -> str:
    """Type a command, and return what it prints."""
    words = shlex.split(command)
    assert words[0] == "python"
    done = subprocess.run([sys.executable, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True)

    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the README's files are."""
    folder = tmp_path_factory.mktemp("notes")
    for name, text in files().items():
        (folder / name).write_text(text.replace("/tmp/notes.sock", str(folder / "notes.sock")))  # noqa: S108
    return folder


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    """Return an environment with this tree's plugin, whatever is installed, and the code that protoc makes with it."""
    plugin = folder / "bin/protoc-gen-ttrpc-python"
    plugin.parent.mkdir()
    plugin.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -m shim.ttrpc.codegen\n")
    plugin.chmod(0o700)
    path = f"{plugin.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": python_path(), "PYTHONWARNINGS": "error"}
    (protoc,) = [command for command in commands() if "protoc" in command]

    assert "" == run(protoc, folder, environment)
    return environment


@contextlib.contextmanager
def serving(script: str, folder: Path, environment: dict[str, str]) -> Iterator[Callable[[], str]]:
    """Run a server, and yield a function that ends it by a signal and returns what it has printed."""
    socket = folder / "notes.sock"
    pipe = subprocess.PIPE
    command = [sys.executable, script]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True) as process:

        def end() -> str:
            process.terminate()
            output, errors = process.communicate(timeout=PATIENCE_S)

            assert (0, "") == (process.returncode, errors)
            assert not socket.exists()
            return output

        try:
            connect_soon(f"unix://{socket}").close()
            yield end
        finally:
            process.kill()


def test_every_block_is_known_to_these_tests() -> None:
    """A file or a command that is added to the section needs a test here."""
    scripts = ["server.py", "client.py", "server_async.py", "client_async.py"]

    assert ["notes.proto", *scripts] == list(files())
    assert ["python client.py", "python server.py", "python client_async.py"] == list(commands())[1:]


@pytest.mark.parametrize("style", ["", "_async"])
def test_clients_print_what_the_readme_says(style: str, folder: Path, environment: dict[str, str]) -> None:
    """The client's output is the README's, and so is the server's where it is told."""
    with serving(f"server{style}.py", folder, environment) as end:
        printed = run(f"python client{style}.py", folder, environment)
        log = end()

    assert commands()[f"python client{style}.py"] == printed
    assert commands().get(f"python server{style}.py", "") == log


@pytest.mark.parametrize("name", re.findall(r"protos/examples/([\w.]+)", section()))
def test_examples_that_are_named_exist(name: str) -> None:
    """They are where the README says."""
    assert (ROOT / "protos/examples" / name).is_file()
