"""What a client of containerd has in hand, here without containerd: calls to a shim, fifos for stdio, bundles."""

from __future__ import annotations

import contextlib
import json
import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from shim import ttrpc
from shim.api import task_v2_pb2 as task_api
from shim.testing.containerd import Containerd

ResponseT = TypeVar("ResponseT", bound=Message)
Spec = dict[str, Any]  # an OCI config.json


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    """Poll `condition()` until it is true; AssertionError naming `what` when it is not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def shim_address(bundle: Path) -> str:
    """Return where the shim of a bundle listens, as containerd itself finds it after a restart."""
    try:
        return (bundle / "address").read_text()
    except FileNotFoundError:
        return str(json.loads((bundle / "bootstrap.json").read_text())["address"])


def descriptors(pid: int) -> list[str]:
    """Return what the descriptors of a process refer to."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(entry))
        except FileNotFoundError:
            continue
    return sorted(found)


class Fifo:
    """A fifo for output, with its reading end open."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)
        self._fd: int | None = None
        self.open()

    def open(self) -> None:
        """Begin to read; bytes wait in the fifo until `read` is called."""
        self.close()
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    def close(self) -> None:
        """Stop reading, as a client that goes away does."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def read(self, size: int = -1, timeout_s: float = 30.0) -> bytes:
        """Read exactly `size` bytes, or up to the end."""
        assert self._fd is not None
        content = bytearray()
        deadline = time.monotonic() + timeout_s
        while len(content) != size:
            assert select.select([self._fd], [], [], deadline - time.monotonic())[0], f"only {bytes(content[-200:])!r}"
            chunk = os.read(self._fd, 1 << 20 if size < 0 else size - len(content))
            if not chunk:
                assert size < 0, f"the end came after {len(content)} bytes: {bytes(content[-200:])!r}"
                break
            content += chunk
        return bytes(content)


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
        return self._client.call(ttrpc.Rpc(self.service, method, type(request), response), request, timeout_s=timeout_s)

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


class StdioFields(TypedDict, total=False):
    """Where the stdio of a new container goes."""

    stdin: str
    stdout: str
    stderr: str
    terminal: bool


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
