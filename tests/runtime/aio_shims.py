"""asyncio shims to run as programs, as those of tests/runtime/shims.py: the same names, the same behaviour."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Final

import shim
from shim import aio
from shim.api import (
    ConnectRequest,
    ConnectResponse,
    CreateSandboxRequest,
    CreateSandboxResponse,
    CreateTaskRequest,
    CreateTaskResponse,
    DeleteRequest,
    DeleteResponse,
    Empty,
    KillRequest,
    PidsRequest,
    PidsResponse,
    PingRequest,
    PingResponse,
    ProcessInfo,
    ShutdownRequest,
    StateRequest,
    StateResponse,
    StatsRequest,
    StatsResponse,
    TaskOOM,
    WaitRequest,
    WaitResponse,
)
from shim.runtime.monitor import ExitEvent
from tests.runtime.shims import config, told, use_own_sockets


class Plain(aio.Shim, aio.Task):
    """Answers some calls by what it knows; the others it leaves to the runtime."""

    inline = frozenset({"Pids"})
    waiting: list[tuple[str, asyncio.Future[int]]]

    async def create_task_service(self, publisher: shim.RemotePublisher) -> aio.Task:
        """Prepare for those who wait."""
        self.waiting = []
        return self

    async def connect(self, context: shim.CallContext, request: ConnectRequest, /) -> ConnectResponse:
        """Tell about the thread, the trace, and the environment; before and after it has waited."""
        before = shim.current_trace()
        await asyncio.sleep(0)
        assert before == shim.current_trace()
        return told(environment=dict(os.environ), modules=sorted(sys.modules), debug=self.flags.debug)

    async def pids(self, context: shim.CallContext, request: PidsRequest, /) -> PidsResponse:
        """Tell inline: whether this is the loop's thread, and whether there is a trace; waits if `id` says so."""
        before = shim.current_trace()
        if request.id == "waits":
            await asyncio.sleep(0.001)
        assert before == shim.current_trace()
        is_main = threading.current_thread() is threading.main_thread()
        return PidsResponse(processes=[ProcessInfo(pid=int(is_main)), ProcessInfo(pid=int(bool(before)))])

    async def state(self, context: shim.CallContext, request: StateRequest, /) -> StateResponse:
        """Log on all levels."""
        for level in ("debug", "info", "warning", "error"):
            getattr(self.daemon.logger, level)(f"from state {level}")
        return StateResponse(id=request.id)

    async def create(self, context: shim.CallContext, request: CreateTaskRequest, /) -> CreateTaskResponse:
        """Run the program `stdin` names by way of the reaper, with its output in the file `stdout`, to its end."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()
        with open(request.stdout, "wb") as output:
            child = self.daemon.reaper.spawn(["sh", "-c", request.stdin], stdout=output.fileno())
        child.on_exit(lambda exit_: ended.set_result(exit_.status))
        return CreateTaskResponse(pid=await ended)

    async def wait(self, context: shim.CallContext, request: WaitRequest, /) -> WaitResponse:
        """Answer when told to by Delete; the container `fails` never ends well."""
        self.daemon.logger.info("wait", container=request.id)
        self.waiting.append((request.id, asyncio.get_running_loop().create_future()))
        status = await self.waiting[-1][1]
        self.daemon.logger.info("waited", container=request.id)
        return WaitResponse(exit_status=status)

    async def delete(self, context: shim.CallContext, request: DeleteRequest, /) -> DeleteResponse:
        """Answer those who wait."""
        for name, later in self.waiting:
            if name == "fails":
                later.set_exception(shim.NotFoundError("the container: not found"))
            else:
                later.set_result(len(self.waiting))
        return DeleteResponse()

    async def stats(self, context: shim.CallContext, request: StatsRequest, /) -> StatsResponse:
        """Fail, as handlers with a bug do."""
        raise ZeroDivisionError("a bug")

    async def kill(self, context: shim.CallContext, request: KillRequest, /) -> Empty:
        """Hang for as long as the file `id` is there."""
        while os.path.exists(request.id):
            await asyncio.sleep(0.002)
        return Empty()

    async def shutdown(self, context: shim.CallContext, request: ShutdownRequest, /) -> Empty:
        """End."""
        self.exit.signal()
        return Empty()


class Bare(aio.Shim, aio.Task):
    """Leaves everything out but the end."""

    async def shutdown(self, context: shim.CallContext, request: ShutdownRequest, /) -> Empty:
        """End, from a thread, as who waits for something there may."""
        threading.Thread(target=self.exit.signal).start()
        return Empty()


class Pod(Plain, aio.Sandbox):
    """Serves three services."""

    async def create_sandbox(
        self, context: shim.CallContext, request: CreateSandboxRequest, /
    ) -> CreateSandboxResponse:
        """Agree."""
        return CreateSandboxResponse()

    async def ping_sandbox(self, context: shim.CallContext, request: PingRequest, /) -> PingResponse:
        """Agree."""
        return PingResponse()


class Waiting(Plain):
    """Ends by its own rule: when the file `end` of its bundle is there, or `fail`, which fails."""

    async def create_task_service(self, publisher: shim.RemotePublisher) -> aio.Task:
        """Remember the bundle: the daemon leaves it."""
        self.bundle = os.getcwd()
        return await super().create_task_service(publisher)

    async def wait_shim(self) -> None:
        """Look for a file; the latch is nothing to this shim."""
        while not os.path.exists(f"{self.bundle}/end"):
            if os.path.exists(f"{self.bundle}/fail"):
                raise ZeroDivisionError("a bug in wait_shim")
            await asyncio.sleep(0.002)


class Spawning(Plain):
    """Calls `spawn` as SPAWNING says."""

    async def start_shim(self, opts: shim.StartOpts) -> str:
        """Spawn once or twice."""
        match os.environ["SPAWNING"]:
            case "same":
                first = await aio.spawn(opts, environment={"GREETING": "hello", "PATH": "/bin:/usr/bin"})
                assert first == await aio.spawn(opts, opts.id)
                return first
            case "other":
                await aio.spawn(opts)
                return await aio.spawn(opts, "another")
            case "empty":
                return await aio.spawn(opts, "")
            case "fails":
                await aio.spawn(opts)
                raise shim.FailedPreconditionError("no\nway")
            case "bug":
                await aio.spawn(opts)
                raise ZeroDivisionError("a bug in start_shim")
            case "environment":
                return await aio.spawn(opts, environment={"GREETING": 7})  # type: ignore[dict-item]
        raise AssertionError


class Broken(Plain):
    """Cannot make its services."""

    async def create_task_service(self, publisher: shim.RemotePublisher) -> aio.Task:
        """Fail."""
        raise ZeroDivisionError("a bug in create_task_service")


class Nothing(aio.Shim):
    """Is no task, and has none."""


class Deaf(Plain):
    """Has a bug in what it does about its own end."""

    async def shutdown(self, context: shim.CallContext, request: ShutdownRequest, /) -> Empty:
        """End, and fail."""
        self.exit.signal()
        raise ZeroDivisionError

    async def wait_shim(self) -> None:
        """Fail."""
        await self.exit.wait()
        raise ZeroDivisionError


class Describing(Plain):
    """Tells what it does, up to a bug."""

    def describe(self) -> Iterator[str]:
        """Yield one line."""
        yield "a line of mine"
        raise ZeroDivisionError("a bug in describe")


class Watching(Plain):
    """Asks the monitor, and publishes what it heard."""

    async def create(self, context: shim.CallContext, request: CreateTaskRequest, /) -> CreateTaskResponse:
        """Spawn a process that ends, and wait for its exit by the monitor; 0 if nothing is heard of it."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()

        def hear(event: ExitEvent) -> None:
            if not ended.done():
                ended.set_result(event.exit.status)

        self.daemon.monitor.on_exit(hear)
        self.daemon.reaper.spawn(["sh", "-c", request.stdin])
        try:
            status = await asyncio.wait_for(ended, float(request.stdout))
        except TimeoutError:
            status = 0
        self.daemon.publisher.publish(shim.topics.TASK_OOM, TaskOOM(container_id=str(status)))
        return CreateTaskResponse(pid=status)


class Deleting(Plain):
    """Knows when its container ended."""

    async def delete_shim(self) -> shim.Deleted:
        """Answer what DELETED says."""
        return shim.Deleted(*json.loads(os.environ["DELETED"]))


class Stubborn(Plain):
    """Has a thread that never ends, and a task that ignores its cancellation."""

    async def create_task_service(self, publisher: shim.RemotePublisher) -> aio.Task:
        """Begin both."""
        self.tasks = [asyncio.create_task(asyncio.to_thread(time.sleep, 3600.0)), asyncio.create_task(self.ignore())]
        return await super().create_task_service(publisher)

    async def ignore(self) -> None:
        """Go on and on."""
        while True:
            try:
                await asyncio.sleep(3600.0)
            except asyncio.CancelledError:
                continue


class Early(Waiting):
    """Is told to end while it makes its services, by SIGTERM; its wait_shim would never return."""

    async def create_task_service(self, publisher: shim.RemotePublisher) -> aio.Task:
        """Take a while."""
        os.kill(os.getpid(), 15)
        await asyncio.sleep(0.05)
        return await super().create_task_service(publisher)


class Failing(Plain):
    """Has bugs in callbacks and tasks of its own."""

    async def state(self, context: shim.CallContext, request: StateRequest, /) -> StateResponse:
        """Leave two of them behind."""
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        self.task = asyncio.create_task(self.fail())
        await asyncio.wait([self.task])
        del self.task
        return StateResponse(id=request.id)

    async def fail(self) -> None:
        """Fail."""
        raise ZeroDivisionError("a bug in a task")


SHIMS: Final = {
    each.__name__.lower(): each
    for each in (
        *(Plain, Bare, Pod, Waiting, Spawning, Broken, Nothing, Deaf, Describing, Watching, Deleting),
        *(Stubborn, Early, Failing),
    )
}

if __name__ == "__main__":
    use_own_sockets()
    aio.run("io.containerd.test.v1", SHIMS[sys.argv.pop(1)], config())
