"""A private real containerd in a temporary folder, for tests, the demo and the benchmarks.

    with Containerd(releases.find("1.7"), [Path("dist")]) as containerd:
        result = containerd.run("c1", "echo", "hello")      # ctr run --rm --runtime io.containerd.pyrunc.v1 ...
        containerd.ctr("tasks", "ls")                       # any ctr command; raises CommandError when it fails
    assert containerd.left_behind == []

Its namespace is unique, because cgroups and engine state are named after it whatever containerd's folders are. On exit
it stops all containers and itself, notes what is left in `left_behind`, and then removes that by force.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from shim.testing import image, sweep
from shim.testing.daemon import CommandError, Daemon
from shim.testing.events import EventLog
from shim.testing.leftovers import Leftovers, Process, Scope, Snapshot, processes_of, read_process, runs_shim
from shim.testing.releases import Release

__all__ = ["GO_RUNTIME", "RUNTIME", "CommandError", "Containerd", "Result", "Task"]

RUNTIME: Final = "io.containerd.pyrunc.v1"
GO_RUNTIME: Final = "io.containerd.runc.v2"

# Whose name is not ours to choose: another containerd's pods are in cgroups and folders of that name too.
SHARED_NAMESPACES: Final = frozenset({"k8s.io"})

Result = subprocess.CompletedProcess[str]


@dataclass(frozen=True, slots=True)
class Task:
    """One line of `ctr tasks ls`."""

    container: str
    pid: int
    status: str


class Containerd(Daemon):
    """A containerd of one release in its default configuration, with its own folders, sockets and PATH.

    `path` are folders to put first on its PATH (where shims are; Go's shim of the release follows, the rest of PATH
    comes last, which is where runc is found). `runtime` is what `run` uses unless told otherwise. `debug` is handed to
    the shims too. `environment` is added to containerd's (None removes a variable). With `keep` the temporary folder
    stays for reading.
    """

    def __init__(
        self,
        release: Release,
        path: Sequence[Path] = (),
        *,
        runtime: str = RUNTIME,
        namespace: str | None = None,
        debug: bool = False,
        snapshotter: str | None = None,
        environment: Mapping[str, str | None] | None = None,
        keep: bool = False,
    ) -> None:
        super().__init__(release, path, debug=debug, environment=environment or {})
        self.runtime = runtime
        self.namespace: str = namespace or f"t{secrets.token_hex(4)}"
        self.snapshotter = snapshotter or ""
        self.keep = keep
        self.left_behind: list[str] = []
        self._logs: list[EventLog] = []
        self._before: Snapshot = frozenset()
        self._namespaces = {self.namespace}
        self._names: set[str] = set()
        self._imported: set[tuple[str, str]] = set()
        self._serial = 0

    def __enter__(self) -> Self:
        self.make_folder()
        try:
            self.snapshotter = self.snapshotter or ("overlayfs" if self.has_overlay() else "native")
            self._before = Leftovers(self.scope()).snapshot()
            self.start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def bundle(self, container: str, namespace: str | None = None) -> Path:
        """Return the bundle folder of a container."""
        tasks = self.folder / "state" / "io.containerd.runtime.v2.task"
        return tasks / (namespace or self.namespace) / container

    def client_environment(self) -> dict[str, str]:
        """Return the environment in which a plain `ctr` of this release talks to this containerd and namespace."""
        return {
            **os.environ,
            "CONTAINERD_ADDRESS": self.address,
            "CONTAINERD_NAMESPACE": self.namespace,
            "PATH": os.pathsep.join([str(self.release.folder), os.environ.get("PATH", os.defpath)]),
        }

    def restart(self) -> None:
        """Start containerd again after `kill` or `stop` (which is done first if need be); event logs follow."""
        self.stop()
        self.start()
        for log in self._logs:
            log.connect()

    # Commands.

    def ctr(
        self,
        *args: str,
        check: bool = True,
        input: str | None = None,
        timeout_s: float = 60.0,
        namespace: str | None = None,
    ) -> Result:
        """Run this release's `ctr` with this address and namespace; without `input` its stdin is /dev/null.

        Raises:
            CommandError: `check` is set and it ended with another code than 0, or it took longer than `timeout_s`.
        """
        process = self.popen(*args, stdin=subprocess.DEVNULL if input is None else subprocess.PIPE, namespace=namespace)
        with process:
            try:
                stdout, stderr = process.communicate(None if input is None else input.encode(), timeout_s)
            except BaseException as error:
                process.kill()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                stdout, stderr = process.communicate()
                code = None
            else:
                code = process.returncode
        result = Result(list(map(str, process.args)), code or 0, _text(stdout), _text(stderr))  # type: ignore[arg-type]
        if code is None or (check and code):
            raise CommandError(result.args, code, result.stdout, result.stderr, self.tail())
        return result

    def popen(
        self,
        *args: str,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = subprocess.PIPE,
        stderr: int | IO[bytes] | None = subprocess.PIPE,
        namespace: str | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start this release's `ctr` and return the process, for what has to be watched or fed while it runs."""
        self.remember(*args, namespace=namespace)
        command = [str(self.release.ctr), "--address", self.address, "--namespace", namespace or self.namespace, *args]
        return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, env=self._client_base())

    def run(
        self,
        container: str,
        *command: str,
        detach: bool = False,
        rm: bool | None = None,
        options: Sequence[str] = (),
        runtime: str | None = None,
        image_name: str = image.IMAGE,
        namespace: str | None = None,
        check: bool = True,
        input: str | None = None,
        timeout_s: float = 60.0,
    ) -> Result:
        """Do `ctr run` with `options` before the image; an attached run removes its container unless told otherwise.

        Raises:
            CommandError: as `ctr` does; the container's own exit code counts, unless `check` is off.
        """
        args = self.run_arguments(
            container, *command, detach=detach, rm=rm, options=options, runtime=runtime, image_name=image_name
        )
        self.import_image(image_name, namespace)
        return self.ctr(*args, check=check, input=input, timeout_s=timeout_s, namespace=namespace)

    def run_arguments(
        self,
        container: str,
        *command: str,
        detach: bool = False,
        rm: bool | None = None,
        options: Sequence[str] = (),
        runtime: str | None = None,
        image_name: str = image.IMAGE,
    ) -> list[str]:
        """Return the arguments of `ctr` that `run` uses, for `popen`; the image has to be imported before."""
        args = ["run", "--runtime", runtime or self.runtime, "--snapshotter", self.snapshotter]
        args += ["--fifo-dir", str(self.folder / "fifo")]
        if detach:
            args.append("--detach")
        if not detach if rm is None else rm:
            args.append("--rm")
        return [*args, *options, image_name, container, *command]

    def exec(
        self,
        container: str,
        *command: str,
        exec_id: str | None = None,
        options: Sequence[str] = (),
        check: bool = True,
        input: str | None = None,
        timeout_s: float = 60.0,
    ) -> Result:
        """Do `ctr tasks exec` with `options`; makes up an exec id if none is given.

        Raises:
            CommandError: as `ctr` does; the process's own exit code counts, unless `check` is off.
        """
        self._serial += 1
        args = ["tasks", "exec", "--exec-id", exec_id or f"exec{self._serial}", "--fifo-dir", str(self.folder / "fifo")]
        return self.ctr(*args, *options, container, *command, check=check, input=input, timeout_s=timeout_s)

    def import_image(self, name: str = image.IMAGE, namespace: str | None = None, archive: Path | None = None) -> None:
        """Import an image (by default the busybox image) into a namespace, once."""
        key = (namespace or self.namespace, name)
        if key in self._imported:
            return
        if archive is None:
            archive = image.write_image(self.folder / "image.tar", name=name)
        args = ["images", "import", "--snapshotter", self.snapshotter]
        if self.release.major >= 2:
            # The transfer service would need an unpack configuration for any snapshotter but the default one.
            args.append("--local")
        self.ctr(*args, str(archive), namespace=namespace)
        self._imported.add(key)

    def events(self) -> EventLog:
        """Collect events in the background from now on."""
        log = EventLog(self._spawn_events, self._cause_event)
        self._logs.append(log)
        return log

    # Looking things up.

    def tasks(self, namespace: str | None = None) -> dict[str, Task]:
        """Return the tasks that `ctr tasks ls` lists, by container."""
        lines = self.ctr("tasks", "ls", namespace=namespace).stdout.splitlines()[1:]
        rows = [line.split() for line in lines if line.strip()]
        return {row[0]: Task(row[0], int(row[1]), row[2]) for row in rows}

    def task_pid(self, container: str, namespace: str | None = None) -> int:
        """Return the process id of a container's init process."""
        return self.tasks(namespace)[container].pid

    def wait_status(self, container: str, status: str, timeout_s: float = 10.0, namespace: str | None = None) -> None:
        """Wait until `ctr tasks ls` shows this status (RUNNING, STOPPED, ...).

        Raises:
            CommandError: it did not within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            task = self.tasks(namespace).get(container)
            if task is not None and task.status == status:
                return
            if time.monotonic() > deadline:
                raise CommandError(["wait", container, status], None, f"it is {task}", "", self.tail())
            time.sleep(0.03)

    def shims(self) -> list[Process]:
        """Return the live shim processes of this containerd: daemons, and whatever else runs a shim's executable."""
        return [process for process in processes_of(self.scope()) if runs_shim(process, self._shim_names())]

    def shim_pid(self, container: str, namespace: str | None = None) -> int:
        """Return the process id of the shim daemon that serves a container: its init's parent."""
        process = read_process(self.task_pid(container, namespace))
        if process is None:
            raise LookupError(f"the init process of {container} is gone")
        return process.parent

    def scope(self) -> Scope:
        """Return what belongs to this containerd, for `leftovers`."""
        own = [pid for log in self._logs for pid in log.pids()]
        if self._process is not None:
            own.append(self._process.pid)
        return Scope(
            shims=self._shim_names(),
            namespaces=tuple(sorted(self._namespaces - SHARED_NAMESPACES)),
            shared_namespaces=tuple(sorted(self._namespaces & SHARED_NAMESPACES)),
            folders=(self.folder,),
            addresses=(self.address,),
            containers=tuple(sorted(self._names)),
            private_temp=(self.tmp,),
            ignored_pids=frozenset(own),
        )

    def leftovers(self, settle_s: float = 5.0) -> list[str]:
        """Return a line for each process, mount, socket, cgroup, ... that shims have here beyond containerd itself."""
        return Leftovers(self.scope()).since(self._before, settle_s)

    def remember(self, *words: str, namespace: str | None = None) -> None:
        """Count these names, and the namespace, as ours; `ctr` and `popen` do that with all their arguments."""
        # Any word may be a container id, any label or annotation a group: sockets are named by their hash.
        self._namespaces.add(namespace or self.namespace)
        self._names.update(
            part for word in words for part in {word, word.rpartition("=")[2]} if part and "/" not in part
        )

    # Private parts.

    def _shim_names(self) -> tuple[str, ...]:
        named = {
            f"containerd-shim-{'-'.join(runtime.split('.')[-2:])}" for runtime in (self.runtime, RUNTIME, GO_RUNTIME)
        }
        return tuple(sorted(named))

    def _client_base(self) -> dict[str, str]:
        # ctr has settings of its own in the environment, which must not leak in from the caller's.
        own = {name: value for name, value in os.environ.items() if not name.startswith("CONTAINERD_")}
        # Else the ctr of 2.2 and newer speaks of the host's cgroup v1 at every call.
        return {**own, "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS": "1"}

    def _spawn_events(self) -> subprocess.Popen[str]:
        command = [str(self.release.ctr), "--address", self.address, "events"]
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env=self._client_base(),
        )

    def _cause_event(self) -> None:
        self._serial += 1
        self.ctr("namespaces", "label", self.namespace, f"probe={self._serial}")

    def _close(self) -> None:
        """Stop everything, note what did not go by itself, remove that by force, remove the folder."""
        with sweep.uninterrupted():
            try:
                self._delete_containers()
            finally:
                for log in self._logs:
                    log.close()
                self.stop()
                self.left_behind = self.leftovers()
                sweep.remove(self.scope())
                if not self.keep:
                    sweep.remove_folder(self.folder)

    def _delete_containers(self) -> None:
        if not self.is_running:
            self.start()
        for namespace in self._names_of("namespaces"):
            self._namespaces.add(namespace)
            tasks, containers = self._names_of("tasks", namespace), self._names_of("containers", namespace)
            self._names.update(tasks, containers)
            for verb, names in (("tasks", tasks), ("containers", containers)):
                force = ["--force"] if verb == "tasks" else []
                if names:
                    self.ctr(verb, "rm", *force, *names, check=False, namespace=namespace)

    def _names_of(self, what: str, namespace: str | None = None) -> list[str]:
        return self.ctr(what, "ls", "-q", check=False, namespace=namespace).stdout.split()


def _text(output: bytes | None) -> str:
    return (output or b"").decode(errors="replace")
