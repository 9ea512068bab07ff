"""The pod sandbox: what holds a pod's namespaces and cgroup when containerd leaves the whole pod to the shim.

Rule: a sandbox is a container that is created and never started: its init, waiting at the OCI runtime's gate, holds
what the pod's containers join by its pid.  So everything that makes, finds and removes containers serves it too.
Spec: contract 13; containerd api/runtime/sandbox/v1.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from shim.api import sandbox_pb2 as api
from shim.engine.bundle import Bundle
from shim.engine.container import NO_CHECKPOINT
from shim.engine.messages import exit_fields, mounts_of
from shim.engine.options import RuncOptions
from shim.engine.pod import PAUSE, read_pod_config, sandbox_spec
from shim.engine.pod_files import add_pod_files, make_pod_files, remove_pod_files
from shim.engine.stdio import Stdio
from shim.engine.task import State
from shim.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError
from shim.host.mount import Mount
from shim.runtime.sandbox import Sandbox
from shim.runtime.timestamps import timestamp
from shim.ttrpc.context import Deferred

if TYPE_CHECKING:
    from shim.engine.container import Container
    from shim.engine.service import Engine
    from shim.runtime.reaper import Exit
    from shim.ttrpc.context import CallContext

READY: Final = "SANDBOX_READY"
NOT_READY: Final = "SANDBOX_NOTREADY"

_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "ppc64le": "ppc64le"}
# Which pod a container is of.
POD_ANNOTATION: Final = "io.kubernetes.cri.sandbox-id"


class _Sandbox:
    """One sandbox from CreateSandbox on."""

    def __init__(self, bundle: Bundle, mounts: list[Mount]) -> None:
        self.bundle = bundle
        self.mounts = mounts
        self.options = RuncOptions()
        self.has_files = False
        self.removals: dict[str, tuple[str, str]] = {}
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
        """Write the spec of the sandbox and make the pod's files, unless its bundle has a spec."""
        with self._lock:
            if request.sandbox_id in self._sandboxes:
                raise AlreadyExistsError(f"sandbox {request.sandbox_id}")
            sandbox = _Sandbox(Bundle(request.bundle_path), mounts_of(request.rootfs))
            self._sandboxes[request.sandbox_id] = sandbox
        try:
            if not os.path.exists(sandbox.bundle.file("config.json")):
                _fill_bundle(sandbox, request, self._engine.namespace)
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
            request.sandbox_id,
            sandbox.bundle.path,
            sandbox.mounts,
            Stdio("", "", "", False),
            sandbox.options,
            NO_CHECKPOINT,
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
        info = {"bundle": sandbox.bundle.path, "state": init.state.value if init is not None else "new"}
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

    def adopt(self, bundle: Bundle, spec: dict[str, Any], options: RuncOptions) -> RuncOptions:
        """Give a container what all of its pod have, if the pod's sandbox is here; returns its options.

        Raises:
            BundleError: The spec cannot be written.
        """
        sandbox = self._sandbox_of(spec)
        if sandbox is None:
            return options
        if sandbox.has_files:
            add_pod_files(bundle, spec, sandbox.bundle)
        # With any runtime but Go's, containerd before 2.3.1 can send no options in such a pod.
        return options._replace(systemd_cgroup=options.systemd_cgroup or sandbox.options.systemd_cgroup)

    def note(self, spec: dict[str, Any], container_id: str, binary: str, root: str) -> None:
        """Leave in the bundle of a container's sandbox, if that is here, how to remove it should this daemon be killed.

        Raises:
            BundleError: It cannot be written.
        """
        sandbox = self._sandbox_of(spec)
        if sandbox is None:
            return
        with self._lock:
            removals = {name: how for name, how in sandbox.removals.items() if self._engine.containers.knows(name)}
            sandbox.removals = {**removals, container_id: (binary, root)}
            sandbox.bundle.write_containers(sandbox.removals)

    def _sandbox_of(self, spec: dict[str, Any]) -> _Sandbox | None:
        annotations = spec.get("annotations")
        pod = annotations.get(POD_ANNOTATION) if isinstance(annotations, dict) else None
        with self._lock:
            return self._sandboxes.get(pod) if isinstance(pod, str) else None

    def _end(self, sandbox: _Sandbox, deadline: float | None) -> None:
        """Delete what holds the namespaces, unless that has been."""
        container = sandbox.container
        if container is None:
            if sandbox.has_files:
                remove_pod_files(sandbox.bundle)
        elif container.init.state is not State.DELETED:
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


def _fill_bundle(sandbox: _Sandbox, request: api.CreateSandboxRequest, namespace: str) -> None:
    """Make a bundle of what containerd left: an empty folder, as a rule."""
    config = read_pod_config(request.options)
    sandbox.options = RuncOptions(systemd_cgroup=config.is_in_slice)
    spec = sandbox_spec(request.sandbox_id, request.netns_path, config, namespace)
    spec["annotations"] = dict(request.annotations)
    sandbox.bundle.write_spec(spec)
    if not request.rootfs:
        make_pod_files(sandbox.bundle, config, PAUSE)
        sandbox.has_files = True
