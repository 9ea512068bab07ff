"""The topics that task events are published under, and which message goes under which.

Spec: containerd core/runtime/events.go; contract 6.19.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shim.errors import InvalidArgumentError

if TYPE_CHECKING:
    from google.protobuf.message import Message

TASK_CREATE: Final = "/tasks/create"
TASK_START: Final = "/tasks/start"
TASK_OOM: Final = "/tasks/oom"
TASK_EXIT: Final = "/tasks/exit"
TASK_DELETE: Final = "/tasks/delete"
TASK_EXEC_ADDED: Final = "/tasks/exec-added"
TASK_EXEC_STARTED: Final = "/tasks/exec-started"
TASK_PAUSED: Final = "/tasks/paused"
TASK_RESUMED: Final = "/tasks/resumed"
TASK_CHECKPOINTED: Final = "/tasks/checkpointed"

_TOPICS: Final = {
    "containerd.events.TaskCreate": TASK_CREATE,
    "containerd.events.TaskStart": TASK_START,
    "containerd.events.TaskOOM": TASK_OOM,
    "containerd.events.TaskExit": TASK_EXIT,
    "containerd.events.TaskDelete": TASK_DELETE,
    "containerd.events.TaskExecAdded": TASK_EXEC_ADDED,
    "containerd.events.TaskExecStarted": TASK_EXEC_STARTED,
    "containerd.events.TaskPaused": TASK_PAUSED,
    "containerd.events.TaskResumed": TASK_RESUMED,
    "containerd.events.TaskCheckpointed": TASK_CHECKPOINTED,
}


def topic_of(event: Message) -> str:
    """Return the topic of a task event.

    Raises:
        InvalidArgumentError: The message is none.
    """
    name = event.DESCRIPTOR.full_name
    try:
        return _TOPICS[name]
    except KeyError:
        raise InvalidArgumentError(f"{name} is no task event: it needs a topic") from None
