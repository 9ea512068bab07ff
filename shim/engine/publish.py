"""The lifecycle's events as containerd's messages, each under its topic.

Rule: one message for each method; `TaskExit.id` is the container's id for init, the exec's id for an exec.
Spec: contract 6.19; containerd api/events/task.proto.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shim.api import events_pb2
from shim.runtime import topics
from shim.runtime.timestamps import timestamp

if TYPE_CHECKING:
    from shim.engine.container import Container
    from shim.engine.process import Process
    from shim.runtime.publisher import RemotePublisher


class TaskEvents:
    """An `EventSink` that publishes."""

    def __init__(self, publisher: RemotePublisher) -> None:
        self._publish = publisher.publish

    def created(self, container: Container) -> None:
        """Publish /tasks/create."""
        stdio = container.init.stdio
        event = events_pb2.TaskCreate(
            container_id=container.id,
            bundle=container.bundle.path,
            io=events_pb2.TaskIO(stdin=stdio.stdin, stdout=stdio.stdout, stderr=stdio.stderr, terminal=stdio.terminal),
            checkpoint=container.checkpoint.path,
            pid=container.init.pid,
        )
        for mount in container.mounts:
            event.rootfs.add(type=mount.type, source=mount.source, target=mount.target, options=mount.options)
        self._publish(topics.TASK_CREATE, event)

    def started(self, process: Process) -> None:
        """Publish /tasks/start or /tasks/exec-started."""
        container_id = process.container.id
        if process.is_init:
            self._publish(topics.TASK_START, events_pb2.TaskStart(container_id=container_id, pid=process.pid))
        else:
            event = events_pb2.TaskExecStarted(container_id=container_id, exec_id=process.id, pid=process.pid)
            self._publish(topics.TASK_EXEC_STARTED, event)

    def exited(self, process: Process) -> None:
        """Publish /tasks/exit."""
        event = events_pb2.TaskExit(container_id=process.container.id, id=process.id, pid=process.pid)
        _fill_exit(event, process)
        self._publish(topics.TASK_EXIT, event)

    def deleted(self, container: Container) -> None:
        """Publish /tasks/delete."""
        event = events_pb2.TaskDelete(container_id=container.id, pid=container.init.pid)
        _fill_exit(event, container.init)
        self._publish(topics.TASK_DELETE, event)

    def exec_added(self, process: Process) -> None:
        """Publish /tasks/exec-added."""
        event = events_pb2.TaskExecAdded(container_id=process.container.id, exec_id=process.id)
        self._publish(topics.TASK_EXEC_ADDED, event)

    def paused(self, container: Container) -> None:
        """Publish /tasks/paused."""
        self._publish(topics.TASK_PAUSED, events_pb2.TaskPaused(container_id=container.id))

    def resumed(self, container: Container) -> None:
        """Publish /tasks/resumed."""
        self._publish(topics.TASK_RESUMED, events_pb2.TaskResumed(container_id=container.id))

    def checkpointed(self, container: Container, path: str) -> None:
        """Publish /tasks/checkpointed."""
        self._publish("/tasks/checkpointed", events_pb2.TaskCheckpointed(container_id=container.id, checkpoint=path))

    def oom(self, container: Container) -> None:
        """Publish /tasks/oom."""
        self._publish(topics.TASK_OOM, events_pb2.TaskOOM(container_id=container.id))


def _fill_exit(event: events_pb2.TaskExit | events_pb2.TaskDelete, process: Process) -> None:
    exit_ = process.exit
    if exit_ is not None:
        event.exit_status = exit_.status
        event.exited_at.CopyFrom(timestamp(exit_.at))
