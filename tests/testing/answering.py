"""Shims that answer as they are told, right or wrong, and the four ways in which real ones read stdin.

`Answering` is a program that prints bytes; a server of the tests' own process stands where its address leads.
"""

import os
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from shim.api import task_v2_pb2, task_v2_ttrpc, task_v3_pb2, task_v3_ttrpc
from shim.ttrpc import CallContext, Server, Service
from tests.fakes import ROOT

PID: Final = 4711


class V2(task_v2_ttrpc.TaskService):
    """Knows Connect alone."""

    def connect(self, context: CallContext, request: task_v2_pb2.ConnectRequest, /) -> task_v2_pb2.ConnectResponse:
        """Tell which version was called."""
        return task_v2_pb2.ConnectResponse(shim_pid=PID, version="v2")


class V3(task_v3_ttrpc.TaskService):
    """Knows Connect alone."""

    def connect(self, context: CallContext, request: task_v3_pb2.ConnectRequest, /) -> task_v3_pb2.ConnectResponse:
        """Tell which version was called."""
        return task_v3_pb2.ConnectResponse(shim_pid=PID, version="v3")


def services(*, has_v3: bool = True) -> list[Service]:
    """Return both versions of the task service, or the old one alone."""
    v3 = [task_v3_ttrpc.task_service(V3())] if has_v3 else []
    return [task_v2_ttrpc.task_service(V2()), *v3]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where a daemon answers, as a plain text answer says it."""
    address = f"unix://{tmp_path}/daemon"
    with Server(services()) as server:
        server.listen(address)
        yield address


@pytest.fixture
def abstract() -> Iterator[str]:
    """The same at an abstract name."""
    name = f"name-of-{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0{name}")
    listener.listen()
    with Server(services()) as server:
        server.loop.call_soon(lambda: server.add_listener(listener))
        yield name


class Answering:
    """A shim whose every action prints what it is told."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.path = folder / "containerd-shim-answering-v1"
        self._answer = folder / "answer"
        self.stdin = folder / "stdin"
        self.facts = folder / "facts"
        self.says(b"")

    def says(self, output: bytes, *, errors: str = "", first: str = "", status: int = 0, then: str = "") -> None:
        """Print `first` and `errors` on stderr around `output` on stdout, and end with a status."""
        self._answer.write_bytes(output)
        quoted = shlex.quote
        self.path.write_text(
            f"#!/bin/sh\ncat > {quoted(str(self.stdin))}\npipes=$(readlink /proc/$$/fd/1 /proc/$$/fd/2)\n"
            f'{{ printf "%s\\n" "$PWD" "$@"; env; echo "$pipes"; }} '
            f"> {quoted(str(self.facts))}.$$\nmv {quoted(str(self.facts))}.$$ {quoted(str(self.facts))}\n"
            f"printf %s {quoted(first)} >&2\ncat {quoted(str(self._answer))}\nprintf %s {quoted(errors)} >&2\n"
            f"{then}\nexit {status}\n"
        )
        self.path.chmod(0o755)


_READER: Final = """\
import sys
sys.path.append({root!r})
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from shim.api.bootstrap_pb2 import BootstrapParams, BootstrapResult
data = sys.stdin.buffer.read()
names = dict(zip(sys.argv[1::2], sys.argv[2::2]))
def told():
    try:
        params = BootstrapParams.FromString(data)
    except DecodeError:
        return None
    return params if params.instance_id == names["-id"] and params.namespace == names["-namespace"] else None
def answer_result():
    sys.stdout.buffer.write(BootstrapResult(version=3, address={address!r}, protocol="ttrpc").SerializeToString())
def fail(text):
    sys.exit(text)
{body}
"""
_BODIES: Final = {
    "1.6 to 2.2": """\
options = Any.FromString(data)
if options.type_url not in ("", "containerd.runc.v1.Options"):
    fail(f"type with url {{options.type_url}}: not found")
print({address!r}, end="")
""",
    "2.3": "answer_result()\n",
    "2.4": """\
if told() is None:
    fail("shim was started through the deprecated API but was built against the new API")
answer_result()
""",
    "both": """\
if told() is None:
    print({address!r}, end="")
else:
    answer_result()
""",
}


def reader(folder: Path, built_for: str, address: str) -> list[str]:
    """Return the command of a shim that reads stdin as shims built for a version of containerd do."""
    path = folder / "reader.py"
    body = _BODIES[built_for].format(address=address)
    path.write_text(_READER.format(root=str(ROOT), address=address, body=body))
    return [sys.executable, str(path)]
