"""What a runc shim's daemon is asked while its image is made: the life of a container, and of an exec in it.

Rule: nothing outside of the folder; no program runs (shim/runtime/warm_up.py), and nothing writes to the stdio fifos.
"""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Final

from shim.api import task_v3_pb2 as api
from shim.api.runc_options_pb2 import Options

if TYPE_CHECKING:
    from shim.runtime.warm_up import Calls, FakeHost

_TASK: Final = "containerd.task.v3.Task"
_ID: Final = "warm-up"
_EXEC_ID: Final = "exec"
_PROCESS: Final = {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}}
_SPEC: Final = {
    "ociVersion": "1.0.2",
    "process": _PROCESS,
    "root": {"path": "rootfs"},
    "linux": {"namespaces": [{"type": "pid"}]},
}


def calls(host: FakeHost, folder: str) -> Calls:
    """Yield the calls of containerd for one container, with an exec, in good order."""
    bundle = os.path.join(folder, "bundle")
    os.makedirs(os.path.join(bundle, "rootfs"))
    _write(bundle, "config.json", json.dumps(_SPEC))
    fifos, held = _make_fifos(folder)
    try:
        options = Options(binary_name="/bin/true", root=os.path.join(folder, "root"))
        create = api.CreateTaskRequest(id=_ID, bundle=bundle, stdout=fifos[0], stderr=fifos[1])
        create.options.type_url = Options.DESCRIPTOR.full_name
        create.options.value = options.SerializeToString()
        yield _TASK, "Create", create.SerializeToString()
        init = host.last_pid
        yield _TASK, "Start", api.StartRequest(id=_ID).SerializeToString()
        for _ in range(4):
            yield _TASK, "State", api.StateRequest(id=_ID).SerializeToString()

        added = api.ExecProcessRequest(id=_ID, exec_id=_EXEC_ID, stdout=fifos[0], stderr=fifos[1])
        added.spec.value = json.dumps(_PROCESS).encode()
        yield _TASK, "Exec", added.SerializeToString()
        yield _TASK, "Start", api.StartRequest(id=_ID, exec_id=_EXEC_ID).SerializeToString()
        yield _TASK, "State", api.StateRequest(id=_ID, exec_id=_EXEC_ID).SerializeToString()
        host.end(host.last_pid)
        yield _TASK, "Wait", api.WaitRequest(id=_ID, exec_id=_EXEC_ID).SerializeToString()
        yield _TASK, "Delete", api.DeleteRequest(id=_ID, exec_id=_EXEC_ID).SerializeToString()

        yield _TASK, "Connect", api.ConnectRequest(id=_ID).SerializeToString()
        yield _TASK, "Kill", api.KillRequest(id=_ID, signal=signal.SIGKILL).SerializeToString()
        host.end(init, signal.SIGKILL)
        yield _TASK, "Wait", api.WaitRequest(id=_ID).SerializeToString()
        yield _TASK, "Delete", api.DeleteRequest(id=_ID).SerializeToString()
        yield _TASK, "Shutdown", api.ShutdownRequest(id=_ID).SerializeToString()
    finally:
        for fd in held:
            os.close(fd)


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
