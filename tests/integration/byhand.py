"""A shim run by hand: as containerd runs it, but without one, for what containerd would hide, repair or never do.

A `Hand` has a temporary folder, a namespace, and an address of its own, at which it takes events in containerd's place.
`close` ends its daemons by Shutdown, which only those without containers obey, and returns what is left; the fixture
`hand` asserts that it is nothing. A module of tests takes over the fixtures and `pytest_generate_tests` by assignment.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim import ttrpc
from shim.api import runc_options_pb2, task_v2_pb2, types_pb2
from shim.testing import EventService, FakeContainerd, image, sweep
from shim.testing.configuration import with_opt
from shim.testing.leftovers import SOCKET_FOLDER, Leftovers, Process, Scope, processes_of, read_process, socket_name
from tests.integration.client import TaskClient, wait_until
from tests.integration.conftest import SHIM, find_program, kinds

RUNTIME_ID: Final = "io.containerd.pyrunc.v1"
OPTIONS_TYPE: Final = "containerd.runc.v1.Options"
_START_LIMIT_S: Final = 60.0
_NAMESPACES: Final = ("pid", "mount", "ipc", "uts")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test by hand for each kind of shim that is asked for."""
    if "program" in metafunc.fixturenames:
        metafunc.parametrize("program", kinds(metafunc), indirect=True, scope="session")


@pytest.fixture(scope="session")
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the shim under test."""
    return find_program(request.param, tmp_path_factory.mktemp("unfrozen"))


@pytest.fixture
def spawn() -> str:
    """Return how `start` shall make a daemon: as the shim itself likes it best, or `fork` or `reexec`."""
    return ""


@pytest.fixture
def hand(program: Path, spawn: str) -> Iterator[Hand]:
    """Return a hand to run the shim with; in the end nothing may be left of what it started."""
    hand = Hand(program, spawn)
    try:
        yield hand
    finally:
        left = hand.close()

    assert [] == left


class Hand:
    """Runs one shim's actions, and talks to the daemons that its starts leave."""

    def __init__(self, program: Path, spawn: str = "") -> None:
        self.containerd = FakeContainerd(program, style="2.0", namespace=f"h{secrets.token_hex(4)}")
        self.folder = self.containerd.folder
        self.namespace = self.containerd.namespace
        self.address = self.containerd.grpc_address
        self.tmp = self.folder / "tmp"
        self.tmp.mkdir()
        self.program = program
        self.spawn = spawn
        self.events: EventService = self.containerd.events
        self.events.start()
        self._groups: set[str] = set()
        self._read: dict[str, int] = {}
        self._clients: list[TaskClient] = []

    # Bundles.

    def bundle(self, container: str, *, spec: Mapping[str, object] | None = None, group: str = "") -> Path:
        """Make the bundle of a container (once), as containerd does before `start`."""
        if container not in self.containerd.bundles:
            self._groups |= {container, group}
            annotations = {"io.kubernetes.cri.sandbox-id": group} if group else {}
            spec = self.spec(container, "sleep", "1000") if spec is None else spec
            self.containerd.bundle(container, {**spec, "annotations": annotations}).open_log()
        return self.containerd.bundle(container).path

    def spec(self, container: str, *args: str) -> dict[str, object]:
        """Return an OCI spec that runs `args` in the image."""
        return {
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "cgroupsPath": f"/{self.namespace}/{container}",
                "namespaces": [{"type": kind} for kind in _NAMESPACES],
            },
        }

    @property
    def image(self) -> Path:
        """A root file system with busybox."""
        folder = self.folder / "image"
        if not folder.exists():
            for name in ("bin", "proc", "tmp"):
                (folder / name).mkdir(parents=True)
            shutil.copy(image.find_busybox(), folder / "bin/busybox")
            for applet in ("echo", "false", "kill", "sh", "sleep", "true"):
                (folder / "bin" / applet).symlink_to("busybox")
        return folder

    def rootfs(self) -> types_pb2.Mount:
        """Return the mount of the image, for Create."""
        return types_pb2.Mount(type="bind", source=str(self.image), options=["rbind", "rw"])

    def log(self, container: str) -> str:
        """Return what has been logged into a bundle since the last time."""
        text = self.containerd.bundle(container).log
        start, self._read[container] = self._read.get(container, 0), len(text)
        return text[start:]

    def wait_log(self, container: str, wanted: str) -> str:
        """Return what has been logged since the last time, once `wanted` is in it."""
        bundle = self.containerd.bundle(container)
        wait_until(lambda: wanted in bundle.log[self._read.get(container, 0) :], f"{wanted!r} in the log")
        return self.log(container)

    def forget(self, container: str) -> None:
        """Remove the bundle of a container that is over, and the connections to its daemon."""
        bundle = self.containerd.bundles.pop(container)
        bundle.close_log()
        bundle.remove()
        for client in [each for each in self._clients if each.container == container]:
            client.close()
            self._clients.remove(client)

    # Actions.

    def popen(
        self,
        *args: str,
        cwd: Path | None = None,
        stdin: int = subprocess.PIPE,
        wrapper: Iterable[str] = (),
        umask: int = -1,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Run the shim with these arguments alone."""
        env = {**with_opt(os.environ), "TMPDIR": str(self.tmp), "TTRPC_ADDRESS": f"{self.address}.ttrpc"}
        env |= {"CONTAINERD_SHIM_SPAWN": self.spawn} if self.spawn else {}
        return subprocess.Popen(
            [*wrapper, str(self.program), *args],
            cwd=cwd or self.folder,
            env={**env, **(environment or {})},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
            umask=umask,
        )

    def run(self, *args: str, stdin: bytes = b"", cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run the shim with these arguments alone, to its end."""
        return finish(self.popen(*args, cwd=cwd), stdin)

    def arguments(self, container: str, action: str, *, debug: bool = False) -> list[str]:
        """Return the arguments that containerd runs an action with."""
        self.bundle(container)
        call = replace(self.containerd.call(container), debug=debug)
        version = self.containerd.version
        return version.delete_arguments(call) if action == "delete" else version.start_arguments(call)

    def popen_start(self, container: str, *, debug: bool = False, **settings: Any) -> subprocess.Popen[bytes]:
        """Begin a `start`."""
        return self.popen(*self.arguments(container, "start", debug=debug), cwd=self.bundle(container), **settings)

    def start(
        self, container: str, stdin: bytes = b"", *, debug: bool = False, **settings: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """Do `start`, whatever comes of it."""
        return finish(self.popen_start(container, debug=debug, **settings), stdin)

    def serve(self, container: str, *, debug: bool = False) -> TaskClient:
        """Do `start`, which has to succeed, and connect to the daemon."""
        done = self.start(container, debug=debug)

        assert (0, b"") == (done.returncode, done.stderr)
        return self.client(container, done.stdout.decode())

    def delete(self, container: str) -> task_v2_pb2.DeleteResponse:
        """Do the `delete` action, which has to succeed without a word."""
        done = self.run(*self.arguments(container, "delete"), cwd=self.bundle(container))

        assert (0, b"") == (done.returncode, done.stderr)
        return task_v2_pb2.DeleteResponse.FromString(done.stdout)

    # The daemon.

    def socket_path(self, group: str) -> Path:
        """Return where the daemon of a group listens unless told otherwise."""
        return SOCKET_FOLDER / socket_name(self.address, self.namespace, group)

    def client(self, container: str, address: str = "", service: str = "containerd.task.v2.Task") -> TaskClient:
        """Connect to a daemon, by default to the one of a container that is a group of its own."""
        client = TaskClient(address or f"unix://{self.socket_path(container)}", container, service)
        self._clients.append(client)
        return client

    def create_request(
        self, container: str, *, mounts: Iterable[types_pb2.Mount] | None = None, binary: str = ""
    ) -> task_v2_pb2.CreateTaskRequest:
        """Return a Create of a container on the image, without stdio."""
        options = runc_options_pb2.Options(binary_name=binary)
        return task_v2_pb2.CreateTaskRequest(
            id=container,
            bundle=str(self.bundle(container)),
            rootfs=[self.rootfs()] if mounts is None else mounts,
            options=AnyMessage(type_url=OPTIONS_TYPE, value=options.SerializeToString()),
        )

    def processes(self) -> list[Process]:
        """Return every live process of ours: starts, daemons, runtimes, containers."""
        return processes_of(self.scope())

    def scope(self) -> Scope:
        """Return what belongs to us."""
        return Scope(
            shims=(SHIM,),
            namespaces=(self.namespace,),
            folders=(self.folder,),
            addresses=(self.address,),
            containers=tuple(sorted(self._groups)),
            private_temp=(self.tmp,),
        )

    def leftovers(self, settle_s: float = 5.0) -> list[str]:
        """Return a line for each thing of ours that is there, but for the bundles themselves."""
        bundles = self.containerd.bundles.values()
        known = frozenset(("path", str(path)) for bundle in bundles for path in (bundle.path, bundle.work))
        return Leftovers(self.scope()).since(known, settle_s)

    def close(self) -> list[str]:
        """End the daemons, remove everything, and return what did not go by itself."""
        addresses = {f"unix://{self.socket_path(group)}" for group in self._groups}
        for address in addresses | {client.address for client in self._clients}:
            # Refused: nobody lives there any more. Closed: it was ending already.
            with contextlib.suppress(OSError, ttrpc.ConnectionClosedError), TaskClient(address, "") as client:
                client.shutdown()
        for client in self._clients:
            client.close()
        left = self.leftovers()
        sweep.remove(self.scope())
        self.containerd.close()
        return left


def finish(process: subprocess.Popen[bytes], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Give a process its input and wait for the end of its output, as containerd does."""
    with process:
        try:
            stdout, stderr = process.communicate(stdin if process.stdin else None, _START_LIMIT_S)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def refusal(call: Callable[[], object]) -> tuple[int, str]:
    """Return code and text of the status that a call ends with."""
    with pytest.raises(ttrpc.RpcError) as caught:
        call()
    return caught.value.code, caught.value.message


def wait_gone(pid: int) -> None:
    """Wait until a process has ended; a zombie has."""
    wait_until(lambda: read_process(pid) is None, f"process {pid} ends")
