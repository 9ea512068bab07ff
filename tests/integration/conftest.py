"""Tests under real containerds: `--containerd=1.6|1.7|2.1|all|1.6,2.1` and `--shim=frozen,unfrozen` choose which.

Each release with each kind of shim is one private containerd, started once and shared by all tests. A test names its
containers with `name` and leaves no task; at the end of each containerd nothing at all may be left. What is missing on
the machine (root, containerd, runc, busybox, the frozen binary) fails the tests that need it, none is skipped.
Tests that harm their containerd make one of their own, from `release` and `shim_folder`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypedDict, TypeVar, Unpack

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from shim import ttrpc
from shim.api import task_v2_pb2 as task_api
from shim.testing import image, releases
from shim.testing.containerd import Containerd
from shim.testing.events import EventLog
from shim.testing.releases import Release, ReleaseError

PROJECT: Final = Path(__file__).parents[2]
SHIM: Final = "containerd-shim-pyrunc-v1"
FROZEN: Final = PROJECT / "dist" / SHIM
KINDS: Final = ("frozen", "unfrozen")
# Generous, for a busy machine of two cores; the first test on a containerd pays for its start too.
TIMEOUT_S: Final = 120

ResponseT = TypeVar("ResponseT", bound=Message)
Spec = dict[str, Any]  # an OCI config.json


# What to run against.


@dataclass(frozen=True)
class Flavour:
    """One kind of shim under one release of containerd; `release` is the complaint if there is no such release."""

    key: str
    kind: str
    release: Release | str

    def __str__(self) -> str:
        return f"{self.key}-{self.kind}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that choose releases and kinds of shim."""
    group = parser.getgroup("integration")
    group.addoption("--containerd", default="1.6", help="releases to test under: 1.6, 1.7, 2.1, all, or 1.6,2.1")
    group.addoption("--shim", default=",".join(KINDS), help="kinds of shim to test: frozen, unfrozen, or both")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that uses a containerd once for each flavour."""
    if "flavour" in metafunc.fixturenames:
        config = metafunc.config
        chosen = flavours(config.getoption("containerd", "1.6"), config.getoption("shim", ",".join(KINDS)))
        metafunc.parametrize("flavour", chosen, indirect=True, ids=str, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests here more time than the unit tests have, unless they set their own."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@functools.cache
def flavours(keys: str, kinds: str) -> tuple[Flavour, ...]:
    """Return the flavours that the two options mean.

    Raises:
        UsageError: an option has a value that means nothing.
    """
    unknown = set(kinds.split(",")) - set(KINDS)
    if unknown:
        raise pytest.UsageError(f"--shim={kinds}: {', '.join(sorted(unknown))} is neither of {', '.join(KINDS)}")
    found: dict[str, Release | str] = {}
    for key in keys.split(","):
        try:
            if key == "all":
                found.update((release.key, release) for release in releases.find_all())
            else:
                release = releases.find(key)
                found[release.key] = release
        except ReleaseError as error:
            found[key] = str(error)
    return tuple(Flavour(key, kind, release) for key, release in found.items() for kind in kinds.split(","))


@pytest.fixture(scope="session")
def flavour(request: pytest.FixtureRequest) -> Flavour:
    """Return which kind of shim is tested under which release."""
    chosen: Flavour = request.param
    return chosen


@pytest.fixture(scope="session")
def release(flavour: Flavour) -> Release:
    """Return the release of containerd to test under; fails where the machine cannot run it."""
    if isinstance(flavour.release, str):
        pytest.fail(f"no containerd {flavour.key}: {flavour.release}", pytrace=False)
    missing = []
    if os.geteuid() != 0:
        missing.append("root: run the tests as root")
    if shutil.which("runc", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") is None:
        missing.append("runc: install the Debian package runc")
    try:
        image.find_busybox()
    except image.ImageError as error:
        missing.append(f"busybox: {error}")
    if missing:
        pytest.fail(f"cannot run containers without {'; '.join(missing)}", pytrace=False)
    return flavour.release


@pytest.fixture(scope="session")
def shim_folder(flavour: Flavour, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that holds the shim under test and nothing else of that name."""
    if flavour.kind == "frozen":
        if not os.access(FROZEN, os.X_OK):
            pytest.fail(f"there is no dist/{SHIM}: build it with ./just build, or use --shim=unfrozen", pytrace=False)
        return FROZEN.parent
    folder = tmp_path_factory.mktemp("unfrozen")
    script = folder / SHIM
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(PROJECT)!r})\n"
        "from shim.engine.__main__ import main\nmain()\n"
    )
    script.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def containerd(release: Release, shim_folder: Path) -> Iterator[Containerd]:
    """Return a containerd that all tests of this flavour share; in the end it must have left nothing behind."""
    with Containerd(release, [shim_folder]) as running:
        running.import_image()
        yield running
    if running.left_behind:
        pytest.fail("left behind:\n" + "\n".join(running.left_behind), pytrace=False)


@pytest.fixture(scope="session")
def events(containerd: Containerd) -> EventLog:
    """Return the events of all containers of this containerd, from its first test on."""
    return containerd.events()


# What a test uses.


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Return a container id that no other test has; append to it for more of them."""
    words = re.sub("[^a-z0-9]+", "-", request.function.__name__.removeprefix("test_"))
    return f"{words[:40].strip('-')}-{next(_SERIAL)}"


_SERIAL: Final = itertools.count(1)


@pytest.fixture(autouse=True)
def leaves_no_task(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a task or container in the shared containerd, and remove it."""
    if "containerd" not in request.fixturenames:
        yield
        return
    containerd: Containerd = request.getfixturevalue("containerd")
    yield
    left = {what: containerd.ctr(what, "ls", "-q").stdout.split() for what in ("tasks", "containers")}
    if left["tasks"]:
        containerd.ctr("tasks", "rm", "--force", *left["tasks"], check=False)
    if left["containers"]:
        containerd.ctr("containers", "rm", *left["containers"], check=False)
    if any(left.values()):
        pytest.fail(f"the test left behind: {left}", pytrace=False)


@pytest.fixture
def remove(containerd: Containerd) -> Callable[[str], None]:
    """Return a function that kills and deletes a task, if there is one, and its container."""

    def remove_container(container: str) -> None:
        containerd.ctr("tasks", "rm", "--force", container, check=False)
        containerd.ctr("containers", "rm", container)

    return remove_container


@pytest.fixture
def connect(containerd: Containerd) -> Iterator[Callable[[str], TaskClient]]:
    """Return a function that connects to the task service of a container's shim, past containerd."""
    clients: list[TaskClient] = []

    def connect_to(container: str) -> TaskClient:
        clients.append(TaskClient(shim_address(containerd.bundle(container)), container))
        return clients[-1]

    yield connect_to
    for client in clients:
        client.close()


@pytest.fixture
def guests(containerd: Containerd, name: str, remove: Callable[[str], None]) -> Iterator[Guests]:
    """Return a maker of containers past containerd; all of them are gone at the end of the test."""
    containerd.run(f"{name}-host", "sleep", "1000", detach=True, options=["--null-io"])
    maker = Guests(containerd, f"{name}-host")
    yield maker
    maker.close()
    remove(maker.host)


@pytest.fixture
def until() -> Callable[[Callable[[], object], str], None]:
    """Return a function that waits until a condition holds, and fails with a text that says what was waited for."""
    return wait_until


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    """Poll `condition()` until it is true; AssertionError naming `what` when it is not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


class Guests:
    """Makes containers by calls to a shim that serves an ordinary container (`host`), so containerd knows none of them.

    For the steps that `ctr` does in one (create and start), and for specs that it cannot write. Their root file system
    is a bind mount of the host's.
    """

    def __init__(self, containerd: Containerd, host: str) -> None:
        self.host = host
        self._containerd = containerd
        self._address = shim_address(containerd.bundle(host))
        self._clients: list[TaskClient] = []

    def bundle(
        self, container: str, *args: str, terminal: bool = False, edit: Callable[[Spec], object] | None = None
    ) -> Path:
        """Write a bundle that runs `args` and return its folder; `edit` may change the spec before."""
        self._containerd.remember(container)
        spec: Spec = json.loads((self._containerd.bundle(self.host) / "config.json").read_text())
        spec["process"].update(args=args, terminal=terminal)
        spec["linux"]["cgroupsPath"] = f"/{self._containerd.namespace}/{container}"
        if edit is not None:
            edit(spec)
        folder = self._containerd.folder / "guests" / container
        (folder / "rootfs").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(spec))
        return folder

    def request(self, container: str, bundle: Path, **fields: Unpack[StdioFields]) -> task_api.CreateTaskRequest:
        """Return the request that creates a container from a bundle, with its stdio in `fields`."""
        request = task_api.CreateTaskRequest(id=container, bundle=str(bundle), **fields)
        source = str(self._containerd.bundle(self.host) / "rootfs")
        request.rootfs.add(type="bind", source=source, options=["rbind", "rw"])
        return request

    def client(self, container: str, service: str = "containerd.task.v2.Task") -> TaskClient:
        """Return a connection for calls about a container, which need not exist yet."""
        self._clients.append(TaskClient(self._address, container, service))
        return self._clients[-1]

    def create(
        self, container: str, *args: str, edit: Callable[[Spec], object] | None = None, **fields: Unpack[StdioFields]
    ) -> TaskClient:
        """Create a container that will run `args` once started."""
        terminal = fields.get("terminal", False)
        client = self.client(container)
        client.create(self.request(container, self.bundle(container, *args, terminal=terminal, edit=edit), **fields))
        return client

    def close(self) -> None:
        """Kill and delete what is still there."""
        for client in self._clients:
            with contextlib.suppress(ttrpc.RpcError):
                client.kill(9)
                client.wait(timeout_s=10)
            with contextlib.suppress(ttrpc.RpcError):
                client.delete()
            client.close()


class StdioFields(TypedDict, total=False):
    """Where the stdio of a new container goes."""

    stdin: str
    stdout: str
    stderr: str
    terminal: bool


def shim_address(bundle: Path) -> str:
    """Return where the shim of a bundle listens, as containerd itself finds it after a restart."""
    try:
        return (bundle / "address").read_text()
    except FileNotFoundError:
        return str(json.loads((bundle / "bootstrap.json").read_text())["address"])


class TaskClient:
    """The task service of one container's shim; requests are about that container unless they say otherwise.

    Each method raises ttrpc.RpcError when the shim refuses. `service` may be "containerd.task.v3.Task" as well.
    """

    def __init__(self, address: str, container: str, service: str = "containerd.task.v2.Task") -> None:
        self.address = address
        self.container = container
        self.service = service
        self._client = ttrpc.connect(address, timeout_s=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def call(self, method: str, request: Message, response: type[ResponseT], timeout_s: float = 60.0) -> ResponseT:
        """Make any call."""
        return self._client.call(self.service, method, request, response, timeout_s=timeout_s)

    def create(self, request: task_api.CreateTaskRequest) -> int:
        """Create a container (the request names it) and return the pid of its init."""
        return self.call("Create", request, task_api.CreateTaskResponse).pid

    def start(self, exec_id: str = "") -> int:
        """Start init or an exec and return its pid."""
        request = task_api.StartRequest(id=self.container, exec_id=exec_id)
        return self.call("Start", request, task_api.StartResponse).pid

    def state(self, exec_id: str = "") -> task_api.StateResponse:
        """Ask for the state of init or an exec."""
        request = task_api.StateRequest(id=self.container, exec_id=exec_id)
        return self.call("State", request, task_api.StateResponse)

    def wait(self, exec_id: str = "", timeout_s: float = 60.0) -> task_api.WaitResponse:
        """Wait for the end of init or an exec."""
        request = task_api.WaitRequest(id=self.container, exec_id=exec_id)
        return self.call("Wait", request, task_api.WaitResponse, timeout_s)

    def kill(self, signal: int, exec_id: str = "", *, all: bool = False) -> None:
        """Send a signal to init, an exec, or all processes."""
        request = task_api.KillRequest(id=self.container, exec_id=exec_id, signal=signal, all=all)
        self.call("Kill", request, Empty)

    def delete(self, exec_id: str = "", timeout_s: float = 60.0) -> task_api.DeleteResponse:
        """Delete the container or an exec."""
        request = task_api.DeleteRequest(id=self.container, exec_id=exec_id)
        return self.call("Delete", request, task_api.DeleteResponse, timeout_s)

    def exec(
        self,
        exec_id: str,
        *args: str,
        stdin: str = "",
        stdout: str = "",
        stderr: str = "",
        terminal: bool = False,
        process: dict[str, object] | None = None,
    ) -> None:
        """Register an exec of `args` with these stdio targets; `process` are further fields of the OCI process."""
        path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
        spec = {"args": args, "cwd": "/", "env": [path], "user": {"uid": 0, "gid": 0}, "terminal": terminal}
        request = task_api.ExecProcessRequest(
            id=self.container,
            exec_id=exec_id,
            terminal=terminal,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            spec=AnyMessage(
                type_url="types.containerd.io/opencontainers/runtime-spec/1/Process",
                value=json.dumps({**spec, **(process or {})}).encode(),
            ),
        )
        self.call("Exec", request, Empty)

    def run(self, exec_id: str, *args: str, process: dict[str, object] | None = None) -> int:
        """Exec `args` without stdio, wait for the end, delete the exec and return its exit code."""
        self.exec(exec_id, *args, process=process)
        self.start(exec_id)
        code = self.wait(exec_id).exit_status
        self.delete(exec_id)
        return code

    def pids(self) -> task_api.PidsResponse:
        """List the processes."""
        return self.call("Pids", task_api.PidsRequest(id=self.container), task_api.PidsResponse)

    def pause(self) -> None:
        """Freeze all processes."""
        self.call("Pause", task_api.PauseRequest(id=self.container), Empty)

    def resume(self) -> None:
        """Let them run again."""
        self.call("Resume", task_api.ResumeRequest(id=self.container), Empty)

    def resize(self, width: int, height: int, exec_id: str = "") -> None:
        """Set the size of a terminal."""
        request = task_api.ResizePtyRequest(id=self.container, exec_id=exec_id, width=width, height=height)
        self.call("ResizePty", request, Empty)

    def close_stdin(self, exec_id: str = "") -> None:
        """Say that no more input will come."""
        self.call("CloseIO", task_api.CloseIORequest(id=self.container, exec_id=exec_id, stdin=True), Empty)

    def update(self, resources: dict[str, object]) -> None:
        """Change limits; `resources` is the content of OCI's LinuxResources."""
        packed = AnyMessage(
            type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
            value=json.dumps(resources).encode(),
        )
        self.call("Update", task_api.UpdateTaskRequest(id=self.container, resources=packed), Empty)

    def stats(self) -> AnyMessage:
        """Ask for metrics, still packed."""
        return self.call("Stats", task_api.StatsRequest(id=self.container), task_api.StatsResponse).stats

    def connect(self) -> task_api.ConnectResponse:
        """Ask for the pids of shim and init."""
        return self.call("Connect", task_api.ConnectRequest(id=self.container), task_api.ConnectResponse)

    def shutdown(self) -> None:
        """Ask the shim to end, which it does if it has no containers."""
        self.call("Shutdown", task_api.ShutdownRequest(id=self.container), Empty)
