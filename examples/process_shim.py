"""A whole shim without an OCI runtime: each "container" is a plain process in a session of its own.

It needs no root file system, no cgroup and no namespace, so it also serves on a developer's laptop and on macOS.  The
spec's arguments, environment and working directory count; output goes where containerd wants it, else into the
bundle's `output.log`.  As with a pid namespace, what a process leaves running ends with it, and execs end with init.
"""

import contextlib
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import shim
from shim import CallContext, Child, Deferred, Exit, topics
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
        self.over = threading.Event()
        self.gate = -1

    @property
    def ended(self) -> messages.WaitResponse:
        """How it ended."""
        at = self.exit.at if self.exit else None
        return messages.WaitResponse(exit_status=self.exit.status if self.exit else 0, exited_at=shim.timestamp(at))

    @property
    def lives(self) -> bool:
        """True from its launch to its end."""
        return bool(self.pid) and self.exit is None

    def open_gate(self) -> None:
        """Let it run; it may have been killed meanwhile."""
        gate, self.gate = self.gate, -1
        with contextlib.suppress(BrokenPipeError):
            os.write(gate, b"\n")
        os.close(gate)

    def end(self) -> None:
        """Kill its whole session."""
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)


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
            for container_id, container in list(self.containers.items())
            for exec_id, process in list(container.processes.items())
        ]

    def create(self, context: CallContext, request: messages.CreateTaskRequest, /) -> messages.CreateTaskResponse:
        """Start the process up to its gate."""
        if request.terminal:
            raise shim.UnimplementedError("a terminal: not implemented")
        spec = json.loads((Path(request.bundle) / "config.json").read_text())["process"]
        init = Process(spec, (request.stdin, request.stdout, request.stderr))
        container = Container(request.bundle, init)
        with self.lock:
            if request.id in self.containers:
                raise shim.AlreadyExistsError(f"container {request.id}")
            self.containers[request.id] = container
        try:
            child = self.launch(container, "", init)
        except BaseException:
            with self.lock:
                del self.containers[request.id]
            raise
        event = messages.TaskCreate(container_id=request.id, bundle=request.bundle, pid=init.pid)
        self.publisher.publish(topics.TASK_CREATE, event)
        # Not before: an exit must not overtake its create.
        child.on_exit(lambda exit_: self.ended(request.id, container, "", exit_))
        return messages.CreateTaskResponse(pid=init.pid)

    def exec(self, context: CallContext, request: messages.ExecProcessRequest, /) -> messages.Empty:
        """Remember another process; Start runs it."""
        if request.terminal:
            raise shim.UnimplementedError("a terminal: not implemented")
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
        container, process = self.find(request.id, request.exec_id)
        with self.lock:
            if process.state != messages.Status.CREATED:
                raise shim.FailedPreconditionError("the process has been started: failed precondition")
            process.state = messages.Status.RUNNING
            if not request.exec_id:  # with the lock, so that no exit comes before it
                event = messages.TaskStart(container_id=request.id, pid=process.pid)
                self.publisher.publish(topics.TASK_START, event)
        if request.exec_id:
            try:
                child = self.launch(container, request.exec_id, process)
            except BaseException:
                process.state = messages.Status.CREATED
                raise
            started = messages.TaskExecStarted(container_id=request.id, exec_id=request.exec_id, pid=process.pid)
            self.publisher.publish(topics.TASK_EXEC_STARTED, started)
            child.on_exit(lambda exit_: self.ended(request.id, container, request.exec_id, exit_))
        process.open_gate()
        return messages.StartResponse(pid=process.pid)

    def launch(self, container: Container, exec_id: str, process: Process) -> Child:
        """Spawn a process that waits at its gate."""
        stdin, stdout, stderr = process.stdio
        log = Path(container.bundle) / "output.log"
        environment = dict(entry.split("=", 1) for entry in process.spec.get("env") or ())
        words = ["/bin/sh", "-c", GATE, str(process.spec.get("cwd") or "/"), *process.spec["args"]]
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:

            def pipe() -> tuple[int, int]:
                read_end, write_end = os.pipe()
                theirs.callback(os.close, read_end)
                ours.callback(os.close, write_end)
                return read_end, write_end

            def target(path: str | Path) -> int:
                # Read and write: opening a fifo then waits for nobody.
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
                theirs.callback(os.close, fd)
                return fd

            gate, opener = pipe()
            source, feeder = pipe() if stdin else (None, -1)
            child = self.daemon.reaper.spawn(
                words,
                env=environment,
                stdin=source,
                stdout=target(stdout or log),
                stderr=target(stderr or stdout or log),
                pass_fds={3: gate},
                new_session=True,
            )
            pid_file(container.bundle, exec_id).write_text(str(child.pid))
            process.pid, process.gate = child.pid, opener
            ours.pop_all()
        if stdin:
            self.daemon.pool.submit(lambda: feed(stdin, feeder))
        return child

    def ended(self, container_id: str, container: Container, exec_id: str, exit_: Exit) -> None:
        """Tell the end of a process to who waits, and to containerd."""
        process = container.processes[exec_id]
        process.end()
        pid_file(container.bundle, exec_id).unlink(missing_ok=True)
        event = messages.TaskExit(
            container_id=container_id,
            id=exec_id or container_id,
            pid=exit_.pid,
            exit_status=exit_.status,
            exited_at=shim.timestamp(exit_.at),
        )
        with self.lock:
            process.exit, process.state = exit_, messages.Status.STOPPED
            waiters, process.waiters = process.waiters, []
            self.publisher.publish(topics.TASK_EXIT, event)
            execs = [] if exec_id else [each for each in container.processes.values() if each.lives]
        for each in execs:
            each.end()
        if process.stdio[0]:
            with contextlib.suppress(OSError):  # lets go who still waits for a client to open it
                os.close(os.open(process.stdio[0], os.O_WRONLY | os.O_NONBLOCK))
        process.over.set()
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
        try:
            if not process.lives:
                raise ProcessLookupError
            (os.killpg if request.all else os.kill)(process.pid, request.signal)
        except ProcessLookupError:
            raise shim.NotFoundError("process already finished: not found") from None
        return messages.Empty()

    def close_io(self, context: CallContext, request: messages.CloseIORequest, /) -> messages.Empty:
        """Agree: the process sees the end of its input when the client closes the fifo."""
        self.find(request.id, request.exec_id)
        return messages.Empty()

    def pids(self, context: CallContext, request: messages.PidsRequest, /) -> messages.PidsResponse:
        """List the processes that live."""
        container, _ = self.find(request.id)
        alive = [process.pid for process in list(container.processes.values()) if process.lives]
        return messages.PidsResponse(processes=[messages.ProcessInfo(pid=pid) for pid in alive])

    def delete(self, context: CallContext, request: messages.DeleteRequest, /) -> messages.DeleteResponse:
        """Forget a process that has ended, or that never ran."""
        container, process = self.find(request.id, request.exec_id)
        if process.state == messages.Status.RUNNING:
            raise shim.FailedPreconditionError("the process runs: failed precondition")
        if process.gate >= 0:  # it waits there, or has been killed there, as it was never started
            os.close(process.gate)
            process.over.wait(5.0)
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
        """Kill what a dead daemon left: the bundle's files say which processes lived."""
        pids = {}
        for path in Path.cwd().glob("*.pid"):
            with contextlib.suppress(OSError, ValueError):
                pids[path.name] = int(path.read_text())
                os.killpg(pids[path.name], signal.SIGKILL)
        return shim.Deleted(pids.get(pid_file(".", "").name, 0))


def feed(fifo: str, target: int) -> None:
    """Give a process its input, in a thread; a fifo's opening waits for the client."""
    with contextlib.suppress(OSError), open(target, "wb", buffering=0) as sink, open(fifo, "rb", buffering=0) as source:
        while data := source.read(64 << 10):
            sink.write(data)


def pid_file(bundle: str, exec_id: str) -> Path:
    """Return the file that holds the pid of a process while it lives."""
    return Path(bundle) / (f"exec-{exec_id}.pid" if exec_id else "init.pid")


if __name__ == "__main__":
    shim.run("io.containerd.process.v1", ProcessShim)
