"""What a shim author implements: `Shim`, and what its methods give.

Rule: nothing heavy is imported here, since every short `start` and `delete` process loads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from shim.errors import FailedPreconditionError, UnimplementedError
from shim.runtime.start import StartOpts, spawn

if TYPE_CHECKING:
    from shim.api.types_pb2 import RuntimeInfo
    from shim.runtime.address import Bound
    from shim.runtime.config import Config
    from shim.runtime.exit_signal import ExitSignal
    from shim.runtime.flags import Flags
    from shim.runtime.publisher import RemotePublisher
    from shim.runtime.serve import Daemon
    from shim.runtime.task import Task
    from shim.ttrpc.service import Service


class Deleted(NamedTuple):
    """What `delete` found: the pid that init had (0 if unknown), the status to report, when it ended.

    `exited_at` is in seconds since the epoch; None means now.
    """

    pid: int = 0
    exit_status: int = 137
    exited_at: float | None = None


class AnyShim:
    """What shims of both kinds have, blocking and asyncio: all that does not wait."""

    def __init__(self, runtime_id: str, flags: Flags, config: Config) -> None:
        self.runtime_id = runtime_id
        self.flags = flags
        self.config = config
        self._daemon: Daemon | None = None

    def group(self, opts: StartOpts) -> str:
        """Return the name of the group whose daemon shall serve this container; the working directory is its bundle."""
        return opts.id

    def shim_cgroup(self, options: object) -> str:
        """Return the cgroup that the daemon shall live in, by the runtime options that containerd sent, or ''."""
        return ""

    @property
    def daemon(self) -> Daemon:
        """The daemon: its publisher, monitor, logger, loop and threads.

        Raises:
            FailedPreconditionError: This process is none: it is `start`, `delete` or `-info`.
        """
        if self._daemon is None:
            raise FailedPreconditionError("only the shim's daemon has these, and this process is none")
        return self._daemon

    def preload(self) -> None:
        """Import all that the daemon needs: nothing may be imported once it serves."""

    def describe(self) -> Iterable[str]:
        """Yield lines about what this shim is doing, for SIGUSR1: each task and its state, as a rule."""
        return ()


class Shim(AnyShim):
    """A shim: subclass it, together with `Task` or beside one, and pass the class to `shim.run`.

    Three processes make one: `start` calls `start_shim` and ends; the daemon that it leaves calls
    `create_task_service` and serves until `wait_shim` returns; `delete` calls `delete_shim` once the daemon is gone.
    Every method has a default that suits a shim with one daemon for each container and nothing on disk.
    """

    def __init__(self, runtime_id: str, flags: Flags, config: Config) -> None:
        super().__init__(runtime_id, flags, config)
        self._exit: ExitSignal | None = None

    # In `start`

    def start_shim(self, opts: StartOpts) -> str:
        """Return the address of the daemon that serves this container, as `spawn` does.

        Raises:
            ShimError: What containerd shall show; it ends `start`, and nothing is left behind.
        """
        return spawn(opts, self.group(opts))

    # In the daemon

    @property
    def exit(self) -> ExitSignal:
        """The latch that ends the daemon, as a rule set by the Shutdown call."""
        if self._exit is None:  # in a daemon it never is: many threads may ask at once
            from shim.runtime.exit_signal import ExitSignal

            self._exit = ExitSignal()
        return self._exit

    def create_task_service(self, publisher: RemotePublisher) -> Task:
        """Return who answers the Task calls: by default this object, if it is a `Task` as well."""
        from shim.runtime.task import Task

        if isinstance(self, Task):
            return self
        raise UnimplementedError(f"{type(self).__name__} serves nothing: override create_task_service()")

    def services(self, daemon: Daemon) -> Sequence[Service]:
        """Return what the daemon serves: task v2 and v3, and the sandbox service if the task is a `Sandbox` too."""
        from shim.runtime.task import task_services

        return task_services(self.create_task_service(daemon.publisher))

    def wait_shim(self) -> None:
        """Return when the daemon shall end: by default once `exit` is signalled.

        Another implementation runs in a thread of its own; SIGTERM and SIGINT end the daemon without it.
        """
        self.exit.wait()

    def daemon_runner(self) -> Callable[[Shim, Bound], None]:
        """Return what serves this shim: the blocking daemon; that of asyncio for shims of `shim.aio`."""
        from shim.runtime.serve import serve

        return serve

    # In `delete` and `-info`

    def delete_shim(self) -> Deleted:
        """Remove what a dead daemon left of container `self.flags.id`; must succeed when there is nothing."""
        return Deleted()

    def info(self, options: object) -> RuntimeInfo:
        """Describe the runtime for `-info`; `options` is the Any from stdin or None."""
        from shim.api.types_pb2 import RuntimeInfo

        return RuntimeInfo(name=self.runtime_id)
