"""The scripts in protos/examples, as processes: each client with each server, blocking and asyncio, to the letter."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from google.protobuf.empty_pb2 import Empty

from shim import ttrpc
from shim.api.task_v3_pb2 import ConnectRequest, ConnectResponse, ShutdownRequest
from shim.api.task_v3_ttrpc import TaskService, task_service
from tests.fakes import ROOT, python_path

EXAMPLES: Final = ROOT / "protos/examples"
STYLES: Final = ("", "_async")
CREATED: Final = "Sending `Create` request...\nCreate response: pid: 4288\n"


def command(script: str, *arguments: str) -> list[str]:
    """Return how a script is run; what Python warns of, such as an unclosed socket, fails it."""
    return [sys.executable, "-W", "error", str(EXAMPLES / f"{script}.py"), *arguments]


def run(script: str, *arguments: str) -> tuple[int, str, str]:
    """Return exit status, output and errors of a script."""
    environment = {**os.environ, "PYTHONPATH": python_path()}
    done = subprocess.run(command(script, *arguments), env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@contextlib.contextmanager
def serving(script: str, address: str) -> Iterator[subprocess.Popen[str]]:
    """Run a server that has begun to listen."""
    environment = {**os.environ, "PYTHONPATH": python_path()}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command(script, address), env=environment, stdout=pipe, stderr=pipe, text=True)
    with process:
        try:
            assert process.stdout is not None
            assert f"Serving on {address}\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


def connected(address: str, version: str = "example") -> str:
    """Return what connect.py prints."""
    return (
        f"Connecting to {address}...\n"
        "Sending `Connect` request...\n"
        f'Connect response: version: "{version}"\n'
        "Sending `Shutdown` request...\n"
        'Shutdown response: ""\n'
    )


@pytest.fixture
def address(tmp_path: Path) -> str:
    """Return where the server of this test listens."""
    return f"unix://{tmp_path / 'task.sock'}"


@pytest.mark.parametrize("client", STYLES)
@pytest.mark.parametrize("server", STYLES)
def test_each_client_calls_each_server(server: str, client: str, address: str) -> None:
    """Create and Connect are answered; Shutdown is too, and ends the server, which removes its socket."""
    with serving(f"ttrpc_server{server}", address) as process:
        assert (0, CREATED, "") == run(f"ttrpc_client{client}", address)
        assert (0, connected(address), "") == run(f"connect{client}", address)

        output = process.communicate(timeout=10)

    assert (0, ("Create request\nConnect request\nShutdown request\n", "")) == (process.returncode, output)
    assert not Path(address.removeprefix("unix://")).exists()


def test_the_readme_beside_them_shows_what_they_print(address: str) -> None:
    """One block is the server's terminal, the other the clients'."""
    readme = (EXAMPLES.parent / "README.md").read_text().replace("unix:///tmp/task.sock", address)
    blocks = re.findall(r"^```console\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    (server, shown), *clients = [
        part.split("\n", 1) for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    ]

    assert f"python protos/examples/ttrpc_server.py {address}" == server
    assert 2 == len(clients)
    with serving("ttrpc_server", address) as process:
        for command, printed in clients:
            python, script, argument = command.split()

            assert ("python", EXAMPLES, address) == (python, ROOT / Path(script).parent, argument)
            assert (0, printed, "") == run(Path(script).stem, argument)

        assert shown == f"Serving on {address}\n{process.communicate(timeout=10)[0]}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("server", STYLES)
def test_a_signal_ends_a_server_in_order(server: str, number: signal.Signals, address: str) -> None:
    """Without a word, with exit status 0 and without a socket left."""
    with serving(f"ttrpc_server{server}", address) as process:
        process.send_signal(number)

        output = process.communicate(timeout=10)

    assert (0, ("", "")) == (process.returncode, output)
    assert not Path(address.removeprefix("unix://")).exists()


class NewTask(TaskService):
    """A shim that serves task v3 alone, as Go's of containerd 2.x does."""

    def connect(self, context: ttrpc.CallContext, request: ConnectRequest) -> ConnectResponse:
        """Answer with the id that is asked for."""
        return ConnectResponse(version=request.id)

    def shutdown(self, context: ttrpc.CallContext, request: ShutdownRequest) -> Empty:
        """Answer if it is the expected call."""
        if (request.id, request.now) != ("123", True):
            raise ttrpc.RpcError(ttrpc.Code.INVALID_ARGUMENT, f"odd request {request}")
        return Empty()


@pytest.mark.parametrize("client", STYLES)
def test_connect_falls_back_to_task_v3(client: str, address: str) -> None:
    """A shim that does not know task v2 is asked with v3; the second argument is the container's id."""
    with ttrpc.Server([task_service(NewTask())]) as server:
        server.listen(address)

        assert (0, connected(address, "c1"), "") == run(f"connect{client}", address, "c1")


@pytest.mark.parametrize("client", [f"{name}{style}" for name in ("connect", "ttrpc_client") for style in STYLES])
def test_a_client_says_that_nobody_is_there(client: str, address: str) -> None:
    """In one line that names the address, with exit status 1."""
    code, _, errors = run(client, address)

    assert (1, f"{EXAMPLES / client}.py: [Errno 2] cannot connect to {address}: No such file or directory\n") == (
        code,
        errors,
    )


@pytest.mark.parametrize("script", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_without_an_address_a_script_tells_how_it_is_used(script: str) -> None:
    """Exit status 1 and one line."""
    code, output, errors = run(script)

    assert (1, "") == (code, output)
    assert errors.startswith(f"usage: {EXAMPLES / script}.py ADDRESS")
    assert 1 == errors.count("\n")
