"""The processes of the contenders: started, told what to do, their CPU time and memory read, ended.

Rule: each ends with its stdin, so none is left behind whatever happens here; each answer is awaited for a limited time.
"""

from __future__ import annotations

import json
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from tests.bench_ttrpc.loads import Command, Figures

_PROJECT: Final = Path(__file__).resolve().parents[2]
_START_S: Final = 20.0
_END_S: Final = 5.0


class PeerError(Exception):
    """A contender's process did not do what it was told."""


class Peer:
    """A server or a client process."""

    def __init__(self, command: Sequence[str], address: Path, errors: IO[bytes]) -> None:
        filled = [part.replace("{}", str(address)) for part in command]
        self._name = " ".join(filled[1:])
        self._errors = errors
        self._process = subprocess.Popen(
            filled, cwd=_PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0
        )
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def cpu_s(self) -> float:
        """CPU time of all its threads so far, to the microsecond (/proc counts in hundredths of seconds)."""
        return time.clock_gettime(~self.pid << 3 | 2)  # what clock_getcpuclockid(3) returns

    @property
    def pss_kb(self) -> int:
        """Its memory, shared pages by its part of them."""
        rollup = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))

    def wait_ready(self) -> None:
        """Wait until it serves, or has connected."""
        self._line(_START_S)

    def load(self, command: Command) -> Figures:
        """Make a client work and return its figures."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(json.dumps(command._asdict()).encode() + b"\n")
        return Figures(**json.loads(self._line(command.seconds + _START_S)))

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _line(self, timeout_s: float) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        until = time.monotonic() + timeout_s
        while b"\n" not in self._received:
            readable, _, _ = select.select([stdout], [], [], max(0.0, until - time.monotonic()))
            received = stdout.read(65536) if readable else b""
            if not received:
                raise PeerError(f"{self._name}: {'ended' if readable else 'no answer in time'}{self._last_error()}")
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _last_error(self) -> str:
        lines = Path(self._errors.name).read_text(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""
