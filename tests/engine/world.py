"""An engine without a runtime: what runc would do is decided by the test, processes are numbers, exits are told.

Only the loop is real, since stdio is copied on it.
"""

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from shim.engine.binary import Farewell
from shim.engine.bundle import Bundle
from shim.engine.checkpoint import Checkpoint
from shim.engine.container import NO_CHECKPOINT, Container, StdioOwner, Surroundings
from shim.engine.lifecycle import Lifecycle
from shim.engine.process import Process
from shim.engine.runc import Runc
from shim.engine.stdio import Stdio
from shim.runtime.logger import Logger
from shim.runtime.reaper import Child, Exit, Reaper
from tests.fakes import LoopThread

# Above every pid that Linux gives out.
FIRST_PID: Final = 1 << 22
OWN_PIDS: Final = '{"linux": {"namespaces": [{"type": "pid"}]}}'
SHARED_PIDS: Final = "{}"
NO_STDIO: Final = Stdio()


class FakeReaper(Reaper):
    """Spawns runc in name only, and reaps when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[str]] = []
        # What a subcommand does, instead of succeeding: takes its words, returns its exit status.
        self.acts: dict[str, Callable[[list[str]], int]] = {}
        self.output = ""
        self._pid = FIRST_PID

    def spawn(
        self,
        argv: list[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        pass_fds: Mapping[int, int] | None = None,
        new_session: bool = False,
        folder: str | None = None,
    ) -> Child:
        """Note the call behind runc's globals, write a pid file if it wants one, and return a child that has ended."""
        words = argv[7:]
        self.calls.append(words)
        if "--pid-file" in words:
            self._pid += 1
            Path(words[words.index("--pid-file") + 1]).write_text(str(self._pid))
        act = self.acts.get(words[0])
        status = act(words) if act is not None else 0
        if stdout is not None and self.output:
            os.write(stdout, self.output.encode())
        child = Child()
        child.finish(Exit(0, status, 0.0))
        return child

    def seen(self, pid: int, status: int = 0) -> Exit:
        """Reap a process, as far as the windows: the listener has not heard yet."""
        exit_ = Exit(pid, status, 1000.0 + status)
        for window in self._windows:
            window.exits[pid] = exit_
        return exit_

    def exit(self, pid: int, status: int = 0) -> None:
        """Reap a process."""
        self.listener(self.seen(pid, status))

    @property
    def windows(self) -> int:
        """How many windows are open."""
        return len(self._windows)


class RecordingSink:
    """Notes every event with what State would say at its time."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []

    def created(self, container: Container) -> None:
        """Note it."""
        self.events.append(("create", container.id))

    def started(self, process: Process) -> None:
        """Note it."""
        self.events.append(("start", process.id))

    def exited(self, process: Process) -> None:
        """Note it, with the status and the state."""
        assert process.exit is not None
        self.events.append(("exit", process.id, str(process.exit.status), process.state.value))

    def deleted(self, container: Container) -> None:
        """Note it."""
        self.events.append(("delete", container.id))

    def exec_added(self, process: Process) -> None:
        """Note it."""
        self.events.append(("exec-added", process.id))

    def paused(self, container: Container) -> None:
        """Note it."""
        self.events.append(("paused", container.id))

    def resumed(self, container: Container) -> None:
        """Note it."""
        self.events.append(("resumed", container.id))

    def checkpointed(self, container: Container, path: str) -> None:
        """Note it."""
        self.events.append(("checkpointed", container.id, path))

    def oom(self, container: Container) -> None:
        """Note it."""
        self.events.append(("oom", container.id))


class World:
    """Everything a container needs."""

    def __init__(self, folder: Path, thread: LoopThread) -> None:
        self.folder = folder
        self.log = folder / "shim.log"
        self.log.touch()
        self.reaper = FakeReaper()
        self.sink = RecordingSink()
        self.jobs: list[Callable[[], None]] = []
        self.lifecycle = Lifecycle(self.reaper, self.sink, lambda job: self.jobs.append(job))
        self.logger = Logger.open(str(self.log), is_debug=True)
        self.surroundings = Surroundings(thread.loop, self.lifecycle, self.logger, self.reaper, Farewell(thread.loop))

    def container(
        self,
        name: str = "c1",
        spec: str = OWN_PIDS,
        stdio: Stdio = NO_STDIO,
        checkpoint: Checkpoint = NO_CHECKPOINT,
    ) -> Container:
        """Return a container that is still to be created."""
        path = self.folder / name
        path.mkdir()
        (path / "config.json").write_text(spec)
        runc = Runc(self.reaper, name, str(path), "ns", root=str(self.folder / "root"))
        return Container(self.surroundings, Bundle(str(path)), runc, stdio, StdioOwner(), checkpoint)

    def created(self, name: str = "c1", spec: str = OWN_PIDS, stdio: Stdio = NO_STDIO) -> Container:
        """Return a created container."""
        container = self.container(name, spec, stdio)
        container.create((), lambda: None)
        return container

    def running(self, name: str = "c1", spec: str = OWN_PIDS, stdio: Stdio = NO_STDIO) -> Container:
        """Return a running container."""
        container = self.created(name, spec, stdio)
        container.start()
        return container

    def exec(self, container: Container, name: str = "e1") -> Process:
        """Return a running exec."""
        container.add_exec(name, Stdio(), b"{}")
        process = container.process(name)
        container.start_exec(process)
        return process

    def run_jobs(self) -> None:
        """Do what was handed to the pool."""
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job()

    def commands(self) -> list[str]:
        """Return the subcommands of runc that were called, and forget them."""
        calls, self.reaper.calls = self.reaper.calls, []
        return [" ".join(call[:2]) if call[0] in ("kill", "delete") else call[0] for call in calls]

    def events(self) -> list[tuple[str, ...]]:
        """Return the events so far, and forget them."""
        events, self.sink.events = self.sink.events, []
        return events


def in_thread(function: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Start `function` in a thread; what it raises is found in the list."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors
