"""A bundle, sockets of its own, and a shim, as a program, to run there as containerd does."""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shim.api.task_v3_ttrpc import TaskRpcs
from shim.host.process import find_by_arguments
from shim.runtime.address import socket_path
from shim.ttrpc import Client, Metadata, Rpc, connect
from tests.fakes import PATIENCE_S, python_path, wait_until

Result = subprocess.CompletedProcess[bytes]


class Home:
    """A bundle with a log, and the shim run in it."""

    def __init__(self, folder: Path, sockets: Path, spawn: str, *program: str) -> None:
        self.program = program or ("tests.runtime.tiny",)
        self.id = f"tiny-{secrets.token_hex(4)}"
        self.bundle = folder / "bundle"
        self.sockets = sockets
        self.bundle.mkdir()
        (self.bundle / "log").touch()
        self.python: tuple[str, ...] = ()
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": python_path(),
            "CONTAINERD_SHIM_SPAWN": spawn,
            "TINY_SOCKETS": str(self.sockets),
            "NOTIFY_SOCKET": "/run/notify",
        }

    def run(self, *arguments: str, stdin: bytes = b"", **environment: str) -> Result:
        """Run the shim to its end."""
        command = [sys.executable, *self.python, "-m", *self.program, *arguments]
        env = {**self.environment, **environment}
        return subprocess.run(command, cwd=self.bundle, env=env, input=stdin, capture_output=True, timeout=PATIENCE_S)

    def start(self, *, stdin: bytes = b"", flags: tuple[str, ...] = (), **environment: str) -> Result:
        """Run `start` as containerd does."""
        named = ("-namespace", "n", "-address", "/a", "-publish-binary", "/b", "-id", self.id)
        return self.run(*named, *flags, "start", stdin=stdin, **environment)

    @property
    def socket(self) -> Path:
        """Where the daemon listens."""
        return Path(socket_path("/a", "n", self.id, str(self.sockets)))

    @property
    def address(self) -> str:
        """Where to call it."""
        return f"unix://{self.socket}"

    def connect(self) -> Client:
        """Call the daemon that a `start`, which has to succeed, leaves."""
        started = self.start()

        assert (0, b"", self.address) == (started.returncode, started.stderr, started.stdout.decode())
        assert wait_until(self.daemons)  # one has no arguments in the first moment of its life
        return connect(self.address, timeout_s=PATIENCE_S)

    def daemons(self) -> list[int]:
        """Return the pids of this container's daemons."""
        return find_by_arguments("-id", self.id)

    def log(self) -> str:
        """Return what has been logged."""
        return (self.bundle / "log").read_text()

    def has_ended(self) -> bool:
        """Wait until no daemon is left, nor a socket."""
        return wait_until(lambda: not self.daemons() and not self.socket.exists())

    def close(self) -> None:
        """End what is left, in good order, which is to succeed."""
        for pid in self.daemons():
            os.kill(pid, signal.SIGTERM)
        ended = wait_until(lambda: not self.daemons())
        for pid in self.daemons():
            os.kill(pid, signal.SIGKILL)

        assert ended
        assert [] == [*self.sockets.glob("*")]


Make = Callable[[str], Home]


def ask(client: Client, rpc: Rpc[Any, Any], *, metadata: Metadata = (), **fields: Any) -> Any:
    """Call a method with a request of these fields."""
    return client.call(rpc, rpc.request(**fields), timeout_s=PATIENCE_S, metadata=metadata)


def facts_of(client: Client, metadata: Metadata = ()) -> dict[str, Any]:
    """Return what Connect tells."""
    facts: dict[str, Any] = json.loads(ask(client, TaskRpcs.CONNECT, metadata=metadata).version)
    return facts
