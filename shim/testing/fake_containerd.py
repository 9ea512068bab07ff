"""A containerd for tests of shims: runs a shim's binary as containerd does, judges it, and takes its events.

Rule: what the shim sees (arguments, environment, stdin, descriptors, files, sockets) is what the version in question
shows it; what it answers is taken as that version takes it, see `versions`.  No container is run by anything here.
The answers to Linux alone are tested: a shim for another system has to be tried there.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message

from shim.api.task_v2_pb2 import DeleteResponse
from shim.api.types_pb2 import RuntimeInfo
from shim.testing.bundle import Bundle
from shim.testing.conditions import PATIENCE_S, wait_until
from shim.testing.configuration import with_opt
from shim.testing.event_service import EventService
from shim.testing.leftovers import Process, Scope, processes, processes_of
from shim.testing.running_shim import RunningShim, dial
from shim.testing.versions import (
    VERSIONS,
    Call,
    DeleteError,
    Endpoint,
    ReconnectError,
    StartError,
    VerdictError,
    Version,
    go_status,
)

_START_LIMIT_S: Final = 60.0
_END_LIMIT_S: Final = 5.0
_PATH_ROOM: Final = 30


class FakeContainerd:
    """Everything of containerd that a shim meets, in a temporary folder; a context manager that leaves nothing.

    `shim` is the command of the shim: the path of a frozen file, or words such as `[sys.executable, "shim.py"]`.
    `style` is the version to behave like: a key of `VERSIONS`, "1.6" to "2.4".  The styles before 2.3 name no folder
    for sockets, so that a shim binds in /run/containerd/s, for which it has to be root.
    `environment` is added to this process's, as containerd's own environment, which it changes as its plugin `opt` does
    in a default configuration: PATH and LD_LIBRARY_PATH begin with a folder of /opt/containerd.  `start_limit_s` is the
    patience of containerd's client, `end_limit_s` the time that shims have after SIGTERM when everything ends.
    """

    def __init__(
        self,
        shim: str | os.PathLike[str] | Sequence[str],
        *,
        style: str = "2.3",
        namespace: str = "",
        debug: bool = False,
        environment: Mapping[str, str] | None = None,
        start_limit_s: float = _START_LIMIT_S,
        end_limit_s: float = _END_LIMIT_S,
    ) -> None:
        self.command: list[str] = [os.fspath(shim)] if isinstance(shim, str | os.PathLike) else list(shim)
        self.version: Version = VERSIONS[style]
        self.debug = debug
        self.start_limit_s = start_limit_s
        self.end_limit_s = end_limit_s
        self.namespace: str = namespace or f"test-{secrets.token_hex(4)}"
        parent = tempfile.gettempdir()
        # A socket path has at most 107 bytes, so a long TMPDIR is of no use.
        self.folder: Path = Path(tempfile.mkdtemp(prefix="fake-", dir=parent if len(parent) < _PATH_ROOM else "/tmp"))  # noqa: S108
        self.grpc_address: str = str(self.folder / "c.sock")
        self.ttrpc_address: str = f"{self.grpc_address}.ttrpc"
        self.socket_dir: str = str(self.folder / "s")
        self.environment: dict[str, str] = with_opt({**os.environ, **(environment or {})})
        self.events: EventService = EventService(self.ttrpc_address)
        self.bundles: dict[str, Bundle] = {}
        self.warnings: list[str] = []
        self._shims: list[RunningShim] = []

    def __enter__(self) -> Self:
        self.events.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything that was started here, by force where it has to be, and remove the folder; once is enough."""
        if not self.folder.exists():
            return
        self._hang_up()
        for signum in (signal.SIGTERM, signal.SIGKILL):
            left = self.processes()
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signum)
            if not left or wait_until(lambda: not self.processes(), self.end_limit_s):
                break
        for shim in self._shims:
            shim.remove_socket()
        self.events.stop()
        for bundle in self.bundles.values():
            bundle.close_log()
            bundle.remove()
        shutil.rmtree(self.folder)

    def processes(self) -> list[Process]:
        """Return every live process that was started here: shims, daemons, and what those started."""
        named = processes_of(Scope(folders=(self.folder,), addresses=(self.grpc_address,)))
        known = {process.pid for process in named} | {os.getpid()}
        return named + [process for process in processes() if process.pid not in known and self._started(process.pid)]

    # What containerd does.

    def bundle(self, container: str, spec: Mapping[str, object] | None = None) -> Bundle:
        """Return a container's bundle, made with `spec` as its config.json the first time."""
        if container not in self.bundles:
            self.bundles[container] = Bundle(self.folder, self.namespace, container, {} if spec is None else spec)
        return self.bundles[container]

    def start(
        self, container: str, *, spec: Mapping[str, object] | None = None, options: Message | None = None
    ) -> RunningShim:
        """Run `start` for a container, understand its answer and connect, as containerd does before Create.

        `options` are the runtime's: an Any, or a message to put into one with a bare type URL.

        Raises:
            StartError: containerd would give up, with this text.
            UnspokenError: It would go on over grpc, or dial what is no unix socket.
        """
        bundle = self.bundle(container, spec)
        bundle.open_log()
        output = self.run_start(container, options=options)
        (bundle.path / "shim-binary-path").write_text(self.command[0])
        (bundle.path / "shim-binary-path").chmod(0o600)
        endpoint = self.version.read_answer(output)
        shim = self._connect(bundle, endpoint, StartError)
        if self.version.keeps_bootstrap:
            self._write_bootstrap(bundle, endpoint)
        self.version.judge_version(endpoint)
        return shim

    def run_start(self, container: str, *, options: Message | None = None) -> bytes:
        """Run `start` alone and return what it wrote, stdout and stderr in one.

        Raises:
            StartError: It failed, or held its output open for longer than `start_limit_s`.
        """
        call = self.call(container, options)
        stdin = self.version.start_stdin(call, self.command[0])
        process = self._spawn(self.version.start_arguments(call), call, stdin is not None, merged=True)
        try:
            output, _ = process.communicate(stdin, self.start_limit_s)
        except subprocess.TimeoutExpired as error:  # it hangs, or what it started holds its output open
            is_held = process.poll() is not None
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
            if is_held:
                raise StartError("context deadline exceeded: start ended, but what it left holds its output") from None
            raise StartError(self.version.failure(error.output or b"", process.returncode)) from None
        if process.returncode:
            raise StartError(self.version.failure(output, process.returncode))
        return bytes(output)

    def delete(self, container: str, *, removes_bundle: bool = True) -> DeleteResponse:
        """Run `delete` for a container, as containerd does when its shim has gone; then its bundle goes.

        Raises:
            DeleteError: It failed, or its answer is none; the bundle stays.
        """
        call = self.call(container)
        process = self._spawn(self.version.delete_arguments(call), call, has_stdin=False, merged=False)
        output, errors = _finish(process, None)
        text = errors.decode("utf-8", "surrogateescape")
        if process.returncode:
            raise DeleteError(f"{text}: {go_status(process.returncode)}")
        if text:
            self.warnings.append(text)
        try:
            response = DeleteResponse.FromString(output)
        except DecodeError as error:
            raise DeleteError(f"no DeleteResponse: {output!r}") from error
        if removes_bundle:
            bundle = self.bundles.pop(container)
            bundle.close_log()
            bundle.remove()
        return response

    def info(self, options: Message | None = None) -> RuntimeInfo:
        """Run `-info`, as containerd 2.x does.

        Raises:
            VerdictError: It failed, or its answer is no RuntimeInfo.
        """
        stdin = b"" if options is None else _any(options).SerializeToString()
        process = subprocess.Popen(
            [*self.command, "-info"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, errors = _finish(process, stdin)
        if process.returncode:
            ended, text = go_status(process.returncode), errors.decode("utf-8", "surrogateescape")
            raise VerdictError(f"failed to run [{' '.join(self.command)} -info]: {ended} (stderr: {json.dumps(text)})")
        try:
            return RuntimeInfo.FromString(output)
        except DecodeError as error:
            raise VerdictError(f"no RuntimeInfo: {output!r}") from error

    def version_text(self) -> str:
        """Run `-v` and return what it printed.

        Raises:
            VerdictError: It failed.
        """
        process = self._popen([*self.command, "-v"], self.folder, self.environment, has_stdin=False, merged=True)
        output, _ = _finish(process, None)
        if process.returncode:
            raise VerdictError(self.version.failure(output, process.returncode))
        return output.decode()

    # Ends and beginnings of containerd.

    def stop(self) -> None:
        """End, as far as shims can tell: connections, the event service and the readers of logs go."""
        self._hang_up()
        self.events.stop()
        for bundle in self.bundles.values():
            bundle.close_log()

    def restart(self, *, style: str = "") -> None:
        """Stop (if not done) and start again at the same addresses, perhaps as another version; see `reconnect`."""
        self.stop()
        if style:
            self.version = VERSIONS[style]
        self.events.start()

    def reconnect(self, container: str) -> RunningShim:
        """Find a container's shim again, as a containerd that has been restarted does.

        Raises:
            ReconnectError: containerd would take the container for dead, with this text.
        """
        bundle = self.bundle(container)
        bundle.open_log()
        shim = self._connect(bundle, self._remembered(bundle), ReconnectError)
        shim.probe()
        return shim

    # The parts.

    def call(self, container: str, options: Message | None = None) -> Call:
        """Return what a call of the binary says."""
        return Call(
            namespace=self.namespace,
            id=container,
            bundle=str(self.bundle(container).path),
            grpc_address=self.grpc_address,
            ttrpc_address=self.ttrpc_address,
            debug=self.debug,
            options=None if options is None else _any(options),
            socket_dir=self.socket_dir,
        )

    def _spawn(self, arguments: list[str], call: Call, has_stdin: bool, *, merged: bool) -> subprocess.Popen[bytes]:
        environment = {**self.environment, **self.version.environment(call)}
        return self._popen([*self.command, *arguments], Path(call.bundle), environment, has_stdin, merged=merged)

    def _popen(
        self, words: list[str], cwd: Path, environment: Mapping[str, str], has_stdin: bool, *, merged: bool
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            words,
            cwd=cwd,
            env=environment,
            stdin=subprocess.PIPE if has_stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            process_group=0,
        )

    def _connect(self, bundle: Bundle, endpoint: Endpoint, error: type[VerdictError]) -> RunningShim:
        self.version.judge_protocol(endpoint)
        if endpoint.protocol.lower() == "grpc":
            self.version.judge_version(endpoint)
        shim = RunningShim(dial(endpoint, self.version, error), self.version, endpoint, bundle)
        self._shims.append(shim)
        return shim

    def _remembered(self, bundle: Bundle) -> Endpoint:
        """Read what the version in question remembers a shim by."""
        kept, address = bundle.path / "bootstrap.json", bundle.path / "address"
        if self.version.keeps_bootstrap and kept.exists():
            return self.version.read_answer(kept.read_bytes())
        try:
            text = address.read_bytes()
        except FileNotFoundError:
            raise ReconnectError(f"open {address}: no such file or directory") from None
        if not self.version.keeps_bootstrap:
            return self.version.read_answer(text)
        endpoint = Endpoint(2, text.decode("utf-8", "surrogateescape"))
        self._write_bootstrap(bundle, endpoint)  # so does 2.x for the shims of 1.x
        return endpoint

    def _write_bootstrap(self, bundle: Bundle, endpoint: Endpoint) -> None:
        path = bundle.path / "bootstrap.json"
        text = {"version": endpoint.version, "address": endpoint.address, "protocol": endpoint.protocol}
        path.write_text(json.dumps(text, separators=(",", ":")))
        path.chmod(0o644)

    def _hang_up(self) -> None:
        for shim in self._shims:
            shim.client.close()

    def _started(self, pid: int) -> bool:
        """Say whether a process has our address in its environment, which a shim's daemon inherits."""
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return f"TTRPC_ADDRESS={self.ttrpc_address}".encode() in environment.split(b"\0")


def _any(options: Message) -> AnyMessage:
    """Put runtime options into an Any, with the bare type URL that containerd uses."""
    if isinstance(options, AnyMessage):
        return options
    return AnyMessage(type_url=options.DESCRIPTOR.full_name, value=options.SerializeToString())


def _finish(process: subprocess.Popen[bytes], stdin: bytes | None) -> tuple[bytes, Any]:
    """Give a process its input and return both outputs, once they have ended."""
    with process:
        try:
            return process.communicate(stdin, PATIENCE_S)
        except BaseException:
            process.kill()
            raise
