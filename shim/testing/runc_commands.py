"""The subcommands of the fake runc: what each does to a container, and the words in which it refuses.

Rule: as `runc_program`: imported for every call of the fake, so nothing that can wait.
Spec: runc's man pages; texts are those of runc 1.1 (libcontainer/error.go).
"""

from __future__ import annotations

import os
import sys

from shim.testing.runc_program import Program, RuncError, environment_of
from shim.testing.runc_state import Container, is_alive, wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

_NOT_RUNNING = "container not running"
_NO_FILE = "no such file or directory"
_SIGNALS = {"KILL": 9, "TERM": 15, "INT": 2, "HUP": 1, "QUIT": 3, "USR1": 10, "USR2": 12, "STOP": 19, "CONT": 18}


def read_process(path: str, key: str) -> dict[str, Any]:
    """Return the process of a config.json, or of an exec's file; one that says nothing sleeps for long."""
    import json

    try:
        with open(path) as file:
            spec = json.load(file)
    except FileNotFoundError:
        missing = f"JSON specification file {path} not found" if key else f"open {path}: no such file or directory"
        raise RuncError(missing) from None
    process: dict[str, Any] = (spec.get(key) if key else spec) or {}
    process.setdefault("args", ["sleep", "1000"])
    _look_up(process["args"][0], environment_of(process))
    return process


def _look_up(program: str, environment: dict[str, str]) -> None:
    """Find a program as the container's init does before `create` and `exec` have succeeded."""
    if "/" in program:
        if not os.path.exists(program):
            raise RuncError(f'unable to start container process: exec: "{program}": stat {program}: {_NO_FILE}')
        return
    for folder in os.get_exec_path(environment):
        if os.access(os.path.join(folder, program), os.X_OK):
            return
    raise RuncError(f'unable to start container process: exec: "{program}": executable file not found in $PATH')


def create(program: Program) -> None:
    """`runc create`, and `runc restore`, whose container runs at once."""
    call, container = program.call, program.container
    if container.exists:
        raise RuncError("container with given ID already exists")
    bundle = os.path.abspath(call.option("--bundle", "-b") or ".")
    if not os.path.isdir(bundle):
        raise RuncError(f"chdir {call.option('--bundle', '-b')}: {_NO_FILE}")
    process = read_process(os.path.join(bundle, "config.json"), "process")
    os.makedirs(container.path)
    container.write("bundle", bundle)
    fifo = ""
    if call.command == "create":
        fifo = os.path.join(container.path, "exec.fifo")
        os.mkfifo(fifo, 0o622)
    program.started(program.spawn(process, fifo), lambda marked: container.write("init", marked))


def start(program: Program) -> None:
    """`runc start`."""
    container = program.existing()
    status = container.status
    if status == "stopped":
        raise RuncError("cannot start a container that has stopped")
    if status != "created":
        raise RuncError("cannot start an already running container")
    init = container.init
    fd = os.open(os.path.join(container.path, "exec.fifo"), os.O_RDONLY | os.O_NONBLOCK)
    wait(lambda: _read_byte(fd) or not is_alive(init), program.here)  # init writes it and goes on
    container.drop("exec.fifo")
    os.close(fd)
    if program.plan.get("init_exits") is not None:
        wait(lambda: not is_alive(init), program.here)


def _read_byte(fd: int) -> bool:
    try:
        return bool(os.read(fd, 1))
    except BlockingIOError:
        return False


def exec_(program: Program) -> None:
    """`runc exec --detach`."""
    container = program.existing()
    status = container.status
    if status == "stopped":
        raise RuncError("cannot exec in a stopped container")
    if status == "paused":
        raise RuncError("cannot exec in a paused container (use --ignore-paused to override)")
    process = read_process(program.call.option("--process", "-p"), "")

    def note(marked: str) -> None:
        container.write("execs", f"{container.read('execs')}{marked}\n")

    program.started(program.spawn(process, ""), note)


def kill(program: Program) -> None:
    """`runc kill`."""
    container = program.existing()
    name = program.call.names[1] if len(program.call.names) > 1 else "TERM"
    signum = int(name) if name.isdigit() else signal_of(name)
    if "--all" in program.call.options or "-a" in program.call.options:
        for pid in container.processes():
            send(pid, signum)
        return
    if container.status == "stopped":
        raise RuncError(_NOT_RUNNING)
    send(int(container.init.split()[0]), signum)


def send(pid: int, signum: int) -> None:
    """Signal a process that may be gone."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass


def signal_of(name: str) -> int:
    """Return a signal's number."""
    try:
        return _SIGNALS[name.upper().removeprefix("SIG")]
    except KeyError:
        raise RuncError(f'unknown signal "{name}"') from None


def delete(program: Program) -> None:
    """`runc delete`."""
    container = program.container
    is_forced = "--force" in program.call.options or "-f" in program.call.options
    if not container.exists and is_forced:
        return
    program.existing()
    status = container.status
    if status not in ("stopped", "created") and not is_forced:
        raise RuncError(f"cannot delete container {program.call.id} that is not stopped: {status}")
    _destroy(container, program.here)


def _destroy(container: Container, here: str) -> None:
    """Kill the init if it lives, and forget the container."""
    init = container.init
    if is_alive(init):
        send(int(init.split()[0]), 9)
        wait(lambda: not is_alive(init), here)
    for name in os.listdir(container.path):
        os.unlink(os.path.join(container.path, name))
    os.rmdir(container.path)


def pause(program: Program) -> None:
    """`runc pause`."""
    container = program.existing()
    if container.status not in ("running", "created"):
        raise RuncError(_NOT_RUNNING)
    container.write("paused", "")
    for pid in container.processes():
        send(pid, 19)


def resume(program: Program) -> None:
    """`runc resume`."""
    container = program.existing()
    if container.status != "paused":
        raise RuncError("container not paused")
    container.drop("paused")
    for pid in container.processes():
        send(pid, 18)


def ps(program: Program) -> None:
    """`runc ps`."""
    pids = program.existing().processes()
    os.write(1, f"[{','.join(map(str, pids))}]".encode() if pids else b"null")


def update(program: Program) -> None:
    """`runc update`; the resources are kept as they came."""
    container = program.existing()
    if container.status == "stopped":
        raise RuncError(_NOT_RUNNING)
    path = program.call.option("--resources", "-r")
    with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
        data = file.read()
    container.write("resources", data.decode())


def state(program: Program) -> None:
    """`runc state`."""
    import json

    container = program.existing()
    status = container.status
    pid = 0 if status == "stopped" else int(container.init.split()[0])
    bundle = container.read("bundle")
    facts = {"ociVersion": "1.0.2-dev", "id": program.call.id, "pid": pid, "status": status, "bundle": bundle}
    more = {"rootfs": os.path.join(bundle, "rootfs"), "created": "2024-01-02T03:04:05.678901234Z", "owner": ""}
    os.write(1, json.dumps({**facts, **more}, indent=2).encode())


def features(program: Program) -> None:
    """`runc features`."""
    os.write(1, b'{"ociVersionMin":"1.0.0","ociVersionMax":"1.0.2-dev","mountOptions":["rro"]}\n')


def checkpoint(program: Program) -> None:
    """`runc checkpoint`; the image is a folder with a file that says of what."""
    container = program.existing()
    if container.status not in ("running", "paused"):
        raise RuncError(f"Container cannot be checkpointed in {container.status} state")
    image = program.call.option("--image-path")
    os.makedirs(image, exist_ok=True)
    with open(os.path.join(image, "inventory.img"), "w") as file:
        file.write(program.call.id)
    if "--leave-running" not in program.call.options:
        _destroy(container, program.here)


def restore(program: Program) -> None:
    """`runc restore --detach`."""
    image = program.call.option("--image-path")
    if not os.path.exists(os.path.join(image, "inventory.img")):
        raise RuncError(f"no checkpoint in {image}")
    create(program)


COMMANDS: dict[str, Callable[[Program], None]] = {
    "checkpoint": checkpoint,
    "create": create,
    "delete": delete,
    "exec": exec_,
    "features": features,
    "kill": kill,
    "pause": pause,
    "ps": ps,
    "restore": restore,
    "resume": resume,
    "start": start,
    "state": state,
    "update": update,
}


def main(here: str) -> NoReturn:
    """Be runc, with what the test that owns the folder `here` has planned."""
    os._exit(Program(here, sys.argv[1:]).run(COMMANDS))
