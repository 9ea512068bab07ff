"""What a runc shim's daemon is asked in a rehearsal: the life of a container, and of an exec in it.

Rule: nothing outside of the folder.  The OCI runtime is `true`, whatever it is told; the container's init and its
exec are forks that wait for their end; their stdio is fifos that nobody writes to.
"""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Final

from shim.api import task_v3_pb2 as api
from shim.api.runc_options_pb2 import Options
from shim.errors import UnsupportedSystemError
from shim.host import process
from shim.runtime import rehearsal

if TYPE_CHECKING:
    from shim.runtime.rehearsal import Play

_TASK: Final = "containerd.task.v3.Task"
_ID: Final = "rehearsal"
_EXEC_ID: Final = "exec"
_RUNTIME: Final = "true"
_PROCESS: Final = {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}}
_SPEC: Final = {
    "ociVersion": "1.0.2",
    "process": _PROCESS,
    "root": {"path": "rootfs"},
    "linux": {"namespaces": [{"type": "pid"}]},
}


def play(folder: str) -> Play:
    """Yield the calls of containerd for one container, with an exec, in good order.

    Raises:
        UnsupportedSystemError: There is no `true` here.
        OSError: A file cannot be made in `folder`.
    """
    if process.find_executable(_RUNTIME, os.defpath) is None:
        raise UnsupportedSystemError(f"there is no program {_RUNTIME}")
    bundle = os.path.join(folder, "bundle")
    os.makedirs(os.path.join(bundle, "rootfs"))
    _write(bundle, "config.json", json.dumps(_SPEC))
    fifos, held = _make_fifos(folder)
    init = exec_ = None
    try:
        init, exec_ = _Actor(folder), _Actor(folder)  # before the daemon has threads
        _write(bundle, "init.pid", str(init.pid))
        options = Options(binary_name=_RUNTIME, root=os.path.join(folder, "root"))
        create = api.CreateTaskRequest(id=_ID, bundle=bundle, stdout=fifos[0], stderr=fifos[1])
        create.options.type_url = Options.DESCRIPTOR.full_name
        create.options.value = options.SerializeToString()
        yield _TASK, "Create", create.SerializeToString()
        yield _TASK, "Start", api.StartRequest(id=_ID).SerializeToString()
        yield _TASK, "State", api.StateRequest(id=_ID).SerializeToString()

        _write(bundle, f"{_EXEC_ID}.pid", str(exec_.pid))
        added = api.ExecProcessRequest(id=_ID, exec_id=_EXEC_ID, stdout=fifos[0], stderr=fifos[1])
        added.spec.value = json.dumps(_PROCESS).encode()
        yield _TASK, "Exec", added.SerializeToString()
        yield _TASK, "Start", api.StartRequest(id=_ID, exec_id=_EXEC_ID).SerializeToString()
        yield _TASK, "State", api.StateRequest(id=_ID, exec_id=_EXEC_ID).SerializeToString()
        exec_.end()
        yield _TASK, "Wait", api.WaitRequest(id=_ID, exec_id=_EXEC_ID).SerializeToString()
        yield _TASK, "Delete", api.DeleteRequest(id=_ID, exec_id=_EXEC_ID).SerializeToString()

        yield _TASK, "Connect", api.ConnectRequest(id=_ID).SerializeToString()
        yield _TASK, "Kill", api.KillRequest(id=_ID, signal=signal.SIGKILL).SerializeToString()
        init.end()
        yield _TASK, "Wait", api.WaitRequest(id=_ID).SerializeToString()
        yield _TASK, "Delete", api.DeleteRequest(id=_ID).SerializeToString()
        yield _TASK, "Shutdown", api.ShutdownRequest(id=_ID).SerializeToString()
    finally:
        for actor in (exec_, init):
            if actor is not None:
                actor.end()
        for fd in held:
            os.close(fd)


class _Actor:
    """A child in the role of a container's process: it lives until `end`, or until its parent is killed.

    In that case it takes `folder` along.
    """

    def __init__(self, folder: str) -> None:
        parent = os.getpid()
        read_end, self._cue = os.pipe()
        self.pid: int = os.fork()
        if self.pid == 0:
            try:
                os.close(self._cue)
                os.read(read_end, 1)
                if os.getppid() != parent:
                    rehearsal.remove(folder)
            finally:
                os._exit(0)
        os.close(read_end)

    def end(self) -> None:
        """Let it go; the daemon reaps it.  Repeating is fine."""
        cue, self._cue = self._cue, -1
        if cue >= 0:
            os.close(cue)


def _make_fifos(folder: str) -> tuple[list[str], list[int]]:
    """Make the fifos of a client, and hold their reading ends as it would."""
    paths = [os.path.join(folder, name) for name in ("stdout", "stderr")]
    held = []
    for path in paths:
        os.mkfifo(path, 0o600)
        held.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    return paths, held


def _write(folder: str, name: str, text: str) -> None:
    with open(os.path.join(folder, name), "w") as file:
        file.write(text)
