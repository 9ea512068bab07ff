"""The pod sandbox: what holds a pod's namespaces and cgroup when containerd leaves the whole pod to the shim.

Rule: a sandbox is a container that is created and never started: its init, waiting at the OCI runtime's gate, holds
what the pod's containers join by its pid.  So everything that makes, finds and removes containers serves it too.
Spec: contract 13; containerd api/runtime/sandbox/v1; kubernetes cri-api runtime/v1 for what CRI says of the pod.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from shim.api import sandbox_pb2 as api
from shim.engine.container import NO_CHECKPOINT
from shim.engine.messages import exit_fields, mounts_of
from shim.engine.options import RuncOptions
from shim.engine.stdio import Stdio
from shim.engine.task import State
from shim.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ShimError,
)
from shim.host.mount import Mount
from shim.runtime.sandbox import Sandbox
from shim.runtime.timestamps import timestamp
from shim.ttrpc.context import Deferred
from shim.ttrpc.wire import fields

if TYPE_CHECKING:
    from shim.engine.container import Container
    from shim.engine.service import Engine
    from shim.runtime.reaper import Exit
    from shim.ttrpc.context import CallContext

READY: Final = "SANDBOX_READY"
NOT_READY: Final = "SANDBOX_NOTREADY"

_POD_CONFIG: Final = "runtime.v1.PodSandboxConfig"
_NODE: Final = 2  # NamespaceMode: the host's
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "ppc64le": "ppc64le"}
# Looked for by the runtime before its gate, and never run.
_PAUSE: Final = "pause"


class PodConfig(NamedTuple):
    """What CRI says of a pod, as far as its sandbox goes; the defaults are those of a pod that says nothing."""

    hostname: str = ""
    cgroup_parent: str = ""
    sysctls: tuple[tuple[str, str], ...] = ()
    shares_network: bool = False
    shares_pids: bool = False
    shares_ipc: bool = False


class _Sandbox:
    """One sandbox from CreateSandbox on."""

    def __init__(self, bundle: str, mounts: list[Mount]) -> None:
        self.bundle = bundle
        self.mounts = mounts
        self.created_at: float | None = None
        self.container: Container | None = None

    @property
    def is_ready(self) -> bool:
        """True while its init holds the namespaces."""
        return self.container is not None and self.container.init.state is State.CREATED


class PodSandboxes(Sandbox):
    """The sandbox service of pyrunc; one daemon has one sandbox, as containerd uses it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._sandboxes: dict[str, _Sandbox] = {}

    def create_sandbox(self, context: CallContext, request: api.CreateSandboxRequest, /) -> api.CreateSandboxResponse:
        """Write the spec of the sandbox, unless its bundle has one."""
        with self._lock:
            if request.sandbox_id in self._sandboxes:
                raise AlreadyExistsError(f"sandbox {request.sandbox_id}")
            self._sandboxes[request.sandbox_id] = _Sandbox(request.bundle_path, mounts_of(request.rootfs))
        try:
            if not os.path.exists(os.path.join(request.bundle_path, "config.json")):
                config = read_pod_config(request.options)
                _write_bundle(request, config, self._engine.namespace)
        except BaseException:
            with self._lock:
                self._sandboxes.pop(request.sandbox_id, None)
            raise
        return api.CreateSandboxResponse()

    def start_sandbox(self, context: CallContext, request: api.StartSandboxRequest, /) -> api.StartSandboxResponse:
        """Make the namespaces and the cgroup."""
        sandbox = self._find(request.sandbox_id)
        if sandbox.container is not None:
            raise FailedPreconditionError(f"sandbox {request.sandbox_id} has been started: failed precondition")
        sandbox.container = self._engine.create(
            request.sandbox_id, sandbox.bundle, sandbox.mounts, Stdio("", "", "", False), RuncOptions(), NO_CHECKPOINT
        )
        sandbox.created_at = time.time()
        return api.StartSandboxResponse(pid=sandbox.container.init.pid, created_at=timestamp(sandbox.created_at))

    def platform(self, context: CallContext, request: api.PlatformRequest, /) -> api.PlatformResponse:
        """Say what the pod's containers run on: this system."""
        self._find(request.sandbox_id)
        response = api.PlatformResponse()
        machine = os.uname().machine
        response.platform.os, response.platform.architecture = "linux", _MACHINES.get(machine, machine)
        return response

    def stop_sandbox(self, context: CallContext, request: api.StopSandboxRequest, /) -> api.StopSandboxResponse:
        """End the sandbox; what is left of its containers is theirs to delete."""
        self._end(self._find(request.sandbox_id), context.deadline)
        return api.StopSandboxResponse()

    def wait_sandbox(self, context: CallContext, request: api.WaitSandboxRequest, /) -> Deferred:
        """Answer when the sandbox has ended."""
        container = self._started(request.sandbox_id)
        deferred = Deferred()

        def answer(exit_: Exit | None) -> None:
            deferred.resolve(api.WaitSandboxResponse(**exit_fields(exit_)))

        deferred.on_abandoned = lambda: container.init.forget_waiter(answer)
        container.init.on_exit(answer)
        return deferred

    def sandbox_status(self, context: CallContext, request: api.SandboxStatusRequest, /) -> api.SandboxStatusResponse:
        """Say how the sandbox is."""
        sandbox = self._find(request.sandbox_id)
        init = sandbox.container.init if sandbox.container is not None else None
        info = {"bundle": sandbox.bundle, "state": init.state.value if init is not None else "new"}
        return api.SandboxStatusResponse(
            sandbox_id=request.sandbox_id,
            pid=init.pid if init is not None else 0,
            state=READY if sandbox.is_ready else NOT_READY,
            info=info if request.verbose else {},
            created_at=timestamp(sandbox.created_at),
            exited_at=exit_fields(init.exit if init is not None else None)["exited_at"],
        )

    def ping_sandbox(self, context: CallContext, request: api.PingRequest, /) -> api.PingResponse:
        """Say that the sandbox is there."""
        self._find(request.sandbox_id)
        return api.PingResponse()

    def shutdown_sandbox(
        self, context: CallContext, request: api.ShutdownSandboxRequest, /
    ) -> api.ShutdownSandboxResponse:
        """Forget the sandbox, and end the shim if no container is left."""
        with self._lock:
            sandbox = self._sandboxes.get(request.sandbox_id)
        if sandbox is not None:
            self._end(sandbox, context.deadline)
            with self._lock:
                self._sandboxes.pop(request.sandbox_id, None)
        self._engine.shutdown_if_empty()
        return api.ShutdownSandboxResponse()

    def sandbox_metrics(
        self, context: CallContext, request: api.SandboxMetricsRequest, /
    ) -> api.SandboxMetricsResponse:
        """Return the numbers of the sandbox's own cgroup."""
        container = self._started(request.sandbox_id)
        response = api.SandboxMetricsResponse()
        response.metrics.timestamp.CopyFrom(timestamp(time.time()))
        response.metrics.id = request.sandbox_id
        self._engine.fill_metrics(container, response.metrics.data)
        return response

    def _end(self, sandbox: _Sandbox, deadline: float | None) -> None:
        """Delete what holds the namespaces, unless that has been."""
        container = sandbox.container
        if container is not None and container.init.state is not State.DELETED:
            container.delete(deadline)
            self._engine.containers.remove(container)

    def _find(self, sandbox_id: str) -> _Sandbox:
        with self._lock:
            try:
                return self._sandboxes[sandbox_id]
            except KeyError:
                raise NotFoundError(f"sandbox {sandbox_id}: not found") from None

    def _started(self, sandbox_id: str) -> Container:
        container = self._find(sandbox_id).container
        if container is None:
            raise FailedPreconditionError(f"sandbox {sandbox_id} has not been started: failed precondition")
        return container


def read_pod_config(options: Any) -> PodConfig:
    """Return what CRI's PodSandboxConfig says, by its field numbers; other options, and none, say nothing.

    Raises:
        InvalidArgumentError: It cannot be decoded; the text names its type.
    """
    if options.type_url.rpartition("/")[2] != _POD_CONFIG:
        return PodConfig()
    try:
        pod = _Fields(options.value)
        linux = pod.message(8)
        namespaces = linux.message(2).message(1)
        return PodConfig(
            hostname=pod.text(2),
            cgroup_parent=linux.text(1),
            sysctls=tuple((entry.text(1), entry.text(2)) for entry in linux.messages(3)),
            shares_network=namespaces.number(1) == _NODE,
            shares_pids=namespaces.number(2) == _NODE,
            shares_ipc=namespaces.number(3) == _NODE,
        )
    except ValueError as error:
        raise InvalidArgumentError(f"cannot decode {options.type_url}: {error}: invalid argument") from None


class _Fields:
    """The fields of a message that is known by its numbers only; the last of each number counts."""

    def __init__(self, data: bytes) -> None:
        self._values = [(number, value) for number, _, value in fields(data)]

    def messages(self, number: int) -> list[_Fields]:
        return [_Fields(value) for found, value in self._values if found == number and isinstance(value, bytes)]

    def message(self, number: int) -> _Fields:
        return (self.messages(number) or [_Fields(b"")])[-1]

    def text(self, number: int) -> str:
        values = [value for found, value in self._values if found == number and isinstance(value, bytes)]
        return values[-1].decode() if values else ""

    def number(self, number: int) -> int:
        values = [value for found, value in self._values if found == number and isinstance(value, int)]
        return values[-1] if values else 0


def sandbox_spec(sandbox_id: str, netns_path: str, config: PodConfig, namespace: str) -> dict[str, object]:
    """Return the OCI spec of a pod's sandbox, as containerd's own pause container has it."""
    kinds: list[dict[str, str]] = [{"type": "mount"}]
    if not config.shares_ipc:
        kinds.append({"type": "ipc"})
    if not config.shares_pids:
        kinds.append({"type": "pid"})
    has_network = bool(netns_path) and not config.shares_network
    if has_network:  # a name of its own goes with a network of its own
        kinds += [{"type": "network", "path": netns_path}, {"type": "uts"}]
    parent = config.cgroup_parent or f"/{namespace}"
    is_slice = os.path.basename(parent).endswith(".slice")
    linux = {
        "namespaces": kinds,
        "cgroupsPath": f"{os.path.basename(parent)}:cri-containerd:{sandbox_id}"
        if is_slice
        else os.path.join(parent, sandbox_id),
        "sysctl": dict(config.sysctls),
        "resources": {"cpu": {"shares": 2}},
    }
    spec: dict[str, object] = {
        "ociVersion": "1.0.2",
        "process": {
            "args": [f"/{_PAUSE}"],
            "cwd": "/",
            "env": ["PATH=/"],
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=64k"]},
        ],
        "linux": linux,
    }
    if config.hostname and has_network:
        spec["hostname"] = config.hostname
    return spec


def _write_bundle(request: api.CreateSandboxRequest, config: PodConfig, namespace: str) -> None:
    """Make a bundle of what containerd left: an empty folder, as a rule."""
    spec = sandbox_spec(request.sandbox_id, request.netns_path, config, namespace)
    spec["annotations"] = dict(request.annotations)
    rootfs = os.path.join(request.bundle_path, "rootfs")
    try:
        if not request.rootfs:
            os.makedirs(rootfs, 0o711, exist_ok=True)
            for name in ("dev", "proc"):
                os.makedirs(os.path.join(rootfs, name), exist_ok=True)
            os.close(os.open(os.path.join(rootfs, _PAUSE), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o755))
        with open(os.path.join(request.bundle_path, "config.json"), "w") as file:
            json.dump(spec, file)
    except OSError as error:
        raise ShimError(f"make sandbox {request.sandbox_id}: {error.filename}: {error.strerror}") from None
