"""Shims with coroutines: the names of `shim`, for asyncio.

Rule: re-exports only.  What does not wait is the same object in both: errors, messages, `StartOpts`, `Config`.
"""

from shim.errors import ShimError
from shim.runtime.aio_shim import ExitSignal, Shim, Task, run, spawn
from shim.runtime.config import Config
from shim.runtime.publisher import RemotePublisher
from shim.runtime.sandbox import AsyncSandbox as Sandbox
from shim.runtime.shim import Deleted
from shim.runtime.start import StartOpts

__all__ = [
    "Config",
    "Deleted",
    "ExitSignal",
    "RemotePublisher",
    "Sandbox",
    "Shim",
    "ShimError",
    "StartOpts",
    "Task",
    "run",
    "spawn",
]
