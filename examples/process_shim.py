"""A whole shim without an OCI runtime: each "container" is a plain process in a session of its own.

It needs no root file system, no cgroup and no namespace, so it also serves on a developer's laptop and on macOS.  The
spec's arguments, environment and working directory count; output goes where containerd wants it, else into the
bundle's `output.log`.
"""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import shim
from shim import CallContext, Deferred, Exit, topics
from shim import api as messages

# Waits for a line on descriptor 3, then becomes the program: the process is there from Create on, and runs from Start.
GATE = 'read -r go <&3 || exit 137; exec 3<&-; cd "$0" && exec "$@"'


class Process:
    """A container's first process, or an exec."""

    def __init__(self, spec: dict[str, Any], stdio: tuple[str, str, str]) -> None:
        self.spec = spec
        self.stdio = stdio
        self.pid = 0
        self.state = messages.Status.CREATED
        self.exit: Exit | None = None
        self.waiters: list[Deferred] = []
        self.gate = -1

    @property
    def ended(self) -> messages.WaitResponse:
        """How it ended."""
        at = self.exit.at if self.exit else None
        return messages.WaitResponse(exit_status=self.exit.status if self.exit else 0, exited_at=shim.timestamp(at))


class Container:
    """What one Create made."""

    def __init__(self, bundle: str, init: Process) -> None:
        self.bundle = bundle
        self.processes = {"": init}


class ProcessShim(shim.Shim, shim.Task):
    """Serves one container in each daemon."""

    inline = frozenset({"State", "Wait", "Connect", "Pids"})

    def create_task_service(self, publisher: shim.RemotePublisher) -> "ProcessShim":
        """Keep what the calls need."""
        self.publisher = publisher
        self.containers: dict[str, Container] = {}
        self.lock = threading.Lock()
        return self

    def describe(self) -> list[str]:
        """Say what runs, for SIGUSR1."""
        return [
            f"container {container_id} {exec_id}: pid {process.pid}, {messages.Status.Name(process.state)}"
            for container_id, container in self.containers.items()
            for exec_id, process in container.processes.items()
        ]

    def create(self, context: CallContext, request: messages.CreateTaskRequest, /) -> messages.CreateTaskResponse:
        """Start the process up to its gate."""
        spec = json.loads((Path(request.bundle) / "config.json").read_text())["process"]
        init = Process(spec, (request.stdin, request.stdout, request.stderr))
        with self.lock:
            if request.id in self.containers:
                raise shim.AlreadyExistsError(f"container {request.id}")
            self.containers[request.id] = Container(request.bundle, init)
        try:
            self.launch(request.id, "", init)
        except BaseException:
            del self.containers[request.id]
            raise
        (Path(request.bundle) / "init.pid").write_text(str(init.pid))
        self.publisher.publish(
            topics.TASK_CREATE, messages.TaskCreate(container_id=request.id, bundle=request.bundle, pid=init.pid)
        )
        return messages.CreateTaskResponse(pid=init.pid)

    def exec(self, context: CallContext, request: messages.ExecProcessRequest, /) -> messages.Empty:
        """Remember another process; Start runs it."""
        container, _ = self.find(request.id)
        with self.lock:
            if request.exec_id in container.processes:
                raise shim.AlreadyExistsError(f"exec {request.exec_id}")
            stdio = (request.stdin, request.stdout, request.stderr)
            container.processes[request.exec_id] = Process(json.loads(request.spec.value), stdio)
        event = messages.TaskExecAdded(container_id=request.id, exec_id=request.exec_id)
        self.publisher.publish(topics.TASK_EXEC_ADDED, event)
        return messages.Empty()

    def start(self, context: CallContext, request: messages.StartRequest, /) -> messages.StartResponse:
        """Open the gate."""
        _, process = self.find(request.id, request.exec_id)
        with self.lock:
            if process.state != messages.Status.CREATED:
                raise shim.FailedPreconditionError("the process has been started: failed precondition")
            process.state = messages.Status.RUNNING
        if request.exec_id:
            self.launch(request.id, request.exec_id, process)
            started = messages.TaskExecStarted(container_id=request.id, exec_id=request.exec_id, pid=process.pid)
            self.publisher.publish(topics.TASK_EXEC_STARTED, started)
        else:
            event = messages.TaskStart(container_id=request.id, pid=process.pid)
            self.publisher.publish(topics.TASK_START, event)
        gate, process.gate = process.gate, -1
        os.write(gate, b"\n")
        os.close(gate)
        return messages.StartResponse(pid=process.pid)

    def launch(self, container_id: str, exec_id: str, process: Process) -> None:
        """Spawn a process that waits at its gate."""
        stdin, stdout, stderr = process.stdio
        log = Path(self.containers[container_id].bundle) / "output.log"
        fds = [os.open(stdin or os.devnull, os.O_RDWR if stdin else os.O_RDONLY)]
        read_end, write_end = os.pipe()
        try:
            # Read and write: opening a fifo then waits for nobody.
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
            fds.append(os.open(stdout or log, flags, 0o644))
            fds.append(os.open(stderr or stdout or log, flags, 0o644))
            environment = dict(entry.split("=", 1) for entry in process.spec.get("env") or ())
            words = ["/bin/sh", "-c", GATE, str(process.spec.get("cwd") or "/"), *process.spec["args"]]
            child = self.daemon.reaper.spawn(
                words,
                env=environment,
                stdin=fds[0],
                stdout=fds[1],
                stderr=fds[2],
                pass_fds={3: read_end},
                new_session=True,
            )
        except BaseException:
            os.close(write_end)
            raise
        finally:
            for fd in (*fds, read_end):
                os.close(fd)
        process.pid, process.gate = child.pid, write_end
        child.on_exit(lambda exit_: self.ended(container_id, exec_id, process, exit_))

    def ended(self, container_id: str, exec_id: str, process: Process, exit_: Exit) -> None:
        """Tell the end of a process to who waits, and to containerd."""
        with self.lock:
            process.exit, process.state = exit_, messages.Status.STOPPED
            waiters, process.waiters = process.waiters, []
        event = messages.TaskExit(
            container_id=container_id,
            id=exec_id or container_id,
            pid=exit_.pid,
            exit_status=exit_.status,
            exited_at=shim.timestamp(exit_.at),
        )
        self.publisher.publish(topics.TASK_EXIT, event)
        for waiter in waiters:
            waiter.resolve(process.ended)

    def find(self, container_id: str, exec_id: str = "") -> tuple[Container, Process]:
        """Return a container and one of its processes."""
        container = self.containers.get(container_id)
        if container is None or exec_id not in container.processes:
            raise shim.NotFoundError(f"process {container_id} {exec_id}: not found")
        return container, container.processes[exec_id]

    def wait(self, context: CallContext, request: messages.WaitRequest, /) -> messages.WaitResponse | Deferred:
        """Answer at the end of the process."""
        _, process = self.find(request.id, request.exec_id)
        with self.lock:
            if process.exit is not None:
                return process.ended
            process.waiters.append(later := Deferred())
        return later

    def state(self, context: CallContext, request: messages.StateRequest, /) -> messages.StateResponse:
        """Say how a process is."""
        container, process = self.find(request.id, request.exec_id)
        end = process.ended
        return messages.StateResponse(
            id=request.exec_id or request.id,
            bundle=container.bundle,
            pid=process.pid,
            status=process.state,
            stdin=process.stdio[0],
            stdout=process.stdio[1],
            stderr=process.stdio[2],
            exit_status=end.exit_status,
            exited_at=end.exited_at,
        )

    def kill(self, context: CallContext, request: messages.KillRequest, /) -> messages.Empty:
        """Send a signal to a process, or to its whole session's group."""
        _, process = self.find(request.id, request.exec_id)
        if process.exit is not None or not process.pid:
            raise shim.NotFoundError("process already finished: not found")
        send = os.killpg if request.all else os.kill
        send(process.pid, request.signal)
        return messages.Empty()

    def pids(self, context: CallContext, request: messages.PidsRequest, /) -> messages.PidsResponse:
        """List the processes that live."""
        container, _ = self.find(request.id)
        alive = [process.pid for process in container.processes.values() if process.pid and process.exit is None]
        return messages.PidsResponse(processes=[messages.ProcessInfo(pid=pid) for pid in alive])

    def delete(self, context: CallContext, request: messages.DeleteRequest, /) -> messages.DeleteResponse:
        """Forget a process that has ended."""
        container, process = self.find(request.id, request.exec_id)
        if process.state == messages.Status.RUNNING:
            raise shim.FailedPreconditionError("the process runs: failed precondition")
        if process.gate >= 0:  # never started
            os.close(process.gate)
        with self.lock:
            del container.processes[request.exec_id]
            if not request.exec_id:
                del self.containers[request.id]
        end = process.ended
        if not request.exec_id:
            event = messages.TaskDelete(
                container_id=request.id, pid=process.pid, exit_status=end.exit_status, exited_at=end.exited_at
            )
            self.publisher.publish(topics.TASK_DELETE, event)
        return messages.DeleteResponse(pid=process.pid, exit_status=end.exit_status, exited_at=end.exited_at)

    def connect(self, context: CallContext, request: messages.ConnectRequest, /) -> messages.ConnectResponse:
        """Say who serves."""
        container = self.containers.get(request.id)
        pid = container.processes[""].pid if container else 0
        return messages.ConnectResponse(shim_pid=os.getpid(), task_pid=pid, version="process")

    def shutdown(self, context: CallContext, request: messages.ShutdownRequest, /) -> messages.Empty:
        """End the daemon if it has nothing left."""
        if not self.containers:
            self.exit.signal()
        return messages.Empty()

    def delete_shim(self) -> shim.Deleted:
        """Kill what a dead daemon left: the pid stands in the bundle's file."""
        try:
            pid = int((Path.cwd() / "init.pid").read_text())
            os.killpg(pid, signal.SIGKILL)
        except (OSError, ValueError):
            return shim.Deleted()
        return shim.Deleted(pid)


if __name__ == "__main__":
    shim.run("io.containerd.process.v1", ProcessShim)
