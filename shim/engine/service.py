"""The Task service, v2 and v3: protobuf in and out, one line or two for each call.

Rule: no decision is made here but how a message maps to a call of the engine; errors travel as exceptions and become
statuses at the server.  Calls that never block run on the event loop; Wait holds no thread.
Spec: containerd api/runtime/task/v2 and v3, whose messages differ in nothing but the package: both are served as v3.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.empty_pb2 import Empty

from shim.api import task_types_pb2
from shim.api import task_v3_pb2 as api
from shim.api.runc_options_pb2 import ProcessDetails
from shim.engine.binary import Farewell
from shim.engine.bundle import Bundle
from shim.engine.checkpoint import Checkpoint
from shim.engine.config import DEFAULT_CONFIG, Config
from shim.engine.container import Container, StdioOwner, Surroundings
from shim.engine.containers import Containers
from shim.engine.lifecycle import Lifecycle
from shim.engine.messages import exit_fields, mounts_of
from shim.engine.options import RuncOptions, decode_checkpoint_options, decode_options
from shim.engine.publish import TaskEvents
from shim.engine.runc import DEFAULT_BINARY, Runc
from shim.engine.state import DEFAULT_ROOT
from shim.engine.stdio import Stdio
from shim.engine.task import Act, State
from shim.errors import InvalidArgumentError, NotFoundError
from shim.host.mount import Mount
from shim.runtime.task import Task, task_services
from shim.ttrpc.service import CallContext, Deferred, LateService, Service

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from shim.engine.sandbox import PodSandboxes
    from shim.runtime.reaper import Exit
    from shim.runtime.serve import Daemon

# What never blocks: answered on the loop itself, so that no runtime call and no full pool can delay it.
INLINE: Final = frozenset({"State", "Wait", "Connect", "CloseIO", "ResizePty", "Exec", "Shutdown"})

SANDBOX: Final = "containerd.runtime.sandbox.v1.Sandbox"

_STATUS: Final = {
    State.CREATED: task_types_pb2.CREATED,
    State.CHECKPOINTED: task_types_pb2.CREATED,
    State.STARTING: task_types_pb2.CREATED,
    State.RESTORING: task_types_pb2.CREATED,
    State.RUNNING: task_types_pb2.RUNNING,
    State.PAUSING: task_types_pb2.PAUSING,
    State.PAUSED: task_types_pb2.PAUSED,
    State.STOPPED: task_types_pb2.STOPPED,
    State.DELETING: task_types_pb2.STOPPED,
    State.DELETED: task_types_pb2.STOPPED,
    State.FAILED: task_types_pb2.CREATED,
}


class RuncTask(Task):
    """All containers of one daemon."""

    inline = INLINE

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._containers = engine.containers

    def create(self, context: CallContext, request: api.CreateTaskRequest, /) -> api.CreateTaskResponse:
        """Make a container; nothing of it runs yet."""
        container = self._engine.create(
            request.id,
            request.bundle,
            mounts_of(request.rootfs),
            _stdio(request),
            decode_options(request.options),
            Checkpoint(request.checkpoint, request.parent_checkpoint),
        )
        return api.CreateTaskResponse(pid=container.init.pid)

    def start(self, context: CallContext, request: api.StartRequest, /) -> api.StartResponse:
        """Run init, or an exec."""
        container = self._containers.get(request.id)
        process = container.process(request.exec_id)
        if process.is_init:
            container.start()
        else:
            container.start_exec(process)
        return api.StartResponse(pid=process.pid)

    def delete(self, context: CallContext, request: api.DeleteRequest, /) -> api.DeleteResponse:
        """Remove what has ended: the container, or an exec."""
        container = self._containers.get(request.id)
        process = container.process(request.exec_id)
        if process.is_init:
            container.delete(context.deadline)
            self._containers.remove(container)
            self._engine.keep_log()
            self._engine.end_if_deserted()
        else:
            container.delete_exec(process, context.deadline)
        return api.DeleteResponse(pid=process.pid, **exit_fields(process.exit))

    def state(self, context: CallContext, request: api.StateRequest, /) -> api.StateResponse:
        """Say how a process is, without asking the runtime."""
        container = self._containers.get(request.id)
        process = container.process(request.exec_id)
        state = process.state
        if not process.is_init and container.init.state in (State.PAUSED, State.PAUSING):
            state = container.init.state if state is not State.STOPPED else state
        stdio = process.stdio
        return api.StateResponse(
            id=process.id,
            bundle=container.bundle.path,
            pid=process.pid,
            status=_STATUS[state],
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            terminal=stdio.terminal,
            **exit_fields(process.exit),
        )

    def wait(self, context: CallContext, request: api.WaitRequest, /) -> Deferred:
        """Answer when a process has ended, however long that takes."""
        process = self._containers.get(request.id).process(request.exec_id)
        deferred = Deferred()

        def answer(exit_: Exit | None) -> None:
            if exit_ is None and process.state is State.DELETED:
                deferred.fail(NotFoundError(f"process {process.id} never ran: not found"))
            else:
                deferred.resolve(api.WaitResponse(**exit_fields(exit_)))

        deferred.on_abandoned = lambda: process.forget_waiter(answer)
        process.on_exit(answer)
        return deferred

    def kill(self, context: CallContext, request: api.KillRequest, /) -> Empty:
        """Send a signal."""
        container = self._containers.get(request.id)
        process = container.process(request.exec_id)
        container.kill(process, request.signal, is_all=request.all, deadline=context.deadline)
        return Empty()

    def exec(self, context: CallContext, request: api.ExecProcessRequest, /) -> Empty:
        """Register another process of a container."""
        container = self._containers.get(request.id)
        container.add_exec(request.exec_id, _stdio(request), exec_spec(request.spec.value, terminal=request.terminal))
        return Empty()

    def resize_pty(self, context: CallContext, request: api.ResizePtyRequest, /) -> Empty:
        """Tell a terminal its size; without one it is fine too."""
        process = self._containers.get(request.id).process(request.exec_id)
        process.require(Act.RESIZE)
        if process.streams is not None:
            process.streams.resize(request.width, request.height)
        return Empty()

    def close_io(self, context: CallContext, request: api.CloseIORequest, /) -> Empty:
        """Let a process see the end of its input."""
        self._containers.get(request.id).process(request.exec_id).close_stdin()
        return Empty()

    def pause(self, context: CallContext, request: api.PauseRequest, /) -> Empty:
        """Freeze a container."""
        self._containers.get(request.id).pause()
        return Empty()

    def resume(self, context: CallContext, request: api.ResumeRequest, /) -> Empty:
        """Thaw a container."""
        self._containers.get(request.id).resume()
        return Empty()

    def update(self, context: CallContext, request: api.UpdateTaskRequest, /) -> Empty:
        """Change a container's limits."""
        self._containers.get(request.id).update(request.resources.value)
        return Empty()

    def checkpoint(self, context: CallContext, request: api.CheckpointTaskRequest, /) -> Empty:
        """Write a container to a folder; it ends if the options say so."""
        self._containers.get(request.id).write_checkpoint(request.path, decode_checkpoint_options(request.options))
        return Empty()

    def pids(self, context: CallContext, request: api.PidsRequest, /) -> api.PidsResponse:
        """List a container's processes by their pids on the host."""
        response = api.PidsResponse()
        for pid, exec_id in self._containers.get(request.id).processes():
            info = response.processes.add(pid=pid)
            if exec_id:
                _pack(info.info, ProcessDetails(exec_id=exec_id))
        return response

    def stats(self, context: CallContext, request: api.StatsRequest, /) -> api.StatsResponse:
        """Return the numbers of a container's cgroup."""
        response = api.StatsResponse()
        self._engine.fill_metrics(self._containers.get(request.id), response.stats)
        return response

    def connect(self, context: CallContext, request: api.ConnectRequest, /) -> api.ConnectResponse:
        """Say who serves the container."""
        container = self._containers.find(request.id)
        return api.ConnectResponse(shim_pid=os.getpid(), task_pid=container.init.pid if container is not None else 0)

    def shutdown(self, context: CallContext, request: api.ShutdownRequest, /) -> Empty:
        """End the shim if it has no containers left; else do nothing."""
        self._engine.shutdown_if_empty()
        return Empty()


class Engine:
    """What the task services share: the table of containers and how new ones are made."""

    def __init__(self, daemon: Daemon, config: Config | None = None) -> None:
        self._daemon = daemon
        self._config = config or DEFAULT_CONFIG
        self.containers: Containers = Containers()
        self._log_holder: str = daemon.flags.id
        self._log_lock = threading.Lock()
        lifecycle = Lifecycle(daemon.reaper, TaskEvents(daemon.publisher), daemon.pool.submit)
        daemon.on_deserted(self.end_if_deserted)
        farewell = Farewell(daemon.loop)
        daemon.on_shutdown(farewell.end)
        self._sandboxes: PodSandboxes | None = None
        self._surroundings = Surroundings(daemon.loop, lifecycle, daemon.logger, daemon.reaper, farewell)

    def services(self) -> list[Service]:
        """Return task v2 and v3, which one daemon serves side by side, and the sandbox service."""
        return [*task_services(RuncTask(self)), LateService(SANDBOX, self._sandbox_service)]

    def _sandbox_service(self) -> Service:
        """Return what most daemons are never asked for: only containerd 2 asks, of a runtime that is a sandboxer."""
        from shim.api.sandbox_ttrpc import sandbox_service
        from shim.engine.sandbox import PodSandboxes

        self._sandboxes = PodSandboxes(self)
        return sandbox_service(self._sandboxes)

    @property
    def namespace(self) -> str:
        """containerd's namespace."""
        return self._daemon.flags.namespace

    def fill_metrics(self, container: Container, data: Any) -> None:
        """Put the numbers of a container's cgroup into an Any.

        Raises:
            NotFoundError: The cgroup was not found when the container was made.
        """
        metrics: dict[str, Any] = container.metrics()
        is_unified = container.cgroup is not None and container.cgroup.is_unified
        module: ModuleType
        if is_unified:
            from shim.api import cgroups_v2_pb2 as module
        else:
            from shim.api import cgroups_v1_pb2 as module
        _pack(data, module.Metrics(**metrics))

    def create(
        self,
        container_id: str,
        path: str,
        mounts: list[Mount],
        stdio: Stdio,
        options: RuncOptions,
        checkpoint: Checkpoint,
    ) -> Container:
        """Make a container from its bundle.

        Raises:
            ShimError: What a client must hear; nothing is left behind.
        """
        if not container_id:
            raise InvalidArgumentError("container id cannot be empty: invalid argument")
        with self.containers.reserve(container_id):
            bundle = Bundle(path)
            spec = bundle.read_spec()
            if self._sandboxes is not None:
                options = self._sandboxes.adopt(bundle, spec, options)
            options = self._configured(options)
            runc = self.runtime(container_id, path, options)
            # What `delete` has to know if this daemon is killed, whoever chose it.
            used = options._replace(root=options.root if runc.root == DEFAULT_ROOT else runc.root)
            binary = options.binary_name if runc.binary == DEFAULT_BINARY else runc.binary
            bundle.write_options(used.to_json(), binary)
            if self._sandboxes is not None:
                self._sandboxes.note(spec, container_id, binary, used.root)
            owner = StdioOwner(options.io_uid, options.io_gid)
            container = Container(self._surroundings, bundle, runc, stdio, owner, checkpoint)
            container.create(mounts, lambda: self.containers.add(container))
        self.keep_log()
        return container

    def keep_log(self) -> None:
        """See to it that the log is that of a container there is: with its bundle, containerd gives it up."""
        with self._log_lock:
            if self.containers.find(self._log_holder) is not None:
                return
            container = next(iter(self.containers.all()), None)
            if container is not None and self._daemon.move_log(container.bundle.file("log")):
                self._log_holder = container.id

    def runtime(self, container_id: str, path: str, options: RuncOptions) -> Runc:
        """Return the OCI runtime of a container that is made from the bundle `path`: what to override for another."""
        return Runc(
            self._daemon.reaper,
            container_id,
            path,
            self._daemon.flags.namespace,
            options.binary_name or DEFAULT_BINARY,
            options.root or DEFAULT_ROOT,
            options.systemd_cgroup,
            options.no_pivot_root,
            options.no_new_keyring,
            options.criu_work_path,
            self._config.limits,
        )

    def describe(self) -> Iterator[str]:
        """Yield a line for each process of each container: its state, its pid, how it ended."""
        for container in self.containers.all():
            for process in (container.init, *container.execs()):
                name = container.id if process.is_init else f"{container.id} exec {process.id}"
                busy = ", an operation is under way" if process.is_busy else ""
                exit_ = process.exit
                ended = "" if exit_ is None else f", exit status {exit_.status}"
                yield f"container {name}: {process.state.value}, pid {process.pid}{ended}{busy}"

    def _configured(self, options: RuncOptions) -> RuncOptions:
        """Fill in what only the configuration says, so that `delete` finds all it needs in the bundle."""
        config = self._config
        return options._replace(binary_name=options.binary_name or config.binary_name, root=options.root or config.root)

    def end_if_deserted(self) -> None:
        """End the daemon if containerd has gone and the last container is deleted: nobody would remember to."""
        if self._daemon.is_deserted and self.containers.had_any:
            self.shutdown_if_empty()

    def shutdown_if_empty(self) -> None:
        """End the daemon unless it has containers, or one is being made."""
        if self.containers.close_if_empty():
            self._daemon.request_shutdown()


def _stdio(request: Any) -> Stdio:
    return Stdio(request.stdin, request.stdout, request.stderr, request.terminal)


def _pack(any_: Any, message: Message) -> None:
    """Fill an Any as containerd does: with the bare name of the message."""
    any_.type_url = message.DESCRIPTOR.full_name
    any_.value = message.SerializeToString()


def exec_spec(value: bytes, *, terminal: bool) -> bytes:
    """Return the OCI process of an exec with the terminal that the request asks for.

    Raises:
        InvalidArgumentError: It is no JSON object.
    """
    try:
        spec = json.loads(value.decode())
    except ValueError as error:
        raise InvalidArgumentError(f"exec spec: {error}: invalid argument") from None
    if not isinstance(spec, dict):
        raise InvalidArgumentError("exec spec: not a JSON object: invalid argument")
    if bool(spec.get("terminal", False)) == terminal:
        return value
    return json.dumps({**spec, "terminal": terminal}).encode()
