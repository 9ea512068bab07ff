"""The sandbox service for authors to implement: what containerd asks of a shim that is the sandboxer of its pods.

Rule: a class of its own, which a task service may be as well; `shim.Shim.services` serves it then.
Spec: containerd api/runtime/sandbox/v1; contract 13.
"""

from __future__ import annotations

from shim.api.sandbox_ttrpc import AsyncSandboxService, SandboxService


class Sandbox(SandboxService):
    """Every call about a pod's sandbox; each one left out answers UNIMPLEMENTED.

    containerd calls CreateSandbox, StartSandbox, WaitSandbox (all the time), Platform and SandboxStatus on demand, then
    StopSandbox and ShutdownSandbox, which ends the shim: of shims whose runtime has `sandboxer = "shim"`.
    """


class AsyncSandbox(AsyncSandboxService):
    """The same with coroutines."""
