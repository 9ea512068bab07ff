"""The Task service, and the sandbox service beside it, for authors to implement.

Rule: one implementation serves task v2 and v3: their messages differ in nothing but the package, so both take v3's.
Spec: containerd api/runtime/task/v2 and v3, api/runtime/sandbox/v1; contract 5.1.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from shim.api.task_v3_ttrpc import TaskService, task_service
from shim.ttrpc.service import Service

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.api.task_v3_ttrpc import AsyncTaskService

TASK_V2: Final = "containerd.task.v2.Task"


class Task(TaskService):
    """Every call that containerd makes about a container and its execs; each one left out answers UNIMPLEMENTED.

    Methods take the call's context and its request, messages of `shim.api`, and run in threads of their own; one that
    waits for something (`wait`, for the end of a process) returns a `Deferred`, which holds no thread.  What they raise
    is answered by its code.  `inline` names the rpcs, as `{"Connect", "State"}`, whose methods never block: they run on
    the event loop, at a tenth of the cost.
    """

    inline: Collection[str] = frozenset()


def task_services(task: TaskService | AsyncTaskService, inline: Collection[str] | None = None) -> list[Service]:
    """Return all that one daemon serves of `task`: v2 and v3, and the sandbox service if it implements that too.

    `inline` names the methods that never block, by default those that `task.inline` says.
    """
    names: Collection[str] = getattr(task, "inline", ()) if inline is None else inline
    third = task_service(task, inline=names)
    return [Service(TASK_V2, third.methods), third, *_sandbox_services(task)]


def _sandbox_services(task: object) -> list[Service]:
    if not hasattr(task, "create_sandbox"):
        return []
    from shim.api.sandbox_ttrpc import AsyncSandboxService, SandboxService, sandbox_service

    return [sandbox_service(task)] if isinstance(task, SandboxService | AsyncSandboxService) else []
