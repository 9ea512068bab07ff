"""One container: what Create makes and Delete takes away, and what can be asked of it between.

Rule: plain values in and out, errors of shim.errors; a failed step undoes what it did, in reverse.  Nobody waits for
another container, and a process's operations wait only for each other.  Spec: contract section 6.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

from shim.engine.binary import SCHEMES, BinaryLogger, Farewell, LoggedStreams
from shim.engine.bundle import Bundle
from shim.engine.call import exec_failure, run_captured
from shim.engine.checkpoint import Checkpoint, write_checkpoint
from shim.engine.console import Console
from shim.engine.memory import MemoryWatch
from shim.engine.process import Process
from shim.engine.runc import Runc
from shim.engine.state import has_state
from shim.engine.stdio import Stdio, Streams, scheme_of
from shim.engine.task import Act, State, Step
from shim.errors import (
    AlreadyExistsError,
    BusyError,
    EngineError,
    EngineTimeoutError,
    ExecNotFoundError,
    MountError,
    NotFoundError,
    ShimError,
)
from shim.host import cgroup, mount

if TYPE_CHECKING:
    from shim.engine.lifecycle import Launch, Lifecycle
    from shim.engine.options import Checkpointing
    from shim.engine.process import AnyStreams
    from shim.runtime.logger import Logger
    from shim.runtime.reaper import Exit, Reaper
    from shim.ttrpc.loop import EventLoop

_EXIT_LIMIT_S: Final = 10.0
# How long a program that mounts a FUSE file system may take.
_MOUNT_LIMIT_S: Final = 60.0
# What a Delete with a deadline keeps for what comes after the last output.
_REST_S: Final = 1.0
NO_CHECKPOINT: Final = Checkpoint()


class Surroundings(NamedTuple):
    """What every container of a shim shares."""

    loop: EventLoop
    lifecycle: Lifecycle
    logger: Logger
    reaper: Reaper
    farewell: Farewell


class StdioOwner(NamedTuple):
    """Who shall own the container's ends of its pipes: root inside a user namespace, as a rule."""

    uid: int = 0
    gid: int = 0


def _limited(limit_s: float, deadline: float | None) -> float:
    return limit_s if deadline is None else min(limit_s, max(0.0, deadline - time.monotonic()))


class Container:
    """A container from Create to Delete; `init_has_exited` and what follows it belong to the lifecycle and its lock."""

    def __init__(
        self,
        shim: Surroundings,
        bundle: Bundle,
        runc: Runc,
        stdio: Stdio,
        owner: StdioOwner,
        checkpoint: Checkpoint = NO_CHECKPOINT,
    ) -> None:
        self._shim = shim
        self._owner = owner
        self.bundle = bundle
        self.runc = runc
        self.id: str = runc.container_id
        self.checkpoint = checkpoint
        self.init: Process = Process(
            self, self.id, stdio, state=State.CHECKPOINTED if checkpoint.path else State.CREATED
        )
        self.mounts: tuple[mount.Mount, ...] = ()
        self.cgroup: cgroup.Cgroup | None = None
        self.memory: MemoryWatch = MemoryWatch(shim.loop, lambda: shim.lifecycle.sink.oom(self))
        self._execs: dict[str, Process] = {}
        self._execs_lock = threading.Lock()
        # `runc kill --all` freezes the container for a moment, which makes another `runc kill` fail.
        self._signals = threading.Lock()
        self._shares_pids = not bundle.has_own_pid_namespace()
        self.init_has_exited = False
        self.execs_alive = 0
        self.postponed_exit: Exit | None = None
        self.is_cleaning_up = False
        self._is_start_unsure = False

    # Creating and deleting

    def create(self, mounts: Sequence[mount.Mount], enter: Callable[[], None]) -> None:
        """Mount the root file system and have the runtime make the container; undoes everything on failure.

        `enter()` is called once the container exists, before it is announced.  From a checkpoint it is made at its
        start only.

        Raises:
            MountError, StdioError, EngineError, BundleError: A step failed.
        """
        self.mounts = tuple(mounts)
        with ExitStack() as undo:
            if mounts:
                self.bundle.make_rootfs()
                undo.callback(self._unmount_quietly)
                mount.mount_all(mounts, self.bundle.rootfs, self._run_mount_helper)
            streams = self._make_streams(self.init)
            undo.callback(streams.close)
            if self.checkpoint.path:
                enter()
                self._shim.lifecycle.sink.created(self)
                undo.pop_all()
                return
            streams.open()
            with self._shim.lifecycle.launch(self.init) as launch:
                try:
                    self.runc.create(self.bundle.file("init.pid"), streams.child_fds, streams.console_socket)
                    streams.start()
                    self.init.pid = self.bundle.read_pid()
                except BaseException:
                    self._remove_half_made()
                    raise
                self.init.attach(streams)
                self._find_cgroup()
                enter()
                launch.done(lambda: self._shim.lifecycle.sink.created(self))
            undo.pop_all()

    def _run_mount_helper(self, argv: list[str]) -> tuple[int, str]:
        try:
            ended = run_captured(self._shim.reaper, argv, limit_s=_MOUNT_LIMIT_S)
        except OSError as error:
            raise MountError(exec_failure(argv[0], error)) from None
        return (ended.status, f"not done after {_MOUNT_LIMIT_S:g} s" if ended.is_late else ended.output)

    def _remove_half_made(self) -> None:
        """A create that failed after the runtime began may leave a container."""
        if not has_state(self.runc.root, self.runc.namespace, self.id):
            return
        try:
            self.runc.delete(is_forced=True)
        except (ShimError, OSError) as error:
            self._shim.logger.warning("failed to remove half-made container", id=self.id, error=error)

    def _unmount_quietly(self) -> None:
        try:
            mount.unmount_recursive(self.bundle.rootfs)
        except MountError as error:
            self._shim.logger.warning("failed to cleanup rootfs mount", id=self.id, error=error)

    def _make_streams(self, process: Process) -> AnyStreams:
        shim, stdio = self._shim, process.stdio
        logger = None
        if scheme_of(stdio.stdout)[0] in SCHEMES:
            logger = BinaryLogger(shim.reaper, stdio.stdout, process.id, self.runc.namespace)
        if stdio.terminal:
            return Console(shim.loop, stdio, logger)
        if logger is not None:
            return LoggedStreams(shim.loop, shim.logger, shim.farewell, logger, *self._owner)
        return Streams(shim.loop, stdio, *self._owner)

    def delete(self, deadline: float | None) -> None:
        """Remove the stopped (or never started) container, by `deadline` (of `time.monotonic()`) if there is one.

        Every step is tried even if one before it failed, and the first failure is raised; the container can then be
        deleted again.

        Raises:
            ShimError: What a client must hear.
        """
        init = self.init
        with init.operate(deadline):
            init.require(Act.DELETE)
            failure: ShimError | None = None
            if init.state is State.CREATED:
                # Kills the init that never got to run, or nobody knows whether it did.
                self.runc.delete(is_forced=self._is_start_unsure, deadline=deadline)
                self._await_exit(deadline)
            init.move(Step.DELETE)
            self._drain(init, deadline)
            try:
                self.runc.delete(deadline=deadline)
            except EngineError as error:
                failure = error
            init.close_streams()
            try:
                mount.unmount_recursive(self.bundle.rootfs)
            except MountError as error:
                failure = failure or MountError(f"failed rootfs umount: {error}")
            if failure is not None:
                init.move(Step.DELETE_FAILED)
                raise failure
            init.move(Step.DELETED)
        init.release()  # one that was never restored has no exit
        for process in self.execs():
            process.close_streams()
            process.release()
        self._shim.lifecycle.sink.deleted(self)

    def _await_exit(self, deadline: float | None) -> None:
        ended = threading.Event()
        self.init.on_exit(lambda _exit: ended.set())
        if not ended.wait(_limited(_EXIT_LIMIT_S, deadline)):
            raise EngineError(f"failed to delete task: init process {self.init.pid} did not exit")

    def _drain(self, process: Process, deadline: float | None) -> None:
        streams = process.streams
        if streams is None:
            return
        limit = streams.drain_limit_s
        if deadline is not None:
            left = max(0.0, deadline - time.monotonic())
            limit = min(limit, max(left - _REST_S, left / 2))
        if not streams.wait_drained(limit):
            self._shim.logger.warning("failed to drain init process io", id=self.id, process=process.id)

    # Running

    def start(self) -> None:
        """Let init run.  Raises EngineError, ProcessStateError."""
        init = self.init
        with init.operate():
            init.require(Act.START)
            is_restored = init.state is State.CHECKPOINTED
            init.move(Step.START)
            if is_restored:
                self._restore()
                return
            with self._shim.lifecycle.launch(init) as launch:
                try:
                    self.runc.start()
                except EngineTimeoutError:
                    self._is_start_unsure = True
                    raise
                init.settle(Step.STARTED)
                launch.done(lambda: self._shim.lifecycle.sink.started(init))

    def _restore(self) -> None:
        """Have the runtime make the container from its checkpoint, running; a failure leaves nothing of it."""
        init = self.init
        with ExitStack() as undo, self._shim.lifecycle.launch(init) as launch:
            streams = self._make_streams(init)
            undo.callback(streams.close)
            streams.open()
            try:
                path, parent = self.checkpoint
                fds, pid_file = streams.child_fds, self.bundle.file("init.pid")
                self.runc.restore(path, parent, pid_file, fds, streams.console_socket)
                streams.start()
                init.pid = self.bundle.read_pid()
            except BaseException:
                self._remove_half_made()
                raise
            undo.pop_all()
            init.attach(streams)
            self._find_cgroup()
            init.settle(Step.STARTED)
            launch.done(lambda: self._shim.lifecycle.sink.started(init))

    def write_checkpoint(self, path: str, options: Checkpointing) -> None:
        """Write the container to a folder.  Raises EngineError, ProcessStateError."""
        with self.init.operate():
            self.init.require(Act.CHECKPOINT)
            write_checkpoint(self.runc, self.bundle, path, options, self._shim.logger)
        self._shim.lifecycle.sink.checkpointed(self, path)

    def pause(self) -> None:
        """Freeze the container.  Raises EngineError, ProcessStateError."""
        init = self.init
        with init.operate():
            init.require(Act.PAUSE)
            init.move(Step.PAUSE)
            try:
                self.runc.pause()
            except BaseException as error:
                if isinstance(error, EngineTimeoutError):
                    self._thaw()  # it may be half frozen, which "running" must not be
                init.settle(Step.PAUSE_FAILED)
                raise
            init.settle(Step.PAUSED)
        self._shim.lifecycle.sink.paused(self)

    def _thaw(self) -> None:
        try:
            self.runc.resume()
        except (ShimError, OSError) as error:
            self._shim.logger.warning("failed to resume after a pause that failed", id=self.id, error=error)

    def resume(self) -> None:
        """Thaw the container.  Raises EngineError, ProcessStateError."""
        init = self.init
        with init.operate():
            init.require(Act.RESUME)
            self.runc.resume()
            init.settle(Step.RESUME)
        self._shim.lifecycle.sink.resumed(self)

    def update(self, resources: bytes) -> None:
        """Change limits; `resources` is the JSON of OCI LinuxResources.  Raises EngineError, ProcessStateError."""
        with self.init.operate():
            self.init.require(Act.UPDATE)
            self.runc.update(resources)

    def kill(self, process: Process, signum: int, *, is_all: bool, deadline: float | None = None) -> None:
        """Send a signal, by `deadline` (of `time.monotonic()`) if there is one.

        Raises:
            BusyError: The exec is still being started, or another signal is still being sent.
            NotFoundError: The process has ended.
            FailedPreconditionError: The exec has not been started.
            EngineError: The runtime failed.
        """
        if process.is_init:
            process.require(Act.KILL)
            if not self._signals.acquire(timeout=-1 if deadline is None else max(0.0, deadline - time.monotonic())):
                raise BusyError(f"another signal is being sent to container {self.id}")
            try:
                self.runc.kill(signum, is_all=is_all, deadline=deadline)
            finally:
                self._signals.release()
            return
        with process.operate(deadline):  # a start under way must have recorded the pid
            process.require(Act.KILL)
            try:
                self._shim.reaper.kill_adopted(process.pid, signum, lambda: process.exit is not None)
            except ProcessLookupError:
                raise NotFoundError("process already finished: not found") from None
            except OSError as error:
                text = (error.strerror or str(error)).lower()
                raise EngineError(f"exec kill error: unknown error after kill: {text}") from None

    # Execs

    def execs(self) -> list[Process]:
        """Return the execs there are, started or not."""
        with self._execs_lock:
            return list(self._execs.values())

    def process(self, exec_id: str) -> Process:
        """Return init for an empty id, else the exec.  Raises ExecNotFoundError."""
        if not exec_id:
            return self.init
        with self._execs_lock:
            try:
                return self._execs[exec_id]
            except KeyError:
                raise ExecNotFoundError(exec_id) from None

    def add_exec(self, exec_id: str, stdio: Stdio, spec: bytes) -> None:
        """Register an exec; nothing runs yet.

        Raises:
            AlreadyExistsError: The id is taken.
            ProcessStateError: The container cannot run another process.
        """
        self.init.require(Act.EXEC)
        process = Process(self, exec_id, stdio, spec)
        with self._execs_lock:
            if exec_id in self._execs:
                raise AlreadyExistsError(f"id {exec_id}")
            self._execs[exec_id] = process
        self._shim.lifecycle.sink.exec_added(process)

    def start_exec(self, process: Process) -> None:
        """Run a registered exec.  Raises EngineError, StdioError, ProcessStateError, FailedPreconditionError."""
        with process.operate():
            process.require(Act.START)
            self._shim.lifecycle.require_init(self)
            process.move(Step.START)
            with ExitStack() as undo:
                undo.callback(process.release)  # who waits must not wait for ever
                undo.callback(process.settle, Step.START_FAILED)
                streams = self._make_streams(process)
                undo.callback(streams.close)
                # May take its time, during which init can end and be told: the exec does not count yet.
                streams.open()
                with self._shim.lifecycle.launch(process) as launch:
                    self._launch_exec(process, streams, launch)
                    launch.done(lambda: self._shim.lifecycle.sink.started(process))
                undo.pop_all()

    def _launch_exec(self, process: Process, streams: AnyStreams, launch: Launch) -> None:
        name = f"{process.id}.pid"
        fds, pid_file = streams.child_fds, self.bundle.file(name)
        self.runc.exec(process.spec or b"", pid_file, fds, streams.console_socket)
        process.pid = self.bundle.read_pid(name)
        try:
            streams.start()
        except BaseException:
            launch.kill()  # it runs, and nobody would know
            raise
        process.attach(streams)
        process.settle(Step.STARTED)

    def delete_exec(self, process: Process, deadline: float | None) -> None:
        """Forget an exec that has ended or never ran.  Raises ProcessStateError."""
        with process.operate(deadline):
            process.require(Act.DELETE)
            process.move(Step.DELETE)
            self._drain(process, deadline)
            process.close_streams()
            try:
                os.unlink(self.bundle.file(f"{process.id}.pid"))
            except OSError:
                pass  # a failed start left none
            process.move(Step.DELETED)
        process.release()
        with self._execs_lock:
            self._execs.pop(process.id, None)

    # Asking

    def processes(self) -> list[tuple[int, str]]:
        """Return (host pid, exec id) of every process; the id is empty for all but execs.

        Never fails, since containerd 1.7 to 2.2 takes that for a sign of a leaked shim and kills the container.
        """
        if self.init.exit is not None:
            return []
        alive = [process for process in self.execs() if process.pid and process.exit is None]
        execs = {process.pid: process.id for process in alive}
        return [(pid, execs.get(pid, "")) for pid in self._pids() or [self.init.pid, *execs] if pid]

    def _pids(self) -> list[int]:
        """Return what cgroup or runtime know, or nothing."""
        try:
            return self.cgroup.processes() if self.cgroup is not None else self.runc.processes()
        except (ShimError, OSError) as error:
            self._shim.logger.warning("failed to list processes", id=self.id, error=error)
            return []

    def metrics(self) -> dict[str, object]:
        """Return the cgroup's numbers, named as in containerd's Metrics message of its cgroup version.

        Raises:
            NotFoundError: The cgroup was not found when the container was made.
        """
        if self.cgroup is None:
            raise NotFoundError("cgroup does not exist: not found")
        return self.cgroup.metrics()

    # Ending

    @property
    def needs_cleanup_at_exit(self) -> bool:
        """True when processes may live on after init: they share its pid namespace with others, or are frozen."""
        return self._shares_pids or self.init.state in (State.PAUSED, State.PAUSING)

    def clean_up_at_exit(self) -> None:
        """Make sure that no process of the container outlives its init; failures are logged only."""
        try:
            if self.init.state in (State.PAUSED, State.PAUSING):
                self.runc.resume()
            if self._shares_pids:
                with self._signals:
                    self.runc.kill(9, is_all=True)
        except NotFoundError:
            return  # nothing was left
        except (ShimError, OSError) as error:
            self._shim.logger.warning("failed to kill init's children", id=self.id, error=error)

    def _find_cgroup(self) -> None:
        """Find the cgroup and watch it for kills; without one Stats says so, and all else works."""
        try:
            self.cgroup = cgroup.find(self.init.pid)
        except (ShimError, OSError) as error:
            self._shim.logger.error("loading cgroup", id=self.id, error=error)
            return
        try:
            self.memory.start(self.cgroup)
        except (ShimError, OSError) as error:
            self._shim.logger.debug("not watching for out-of-memory kills", id=self.id, error=error)
