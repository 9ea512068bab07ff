"""pyrunc's daemon in a process of its own, on a fake runc, publishing to a fake containerd."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final, Self

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from shim.api import task_v2_pb2
from shim.api.runc_options_pb2 import Options
from shim.testing import EventService, FakeRunc
from shim.ttrpc import Client, ConnectionClosedError, Rpc, RpcError, connect
from tests.engine.world import OWN_PIDS
from tests.fakes import PATIENCE_S, connect_soon, python_path, wait_until

_EMPTY: Final = {"Kill", "Exec", "ResizePty", "CloseIO", "Pause", "Resume", "Update", "Checkpoint", "Shutdown"}
_REQUESTS: Final = {
    "Create": "CreateTask",
    "Exec": "ExecProcess",
    "Update": "UpdateTask",
    "Checkpoint": "CheckpointTask",
}
_RESPONSES: Final = {"Create": "CreateTask"}


class Served:
    """The daemon and its surroundings; a context manager that leaves no process behind."""

    def __init__(self, folder: Path, config: str = "") -> None:
        self.folder = folder
        self.runc = FakeRunc(folder / "bin")
        self.root = folder / "root"
        self.log = self.bundle("first") / "log"
        self.log.touch()
        self.path = folder / "s"
        self.containerd = EventService(folder / "ttrpc")
        self.containerd.start()
        self.environment = {**os.environ, "PATH": self.runc.search_path, "PYTHONPATH": python_path()}
        self.environment["TTRPC_ADDRESS"] = self.containerd.path
        (folder / "config.toml").write_text(config)
        self.environment["CONTAINERD_SHIM_CONFIG"] = str(folder / "config.toml")
        self.process = subprocess.Popen(
            [*self.command("s"), "-socket", str(self.path)], cwd=self.bundle("first"), env=self.environment
        )
        self.client: Client | None = None

    def __enter__(self) -> Self:
        try:
            self.client = connect_soon(f"unix://{self.path}")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything."""
        if self.client is not None:
            self.client.close()
        self.process.kill()
        self.process.wait()
        self.runc.close()
        self.containerd.stop()

    def command(self, container: str) -> list[str]:
        """Return the command line of the shim."""
        flags = ["-namespace", "ns", "-address", "/a", "-publish-binary", "/b", "-id", container]
        return [sys.executable, "-m", "shim.engine", *flags]

    def is_alive(self, pid: int) -> bool:
        """Say whether a process of ours runs: not another's that got its pid, and no zombie."""
        return pid in self.runc.processes()

    def connect(self) -> Client:
        """Return another client of the daemon."""
        return connect(f"unix://{self.path}", timeout_s=PATIENCE_S)

    def bundle(self, container: str) -> Path:
        """Return where a container's bundle is, made if need be."""
        path = self.folder / container
        path.mkdir(exist_ok=True)
        return path

    def call(
        self,
        method: str,
        *,
        api: ModuleType = task_v2_pb2,
        client: Client | None = None,
        timeout_s: float | None = PATIENCE_S,
        **fields: Any,
    ) -> Any:
        """Call a method of the Task service."""
        request = getattr(api, f"{_REQUESTS.get(method, method)}Request")(**fields)
        response = Empty if method in _EMPTY else getattr(api, f"{_RESPONSES.get(method, method)}Response")
        service = api.DESCRIPTOR.services_by_name["Task"].full_name
        client = client or self.client
        assert client is not None
        return client.call(Rpc(service, method, type(request), response), request, timeout_s=timeout_s)

    def create(self, container: str, script: str, *, spec: str = OWN_PIDS, **fields: Any) -> int:
        """Create a container whose init runs a shell script, and return its pid."""
        bundle = self.bundle(container)
        (bundle / "config.json").write_text(json.dumps({**json.loads(spec), "process": _process(script)}))
        fields = {"options": self.options(), **fields}
        pid: int = self.call("Create", id=container, bundle=str(bundle), **fields).pid
        return pid

    def options(self) -> AnyMessage:
        """Return the runtime's options that keep its state in this folder."""
        return AnyMessage(type_url="containerd.runc.v1.Options", value=Options(root=str(self.root)).SerializeToString())

    def run(self, container: str, script: str, **fields: Any) -> int:
        """Create and start a container, and return its pid."""
        pid = self.create(container, script, **fields)
        self.call("Start", id=container)
        return pid

    def add_exec(self, container: str, name: str, script: str, **fields: Any) -> None:
        """Register an exec that runs a shell script."""
        spec = AnyMessage(value=json.dumps(_process(script)).encode())
        self.call("Exec", id=container, exec_id=name, spec=spec, **fields)

    def exec(self, container: str, name: str, script: str, **fields: Any) -> int:
        """Run a shell script in a container, and return its pid."""
        self.add_exec(container, name, script, **fields)
        pid: int = self.call("Start", id=container, exec_id=name).pid
        return pid

    def events(self, container: str, count: int) -> list[str]:
        """Wait for a container to have so many events, and return them as `topic` or `topic exec`."""
        wait_until(lambda: len(self.containerd.of(container)) >= count)
        told = []
        for event in self.containerd.of(container):
            name = getattr(event.message, "exec_id", "") or getattr(event.message, "id", "")
            told.append(event.topic.removeprefix("/tasks/") + (f" {name}" if name not in ("", container) else ""))
        return told

    def fails(self, method: str, **fields: Any) -> tuple[int, str]:
        """Call a method that fails, and return its status."""
        try:
            self.call(method, **fields)
        except RpcError as error:
            return error.code, error.message
        raise AssertionError(f"{method} succeeded")

    def later(self, method: str, **fields: Any) -> tuple[threading.Thread, list[Any]]:
        """Call a method in a thread; its answer, or its error, comes into the list."""
        answers: list[Any] = []

        def run() -> None:
            try:
                answers.append(self.call(method, **fields))
            except (RpcError, ConnectionClosedError) as error:
                answers.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread, answers

    def action(self, container: str, action: str) -> subprocess.CompletedProcess[bytes]:
        """Run the shim's `delete`, say, in a container's bundle."""
        return subprocess.run(
            [*self.command(container), "-bundle", str(self.bundle(container)), action],
            cwd=self.bundle(container),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_S,
        )


def _process(script: str) -> dict[str, object]:
    """Return the process of a spec that runs a shell script."""
    return {"args": ["sh", "-c", script], "env": [f"PATH={os.environ['PATH']}"], "cwd": "/"}
