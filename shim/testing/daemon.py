"""The containerd process of a private containerd: its folder, configuration, environment, log, start and end.

`containerd.Containerd` adds the client's side; use that one.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from shim.testing import configuration
from shim.testing.releases import Release

_TAIL_LINES: Final = 40


class CommandError(Exception):
    """A command failed; carries the command, its exit code, its output and the end of containerd's log."""

    def __init__(self, command: Sequence[str], returncode: int | None, stdout: str, stderr: str, log: str) -> None:
        ending = "took too long" if returncode is None else f"ended with {returncode}"
        super().__init__(
            f"{shlex.join(command)}: {ending}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n--- containerd's log\n{log}"
        )
        self.command: list[str] = list(command)
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr
        self.log = log


class Daemon:
    """One containerd in a folder of its own; `start` it, and `stop` or `kill` it."""

    def __init__(
        self, release: Release, path: Sequence[Path], *, debug: bool, environment: Mapping[str, str | None]
    ) -> None:
        self.release = release
        self.path: list[Path] = [Path(folder).absolute() for folder in path]
        self.debug = debug
        self.environment: dict[str, str | None] = dict(environment)
        self.folder: Path = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def make_folder(self) -> None:
        """Make the temporary folder for everything of this containerd."""
        # A socket path has at most 107 bytes, so a long TMPDIR is of no use.
        parent = tempfile.gettempdir()
        self.folder = Path(tempfile.mkdtemp(prefix="ctrd-", dir=parent if len(parent) < 50 else "/tmp"))  # noqa: S108
        for name in ("root", "state", "tmp", "fifo", "bin"):
            (self.folder / name).mkdir()

    @property
    def address(self) -> str:
        """Path of the grpc socket, containerd's `--address`."""
        return str(self.folder / "c.sock")

    @property
    def log_path(self) -> Path:
        """The file that holds containerd's stderr, into which shims' logs are copied as well."""
        return self.folder / "log"

    @property
    def log(self) -> str:
        """Everything that containerd and the shims have logged so far."""
        with contextlib.suppress(OSError):
            return self.log_path.read_text(errors="replace")
        return ""

    @property
    def tmp(self) -> Path:
        """The TMPDIR of containerd and its shims."""
        return self.folder / "tmp"

    @property
    def bin(self) -> Path:
        """A folder that comes first on containerd's PATH, empty at first: for a fake runc, a logger, a shim."""
        return self.folder / "bin"

    @property
    def pid(self) -> int:
        """Process id of the running containerd."""
        if self._process is None:
            raise RuntimeError("containerd is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Say whether containerd is up, as far as its process goes."""
        return self._process is not None and self._process.poll() is None

    def settings(self) -> str:
        """Return TOML to lay over the configuration, for a test that needs another than `configuration` writes."""
        return ""

    def own_environment(self) -> dict[str, str]:
        """Return the environment that containerd is started in."""
        path = [self.bin, *self.path, self.release.folder, os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]
        environment: dict[str, str | None] = {
            **os.environ,
            "PATH": os.pathsep.join(map(str, path)),
            "TMPDIR": str(self.tmp),
            "NOTIFY_SOCKET": None,
            "XDG_RUNTIME_DIR": None,
            **self.environment,
        }
        return {name: value for name, value in environment.items() if value is not None}

    def start(self, timeout_s: float = 30.0) -> None:
        """Start containerd and wait until it answers.

        Raises:
            CommandError: it ended, or did not answer in time.
        """
        config = self.folder / "config.toml"
        config.write_text(configuration.configure(self.release, self.folder, self.settings()))
        command = [str(self.release.containerd), "--config", str(config)]
        if self.debug:
            command += ["--log-level", "debug"]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.own_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline:
                raise CommandError(command, code, "", "containerd does not answer", self.tail())
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill containerd with SIGKILL; the shims live on."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop containerd in the orderly way; the shims live on."""
        self._end(signal.SIGTERM)

    def tail(self) -> str:
        """Return the last lines of the log, without the long list of plugins."""
        lines = [line for line in self.log.splitlines() if "loading plugin" not in line]
        return "\n".join(lines[-_TAIL_LINES:])

    def has_overlay(self) -> bool:
        """Say whether overlayfs works on the temporary folder's file system (not so inside most containers)."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            folders = [Path(name) / part for part in ("lower", "upper", "work", "merged")]
            for folder in folders:
                folder.mkdir()
            lower, upper, work, merged = folders
            options = f"lowerdir={lower},upperdir={upper},workdir={work}"
            command = ["mount", "-t", "overlay", "overlay", "-o", options, str(merged)]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                return False
            subprocess.run(["umount", str(merged)], check=True)
            return True

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self.address)
            except OSError:
                return False
        command = [str(self.release.ctr), "--address", self.address, "version"]
        try:
            return subprocess.run(command, capture_output=True, check=False, timeout=10).returncode == 0
        except subprocess.TimeoutExpired:
            return False
