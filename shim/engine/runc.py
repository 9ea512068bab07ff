"""The command line of runc and its like, and what their failures mean.

Rule: every call runs to its end or to its limit; its error text is the runtime's own words, from log.json if there.
Spec: contract section 7; runc 1.1, crun 1.8.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from shim.engine.call import ChildFds, Ended, exec_failure, run_attached, run_captured
from shim.engine.limits import DEFAULT_LIMITS, Limits
from shim.engine.state import DEFAULT_ROOT
from shim.errors import EngineError, EngineTimeoutError, NotFoundError
from shim.host import cgroup, tempfiles

if TYPE_CHECKING:
    from shim.engine.call import Spawner
    from shim.engine.options import Checkpointing

DEFAULT_BINARY: Final = "runc"

_FINISHED: Final = ("os: process already finished", "container not running", "no such process")
# Beside the fields `open_tcp` to `file_locks` of the options.
_CHECKPOINT_FLAGS: Final = ("--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks")
# Whose processes are moved, and by which calls.
_MOVERS: Final = frozenset({DEFAULT_BINARY, "crun"})
_MOVING: Final = frozenset({"create", "exec", "restore"})
_GONE: Final = ("does not exist", "no such file or directory")


def global_arguments(binary: str, root: str, namespace: str, log: str, *, systemd_cgroup: bool = False) -> list[str]:
    """Return the words that every call begins with; the runtime's state of a namespace is a folder below `root`."""
    words = [binary or DEFAULT_BINARY, "--root", os.path.join(root or DEFAULT_ROOT, namespace)]
    words += ["--log", log, "--log-format", "json"]
    return [*words, "--systemd-cgroup"] if systemd_cgroup else words


def last_error(log: str, offset: int = 0) -> str:
    """Return the last error message that a runtime wrote to its JSON log from `offset` on, or ''.

    Raises:
        OSError: The log cannot be read.
        ValueError: It is no sequence of JSON objects.
    """
    with open(log, encoding="utf-8", errors="replace") as file:
        file.seek(offset)
        text = file.read()
    decoder = json.JSONDecoder()
    message, at = "", 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return message
        record, at = decoder.raw_decode(text, at)
        if isinstance(record, dict) and record.get("level") == "error":
            message = str(record.get("msg", "")).strip()


class Runc(NamedTuple):
    """One container's runtime: its command line and the way to run it."""

    reaper: Spawner
    container_id: str
    bundle: str
    namespace: str
    binary: str = DEFAULT_BINARY
    root: str = DEFAULT_ROOT
    systemd_cgroup: bool = False
    no_pivot_root: bool = False
    no_new_keyring: bool = False
    criu_work_path: str = ""
    limits: Limits = DEFAULT_LIMITS

    @property
    def log(self) -> str:
        """The runtime's log; it appends."""
        return os.path.join(self.bundle, "log.json")

    def create(self, pid_file: str, fds: ChildFds, console_socket: str | None) -> None:
        """Create the container; its init waits to be started.

        Raises:
            EngineError: `OCI runtime create failed: …`.
        """
        words = ["create", "--bundle", self.bundle, "--pid-file", pid_file]
        if console_socket is not None:
            words += ["--console-socket", console_socket]
        if self.no_pivot_root:
            words.append("--no-pivot")
        if self.no_new_keyring:
            words.append("--no-new-keyring")
        self._checked("OCI runtime create failed", words, fds if console_socket is None else None)

    def start(self) -> None:
        """Let the created container's init go.  Raises EngineError."""
        self._checked("OCI runtime start failed", ["start"])

    def checkpoint(self, path: str, work: str, options: Checkpointing) -> None:
        """Write the container's processes to the folder `path`; they end unless the options say otherwise.

        Raises:
            EngineError: With the runtime's output, but not yet where CRIU's log is.
        """
        words = ["checkpoint", "--image-path", path, "--work-path", work]
        if options.parent_path:
            words += ["--parent-path", options.parent_path]
        words += [flag for is_set, flag in zip(options[1:5], _CHECKPOINT_FLAGS, strict=True) if is_set]
        for namespace in options.empty_namespaces:
            words += ["--empty-ns", namespace]
        if not options.exit:
            words.append("--leave-running")
        ended = self._run([*words, self.container_id])
        if ended.status != 0:
            raise EngineError(self._describe(ended))

    def restore(self, path: str, parent: str, pid_file: str, fds: ChildFds, console_socket: str | None) -> None:
        """Bring a container back from a checkpoint, running.

        Raises:
            EngineError: `OCI runtime restore failed: …`.
        """
        work = self.criu_work_path or os.path.join(self.bundle, "work")
        words = ["restore", "--image-path", path, "--work-path", work]
        if parent:
            words += ["--parent-path", parent]
        words += ["--detach", "--pid-file", pid_file]
        if console_socket is not None:
            words += ["--console-socket", console_socket]
        if self.no_pivot_root:
            words.append("--no-pivot")
        words += ["-no-subreaper", "--bundle", self.bundle]
        self._checked("OCI runtime restore failed", words, fds if console_socket is None else None)

    def exec(self, spec: bytes, pid_file: str, fds: ChildFds, console_socket: str | None) -> None:
        """Start another process in the container; `spec` is the JSON of an OCI process.  Raises EngineError."""
        # In the bundle, which goes with the container, even if this process is killed meanwhile.
        path = tempfiles.write_file(self.bundle, "runc-process", spec)
        try:
            words = ["exec", "--process", path]
            if console_socket is not None:
                words += ["--console-socket", console_socket]
            words += ["--detach", "--pid-file", pid_file]
            self._checked("OCI runtime exec failed", words, fds if console_socket is None else None)
        finally:
            os.unlink(path)

    def pause(self) -> None:
        """Freeze the container.  Raises EngineError."""
        self._checked("OCI runtime pause failed", ["pause"])

    def resume(self) -> None:
        """Thaw the container.  Raises EngineError."""
        self._checked("OCI runtime resume failed", ["resume"])

    def kill(self, signum: int, *, is_all: bool = False, deadline: float | None = None) -> None:
        """Send a signal to init, or to every process of the container; `deadline` is a time by `time.monotonic()`.

        Raises:
            NotFoundError: The process or the container is gone.
            EngineError: Anything else.
        """
        words = ["kill", "--all"] if is_all else ["kill"]
        ended = self._run([*words, self.container_id, str(signum)], deadline=deadline)
        if ended.status != 0:
            raise kill_error(self._describe(ended))

    def delete(self, *, is_forced: bool = False, deadline: float | None = None) -> None:
        """Remove the container's state; one that is gone already is fine.  `deadline` as for `kill`.

        Raises:
            EngineError: `failed to delete task: …`.
        """
        words = ["delete", "--force"] if is_forced else ["delete"]
        self._checked("failed to delete task", words, accepts=_GONE, deadline=deadline)

    def processes(self) -> list[int]:
        """Return the host pids of the container's processes.  Raises EngineError."""
        ended = self._run(["ps", "--format", "json", self.container_id])
        if ended.status != 0:
            raise EngineError(self._describe(ended))
        try:
            pids = json.loads(ended.output)
        except ValueError:
            raise EngineError(f"{self.binary} ps: no JSON: {ended.output[:200]!r}") from None
        return [int(pid) for pid in pids or ()]

    def update(self, resources: bytes) -> None:
        """Change limits; `resources` is the JSON of OCI LinuxResources.  Raises EngineError."""
        ended = self._run(["update", "--resources=-", self.container_id], data=resources)
        if ended.status != 0:
            raise EngineError(self._describe(ended))

    def _run(self, words: Sequence[str], *, data: bytes | None = None, deadline: float | None = None) -> Ended:
        """Run a call whose failure is told by its output.  Raises EngineError if it cannot be started or is late."""
        try:
            return self._call(words, data=data, deadline=deadline)
        except OSError as error:
            raise EngineError(exec_failure(self.binary, error)) from None

    def _checked(
        self,
        prefix: str,
        words: Sequence[str],
        fds: ChildFds | None = None,
        *,
        accepts: Sequence[str] = (),
        deadline: float | None = None,
    ) -> None:
        """Run a call that names the container last, and raise its failure in the words of its log.

        A failure that the runtime itself explains with one of the words in `accepts` is none.
        """
        try:
            offset = os.stat(self.log).st_size
        except OSError:
            offset = 0
        said = output = ""
        try:
            ended = self._call([*words, self.container_id], fds=fds, deadline=deadline)
            failure, output = self._describe(ended) if ended.status else "", ended.output
        except EngineTimeoutError as error:
            raise EngineTimeoutError(f"{prefix}: {error}") from None
        except OSError as error:
            failure = exec_failure(self.binary, error)
        if failure:
            try:
                said = last_error(self.log, offset)
                message = said or failure
            except OSError as error:
                reason = f"open {self.log}: {(error.strerror or str(error)).lower()}"
                message = f"unable to retrieve OCI runtime error ({reason}): {failure}"
            except ValueError as error:
                message = f"unable to retrieve OCI runtime error ({error}): {failure}"
            if not any(word in f"{said} {output}".lower() for word in accepts):
                raise EngineError(f"{prefix}: {message}")

    def _describe(self, ended: Ended) -> str:
        text = f"{self.binary} did not terminate successfully: exit status {ended.status}"
        return f"{text}: {ended.output.strip()}" if ended.output.strip() else text

    def _call(
        self,
        words: Sequence[str],
        *,
        fds: ChildFds | None = None,
        data: bytes | None = None,
        deadline: float | None = None,
    ) -> Ended:
        """Run a call within its limit, or until `deadline` if that is earlier.

        Raises:
            OSError: It cannot be started.
            EngineTimeoutError: It was not done in time and has been killed.
        """
        limit_s: float = getattr(self.limits, words[0])
        what = ""
        if deadline is not None and deadline - time.monotonic() < limit_s:
            limit_s, what = max(0.0, deadline - time.monotonic()), ", the deadline of its caller,"
        argv = global_arguments(self.binary, self.root, self.namespace, self.log, systemd_cgroup=self.systemd_cgroup)
        argv += words
        # Wrappers around runtimes read config.json and init.pid where they are started.  A bundle may be gone by then.
        folder = self.bundle if os.path.isdir(self.bundle) else None
        meanwhile = cgroup.announce_move if self._moves(words[0]) else None
        if fds is not None:
            ended = run_attached(self.reaper, argv, fds, limit_s=limit_s, folder=folder, meanwhile=meanwhile)
        else:
            ended = run_captured(self.reaper, argv, data, limit_s=limit_s, folder=folder, meanwhile=meanwhile)
        if ended.is_late:
            raise EngineTimeoutError(
                f"{self.binary} {words[0]} of container {self.container_id} "
                f"was not done after {limit_s:g} s{what} and has been killed"
            )
        return ended

    def _moves(self, subcommand: str) -> bool:
        """Say whether a call moves a process into the container's cgroups, some milliseconds after its start.

        Runtimes that move themselves (runsc) are none of ours to move.  In version 2 processes can be born where they
        belong (CLONE_INTO_CGROUP), and an announcement would only be in their way: crun (1.8) does that, and runc (1.4)
        for exec.  Older ones would gain there, too, but which it is nobody says.
        """
        binary = os.path.basename(self.binary)
        if subcommand not in _MOVING or binary not in _MOVERS:
            return False
        return not cgroup.is_unified() or (subcommand != "exec" and binary == DEFAULT_BINARY)


def kill_error(text: str) -> EngineError | NotFoundError:
    """Return the error that a failed kill means, by what the runtime said."""
    lowered = text.lower()
    if any(word in lowered for word in _FINISHED):
        return NotFoundError("process already finished: not found")
    if any(word in lowered for word in _GONE):
        return NotFoundError("no such container: not found")
    return EngineError(f"unknown error after kill: {text}")
