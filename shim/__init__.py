"""containerd shims in Python.

A shim is a subclass of `Shim` that answers the calls of `Task`, and `run` makes a program of it; docs/guide.md begins
there.  Modules: `mount` (`shim.host.mount`), `cgroup` (`shim.host.cgroup`), `log_driver` (`shim.runtime.log_driver`),
`topics` (`shim.runtime.topics`); `shim.aio`, `shim.api` and `shim.ttrpc` are imported by themselves.
Names are re-exported on first use (PEP 562), so that `import shim.ttrpc` loads no runtime, and a `start` only what it
needs.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.errors import (
        AlreadyExistsError,
        FailedPreconditionError,
        InvalidArgumentError,
        NotFoundError,
        ShimError,
        UnavailableError,
        UnimplementedError,
    )
    from shim.host import cgroup, mount
    from shim.runtime import log_driver, topics
    from shim.runtime.address import socket_address
    from shim.runtime.config import Config
    from shim.runtime.exit_signal import ExitSignal
    from shim.runtime.flags import Flags, parse
    from shim.runtime.logger import Logger
    from shim.runtime.main import run
    from shim.runtime.monitor import ExecSubject, ExitEvent, Monitor, Subscription
    from shim.runtime.publisher import RemotePublisher
    from shim.runtime.publishing import StandalonePublisher
    from shim.runtime.reaper import Child, Exit
    from shim.runtime.sandbox import Sandbox
    from shim.runtime.serve import Daemon
    from shim.runtime.shim import Deleted, Shim
    from shim.runtime.start import StartOpts, spawn
    from shim.runtime.task import Task
    from shim.runtime.timestamps import from_timestamp, timestamp
    from shim.runtime.tracing import Trace, current_trace
    from shim.ttrpc.context import CallContext, Deferred

_HOMES = {
    "AlreadyExistsError": "shim.errors",
    "CallContext": "shim.ttrpc.context",
    "Child": "shim.runtime.reaper",
    "Config": "shim.runtime.config",
    "Daemon": "shim.runtime.serve",
    "Deferred": "shim.ttrpc.context",
    "Deleted": "shim.runtime.shim",
    "ExecSubject": "shim.runtime.monitor",
    "Exit": "shim.runtime.reaper",
    "ExitEvent": "shim.runtime.monitor",
    "ExitSignal": "shim.runtime.exit_signal",
    "FailedPreconditionError": "shim.errors",
    "Flags": "shim.runtime.flags",
    "InvalidArgumentError": "shim.errors",
    "Logger": "shim.runtime.logger",
    "Monitor": "shim.runtime.monitor",
    "NotFoundError": "shim.errors",
    "RemotePublisher": "shim.runtime.publisher",
    "Sandbox": "shim.runtime.sandbox",
    "Shim": "shim.runtime.shim",
    "ShimError": "shim.errors",
    "StandalonePublisher": "shim.runtime.publishing",
    "StartOpts": "shim.runtime.start",
    "Subscription": "shim.runtime.monitor",
    "Task": "shim.runtime.task",
    "Trace": "shim.runtime.tracing",
    "UnavailableError": "shim.errors",
    "UnimplementedError": "shim.errors",
    "cgroup": "shim.host",
    "current_trace": "shim.runtime.tracing",
    "from_timestamp": "shim.runtime.timestamps",
    "log_driver": "shim.runtime",
    "mount": "shim.host",
    "parse": "shim.runtime.flags",
    "run": "shim.runtime.main",
    "socket_address": "shim.runtime.address",
    "spawn": "shim.runtime.start",
    "timestamp": "shim.runtime.timestamps",
    "topics": "shim.runtime",
}

__all__ = [
    "AlreadyExistsError",
    "CallContext",
    "Child",
    "Config",
    "Daemon",
    "Deferred",
    "Deleted",
    "ExecSubject",
    "Exit",
    "ExitEvent",
    "ExitSignal",
    "FailedPreconditionError",
    "Flags",
    "InvalidArgumentError",
    "Logger",
    "Monitor",
    "NotFoundError",
    "RemotePublisher",
    "Sandbox",
    "Shim",
    "ShimError",
    "StandalonePublisher",
    "StartOpts",
    "Subscription",
    "Task",
    "Trace",
    "UnavailableError",
    "UnimplementedError",
    "__version__",
    "cgroup",
    "current_trace",
    "from_timestamp",
    "log_driver",
    "mount",
    "parse",
    "run",
    "socket_address",
    "spawn",
    "timestamp",
    "topics",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(home)
    value: object = getattr(module, name) if hasattr(module, name) else import_module(f"{home}.{name}")
    globals()[name] = value
    return value
