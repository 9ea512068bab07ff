"""Blocking shims to run as programs: `python -m tests.runtime.shims NAME ARGUMENTS`.

They bind below TINY_SOCKETS, and SHIM_CONFIG may hold the fields of their Config as JSON.  tests/runtime/aio_shims.py
has those with coroutines.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import shim
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
    WaitRequest,
    WaitResponse,
)
from shim.runtime import address

TRACE_VARIABLES: Final = ("TRACEPARENT", "TRACESTATE", "BAGGAGE")


def config() -> shim.Config:
    """Return what SHIM_CONFIG says."""
    return shim.Config(**json.loads(os.environ.get("SHIM_CONFIG", "{}")))


def use_own_sockets() -> None:
    """Bind below TINY_SOCKETS."""
    setattr(address, "SOCKET_DIR", os.environ["TINY_SOCKETS"])  # noqa: B010  (Final for all but these tests)


def told(**facts: Any) -> ConnectResponse:
    """Return facts in the place of a version."""
    trace = shim.current_trace()
    about = {"thread": threading.current_thread().name, "trace": trace.traceparent if trace else None}
    return ConnectResponse(shim_pid=os.getpid(), version=json.dumps({**about, **facts}))


class Plain(shim.Shim, shim.Task):
    """Answers some calls by what it knows; the others it leaves to the runtime."""

    inline = frozenset({"Pids"})

    def create_task_service(self, publisher: shim.RemotePublisher) -> shim.Task:
        """Load logging, if told to."""
        if os.environ.get("SHIM_LOGGING") == "late":
            import logging  # noqa: F401
        return self

    def connect(self, context: shim.CallContext, request: ConnectRequest, /) -> ConnectResponse:
        """Tell about the thread, the trace, and the environment."""
        return told(environment=dict(os.environ), modules=sorted(sys.modules), debug=self.flags.debug)

    def pids(self, context: shim.CallContext, request: PidsRequest, /) -> PidsResponse:
        """Tell on the loop: whether this is its thread, and whether there is a trace."""
        is_main = threading.current_thread() is threading.main_thread()
        return PidsResponse(processes=[ProcessInfo(pid=int(is_main)), ProcessInfo(pid=int(bool(shim.current_trace())))])

    def state(self, context: shim.CallContext, request: StateRequest, /) -> StateResponse:
        """Log on all levels."""
        for level in ("debug", "info", "warning", "error"):
            getattr(self.daemon.logger, level)(f"from state {level}")
        if "logging" in sys.modules:
            sys.modules["logging"].getLogger("mine").warning("by logging")
        return StateResponse(id=request.id)

    def create(self, context: shim.CallContext, request: CreateTaskRequest, /) -> CreateTaskResponse:
        """Run the program `stdin` names by way of the reaper, with its output in the file `stdout`, to its end."""
        with open(request.stdout, "wb") as output:
            child = self.daemon.reaper.spawn(["sh", "-c", request.stdin], stdout=output.fileno())
        exit_ = child.wait(10.0)
        return CreateTaskResponse(pid=exit_.status if exit_ is not None else 0)

    def wait(self, context: shim.CallContext, request: WaitRequest, /) -> shim.Deferred:
        """Answer when told to by Delete; the container `fails` never ends well."""
        self.daemon.logger.info("wait", container=request.id)
        later = shim.Deferred()
        self.waiting: list[tuple[str, shim.Deferred]] = [*getattr(self, "waiting", []), (request.id, later)]
        return later

    def delete(self, context: shim.CallContext, request: DeleteRequest, /) -> DeleteResponse:
        """Answer those who wait."""
        for name, later in self.waiting:
            if name == "fails":
                later.fail(shim.NotFoundError("the container: not found"))
            else:
                later.resolve(WaitResponse(exit_status=len(self.waiting)))
        return DeleteResponse()

    def stats(self, context: shim.CallContext, request: StatsRequest, /) -> StatsResponse:
        """Fail, as handlers with a bug do."""
        raise ZeroDivisionError("a bug")

    def kill(self, context: shim.CallContext, request: KillRequest, /) -> Empty:
        """Hang for as long as the file `id` is there."""
        while os.path.exists(request.id):
            time.sleep(0.002)
        return Empty()

    def shutdown(self, context: shim.CallContext, request: ShutdownRequest, /) -> Empty:
        """End."""
        self.exit.signal()
        return Empty()


class Bare(shim.Shim, shim.Task):
    """Leaves everything out but the end."""

    def shutdown(self, context: shim.CallContext, request: ShutdownRequest, /) -> Empty:
        """End."""
        self.exit.signal()
        return Empty()


class Pod(Plain, shim.Sandbox):
    """Serves three services."""

    def create_sandbox(self, context: shim.CallContext, request: CreateSandboxRequest, /) -> CreateSandboxResponse:
        """Agree."""
        return CreateSandboxResponse()

    def ping_sandbox(self, context: shim.CallContext, request: PingRequest, /) -> PingResponse:
        """Agree."""
        return PingResponse()


class Waiting(Plain):
    """Ends by its own rule: when the file `end` of its bundle is there, or `fail`, which fails."""

    def create_task_service(self, publisher: shim.RemotePublisher) -> shim.Task:
        """Remember the bundle: the daemon leaves it."""
        self.bundle = os.getcwd()
        return self

    def wait_shim(self) -> None:
        """Look for a file; the latch is nothing to this shim."""
        while not os.path.exists(f"{self.bundle}/end"):
            if os.path.exists(f"{self.bundle}/fail"):
                raise ZeroDivisionError("a bug in wait_shim")
            time.sleep(0.002)


class Spawning(Plain):
    """Calls `spawn` as SPAWNING says."""

    def start_shim(self, opts: shim.StartOpts) -> str:
        """Spawn once or twice."""
        match os.environ["SPAWNING"]:
            case "same":
                first = shim.spawn(opts, environment={"GREETING": "hello", "PATH": "/bin:/usr/bin"})
                assert first == shim.spawn(opts, opts.id)
                return first
            case "other":
                shim.spawn(opts)
                return shim.spawn(opts, "another")
            case "empty":
                return shim.spawn(opts, "")
            case "fails":
                shim.spawn(opts)
                raise shim.FailedPreconditionError("no\nway")
            case "bug":
                shim.spawn(opts)
                raise ZeroDivisionError("a bug in start_shim")
            case "environment":
                return shim.spawn(opts, environment={"GREETING": 7})  # type: ignore[dict-item]
        raise AssertionError


class Broken(Plain):
    """Cannot make its services."""

    def create_task_service(self, publisher: shim.RemotePublisher) -> shim.Task:
        """Fail."""
        raise ZeroDivisionError("a bug in create_task_service")


class Nothing(shim.Shim):
    """Is no task, and has none."""


class Deaf(Plain):
    """Has a bug in what it does about its own end."""

    def create_task_service(self, publisher: shim.RemotePublisher) -> shim.Task:
        """Be told of the end."""
        self.exit.on_signal(lambda: 1 / 0)
        return self


class Describing(Plain):
    """Tells what it does, up to a bug."""

    def describe(self) -> Iterator[str]:
        """Yield one line."""
        yield "a line of mine"
        raise ZeroDivisionError("a bug in describe")


class Watching(Plain):
    """Asks the monitor, and answers Kill's caller by what it heard."""

    def create(self, context: shim.CallContext, request: CreateTaskRequest, /) -> CreateTaskResponse:
        """Spawn a process that ends, and wait for its exit by the monitor; 0 if nothing is heard of it."""
        with self.daemon.monitor.subscribe() as subscription:
            child = self.daemon.reaper.spawn(["sh", "-c", request.stdin])
            exit_ = subscription.wait(child.pid, float(request.stdout))
        return CreateTaskResponse(pid=exit_.status if exit_ is not None else 0)


class Deleting(Plain):
    """Knows when its container ended."""

    def delete_shim(self) -> shim.Deleted:
        """Answer what DELETED says."""
        return shim.Deleted(*json.loads(os.environ["DELETED"]))


SHIMS: Final = {
    each.__name__.lower(): each
    for each in (Plain, Bare, Pod, Waiting, Spawning, Broken, Nothing, Deaf, Describing, Watching, Deleting)
}

if __name__ == "__main__":
    use_own_sockets()
    if os.environ.get("SHIM_LOGGING") == "early":
        import logging  # noqa: F401
    shim.run("io.containerd.test.v1", SHIMS[sys.argv.pop(1)], config())
