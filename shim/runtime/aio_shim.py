"""What the author of an asyncio shim implements: `Shim` and `Task` with coroutines, and how they are run.

Rule: the same runtime as the blocking kind's, which sees these shims through `Adapter`; only waiting differs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from shim.api.task_v3_ttrpc import AsyncTaskService
from shim.errors import UnimplementedError
from shim.runtime import shim as blocking
from shim.runtime.exit_signal import ExitSignal as Latch
from shim.runtime.main import run as run_blocking
from shim.runtime.shim import Deleted
from shim.runtime.start import StartOpts
from shim.runtime.start import spawn as spawn_blocking

if TYPE_CHECKING:
    from shim.api.types_pb2 import RuntimeInfo
    from shim.runtime.address import Bound
    from shim.runtime.config import Config
    from shim.runtime.flags import Flags
    from shim.runtime.publisher import RemotePublisher
    from shim.runtime.serve import Daemon
    from shim.ttrpc.service import Service


class Task(AsyncTaskService):
    """The Task calls as coroutines; each one left out answers UNIMPLEMENTED.  As the blocking `Task` otherwise."""

    inline: Collection[str] = frozenset()


class ExitSignal:
    """Set once, by `signal`, and never reset; `signal` is safe from any thread."""

    def __init__(self) -> None:
        self._latch = Latch()
        self._event: asyncio.Event | None = None

    @property
    def is_set(self) -> bool:
        """True once `signal` has been called."""
        return self._latch.is_set

    def signal(self) -> None:
        """Say that the shim shall end; repeating it is fine."""
        self._latch.signal()

    async def wait(self) -> None:
        """Wait for the signal."""
        if self._event is None:
            loop, self._event = asyncio.get_running_loop(), asyncio.Event()
            self._latch.on_signal(partial(_set_soon, loop, self._event))
        if not self._latch.is_set:
            await self._event.wait()


def _set_soon(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    try:
        loop.call_soon_threadsafe(event.set)
    except RuntimeError:
        pass  # closed: nobody waits there any more


class Shim(blocking.AnyShim):
    """A shim whose methods are coroutines; see the blocking `shim.Shim`, whose names these are."""

    def __init__(self, runtime_id: str, flags: Flags, config: Config) -> None:
        super().__init__(runtime_id, flags, config)
        self.exit: ExitSignal = ExitSignal()

    async def start_shim(self, opts: StartOpts) -> str:
        """Return the address of the daemon that serves this container, as `spawn` does.

        Raises:
            ShimError: What containerd shall show; it ends `start`, and nothing is left behind.
        """
        return await spawn(opts, self.group(opts))

    async def create_task_service(self, publisher: RemotePublisher) -> Task:
        """Return who answers the Task calls: by default this object, if it is a `Task` as well."""
        if isinstance(self, Task):
            return self
        raise UnimplementedError(f"{type(self).__name__} serves nothing: override create_task_service()")

    async def services(self, daemon: Daemon) -> Sequence[Service]:
        """Return what the daemon serves: task v2 and v3, and the sandbox service if the task is a `Sandbox` too."""
        from shim.runtime.task import task_services

        return task_services(await self.create_task_service(daemon.publisher))

    async def wait_shim(self) -> None:
        """Return when the daemon shall end: by default once `exit` is signalled."""
        await self.exit.wait()

    async def delete_shim(self) -> Deleted:
        """Remove what a dead daemon left of container `self.flags.id`; must succeed when there is nothing."""
        return Deleted()

    async def info(self, options: object) -> RuntimeInfo:
        """Describe the runtime for `-info`; `options` is the Any from stdin or None."""
        from shim.api.types_pb2 import RuntimeInfo

        return RuntimeInfo(name=self.runtime_id)


async def spawn(opts: StartOpts, grouping: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Return the address of the daemon of a group, as the blocking `spawn` does."""
    return spawn_blocking(opts, grouping, environment)


class Adapter(blocking.Shim):
    """An asyncio shim as the runtime sees it: each coroutine of `start` and `delete` has a loop of its own."""

    def __init__(self, inner: Shim) -> None:
        super().__init__(inner.runtime_id, inner.flags, inner.config)
        self.inner = inner
        self.exit.on_signal(inner.exit.signal)

    def shim_cgroup(self, options: object) -> str:
        """Ask the shim."""
        return self.inner.shim_cgroup(options)

    def start_shim(self, opts: StartOpts) -> str:
        """Run the shim's coroutine; its loop has ended when the daemon is made."""
        return asyncio.run(self.inner.start_shim(opts))

    def preload(self) -> None:
        """Load the daemon, and what the shim wants."""
        from shim.runtime import aio_daemon, task  # noqa: F401

        self.inner.preload()

    def describe(self) -> Iterable[str]:
        """Ask the shim."""
        return self.inner.describe()

    def daemon_runner(self) -> Callable[[blocking.Shim, Bound], None]:
        """Serve on asyncio."""
        from shim.runtime.aio_daemon import serve

        return lambda _shim, bound: serve(self, bound)

    def delete_shim(self) -> Deleted:
        """Run the shim's coroutine."""
        return asyncio.run(self.inner.delete_shim())

    def info(self, options: object) -> RuntimeInfo:
        """Run the shim's coroutine."""
        return asyncio.run(self.inner.info(options))


def run(
    runtime_id: str,
    shim: Callable[[str, Flags, Config], Shim],
    config: Config | None = None,
    arguments: list[str] | None = None,
) -> NoReturn:
    """Be the asyncio shim `runtime_id`, as the blocking `run` is, and end the process."""
    run_blocking(runtime_id, lambda *values: Adapter(shim(*values)), config, arguments)
