"""The command line of runc and its like, and what their failures mean.

Rule: every call runs to its end; its error text is the runtime's own words, from log.json where it writes them.
Spec: contract section 7; runc 1.1, crun 1.8.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from shim.errors import EngineError, NotFoundError
from shim.host import process, tempfiles

if TYPE_CHECKING:
    from shim.engine.options import Checkpointing
    from shim.runtime.reaper import Exit, ForegroundReaper, Reaper

    Spawner = Reaper | ForegroundReaper

DEFAULT_BINARY: Final = "runc"
DEFAULT_ROOT: Final = "/run/containerd/runc"

_FINISHED: Final = ("os: process already finished", "container not running", "no such process")
# Beside the fields `open_tcp` to `file_locks` of the options.
_CHECKPOINT_FLAGS: Final = ("--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks")
_GONE: Final = ("does not exist", "no such file or directory")


class ChildFds(NamedTuple):
    """The descriptors that a container's process gets as 0 to 2; None is /dev/null."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None


class _Ended(NamedTuple):
    status: int
    output: str


def global_arguments(binary: str, root: str, namespace: str, log: str, *, systemd_cgroup: bool = False) -> list[str]:
    """Return the words that every call begins with; the runtime's state of a namespace is a folder below `root`."""
    words = [binary or DEFAULT_BINARY, "--root", os.path.join(root or DEFAULT_ROOT, namespace)]
    words += ["--log", log, "--log-format", "json"]
    return [*words, "--systemd-cgroup"] if systemd_cgroup else words


def has_state(root: str, namespace: str, container_id: str) -> bool:
    """Say whether a runtime still knows the container, without running it: its state is a folder of that name."""
    return os.path.isdir(os.path.join(root, namespace, container_id))


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
        path = tempfiles.write_file(tempfiles.runtime_folder(), "runc-process", spec)
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

    def kill(self, signum: int, *, is_all: bool = False) -> None:
        """Send a signal to init, or to every process of the container.

        Raises:
            NotFoundError: The process or the container is gone.
            EngineError: Anything else.
        """
        words = ["kill", "--all"] if is_all else ["kill"]
        ended = self._run([*words, self.container_id, str(signum)])
        if ended.status != 0:
            raise kill_error(self._describe(ended))

    def delete(self, *, is_forced: bool = False) -> None:
        """Remove the container's state; one that is gone already is fine.

        Raises:
            EngineError: `failed to delete task: …`.
        """
        words = ["delete", "--force"] if is_forced else ["delete"]
        self._checked("failed to delete task", words, accepts=_GONE)

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

    def _run(self, words: Sequence[str], *, data: bytes | None = None) -> _Ended:
        """Run a call whose failure is told by its output.  Raises EngineError if it cannot even be started."""
        try:
            return self._call(words, data=data)
        except OSError as error:
            raise EngineError(exec_failure(self.binary, error)) from None

    def _checked(
        self, prefix: str, words: Sequence[str], fds: ChildFds | None = None, *, accepts: Sequence[str] = ()
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
            ended = self._call([*words, self.container_id], fds=fds)
            failure, output = self._describe(ended) if ended.status else "", ended.output
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

    def _describe(self, ended: _Ended) -> str:
        text = f"{self.binary} did not terminate successfully: exit status {ended.status}"
        return f"{text}: {ended.output.strip()}" if ended.output.strip() else text

    def _call(self, words: Sequence[str], *, fds: ChildFds | None = None, data: bytes | None = None) -> _Ended:
        argv = global_arguments(self.binary, self.root, self.namespace, self.log, systemd_cgroup=self.systemd_cgroup)
        argv += words
        if fds is not None:
            child = self.reaper.spawn(argv, stdin=fds.stdin, stdout=fds.stdout, stderr=fds.stderr)
            return _Ended(_status(child.wait()), "")
        return run_captured(self.reaper, argv, data)


def _status(exit_: Exit | None) -> int:
    return exit_.status if exit_ is not None else -1


def run_captured(
    reaper: Spawner, argv: list[str], data: bytes | None = None, *, limit_s: float | None = None
) -> _Ended:
    """Run a program, feed it `data`, and return its status and what it wrote on both outputs.

    With `limit_s` it is killed after so many seconds.

    Raises:
        OSError: It cannot be started.
    """
    read_end, write_end = os.pipe()
    stdin = None
    try:
        if data is not None:
            stdin = _memory_file(data)
        try:
            child = reaper.spawn(argv, stdin=stdin, stdout=write_end, stderr=write_end)
        finally:
            os.close(write_end)
            if stdin is not None:
                os.close(stdin)
        output = _read_output(read_end, limit_s)
    finally:
        os.close(read_end)
    return _Ended(_status(child.wait(None if limit_s is None else 0.1)), output)


def _read_output(fd: int, limit_s: float | None) -> str:
    """Read to the end of the output, or for `limit_s` seconds."""
    deadline = None if limit_s is None else time.monotonic() + limit_s
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    chunks = []
    while deadline is None or poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
        chunk = os.read(fd, 64 << 10)
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks).decode("utf-8", "replace")


def _memory_file(data: bytes) -> int:
    """Return a descriptor to read `data` from; a pipe would need somebody to fill it."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def exec_failure(binary: str, error: OSError) -> str:
    """Return why a program could not be started, in Go's words, which clients match on."""
    if process.find_executable(binary) is None and "/" not in binary:
        return f'exec: "{binary}": executable file not found in $PATH'
    return f"fork/exec {binary}: {(error.strerror or str(error)).lower()}"


def kill_error(text: str) -> EngineError | NotFoundError:
    """Return the error that a failed kill means, by what the runtime said."""
    lowered = text.lower()
    if any(word in lowered for word in _FINISHED):
        return NotFoundError("process already finished: not found")
    if any(word in lowered for word in _GONE):
        return NotFoundError("no such container: not found")
    return EngineError(f"unknown error after kill: {text}")
