"""A runc for tests: a program on PATH, or by `binary_name`, that does what the test has planned.

Rule: the program is another process, so plans, calls and gates are files in the fake's folder; without a plan it does
what runc does, in runc's words, with processes of the host for containers: nothing is isolated or mounted.
`runc_program` is what runs, quickly started by `python -I -S -E`.
"""

from __future__ import annotations

import contextlib
import itertools
import marshal
import os
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import shim
from shim.testing.conditions import PATIENCE_S, wait_until
from shim.testing.runc_state import is_alive

Moment = Literal["at first", "before the pid file", "after the pid file", "before the answer"]
"""A point in a call: before anything, around the pid file (`create`, `exec`, `restore`), when all is done."""

_STUB: Final = """\
#!{python} -ISE
import sys
sys.path.append({root!r})
from shim.testing.runc_commands import main
main({here!r})
"""
# The kernel reads no more of a script's first line; longer interpreters need a shell in between.
_LONGEST_LINE: Final = 250
_SHELL_STUB: Final = """\
#!/bin/sh
exec {python} -ISE {program} "$@"
"""


@dataclass(frozen=True, slots=True)
class RuncCall:
    """One call of the fake, as it saw itself at its beginning; `cwd` is '' where that folder is gone."""

    arguments: list[str]
    environment: dict[str, str]
    descriptors: dict[int, str]
    cwd: str
    pid: int


class RuncGate:
    """Calls of the fake that hang until they are released."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def pids(self) -> list[int]:
        """The processes that have come here."""
        found = self._path.parent.glob(f"{self._path.name}.*")
        return [int(path.suffix[1:]) for path in found if path.suffix[1:].isdigit()]

    def wait_reached(self, count: int = 1, timeout_s: float = PATIENCE_S) -> list[int]:
        """Return the processes that hang here, once there are so many.

        Raises:
            AssertionError: There are not.
        """
        if not wait_until(lambda: len(self.pids) >= count, timeout_s):
            raise AssertionError(f"{len(self.pids)} of {count} calls of runc have come")
        return self.pids

    def release(self) -> None:
        """Let them go on, and hold up nobody any more."""
        self._path.with_name(f"{self._path.name}.open").touch()


class FakeRunc:
    """The program in a folder of its own; a context manager that ends its containers.

    Of several plans for one command the oldest counts, until it is used up (`once`) or forgotten (`behave`).
    The command "any" stands for all.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str = "runc") -> None:
        self.folder: Path = Path(folder)
        self.path: str = str(self.folder / name)
        (self.folder / "plans").mkdir(parents=True, exist_ok=True)
        self._numbers = itertools.count(1)
        self._skipped = 0
        # Not a venv's: that of the venv looks for its packages.
        python = os.path.realpath(sys.executable)
        root = str(Path(shim.__file__).parent.parent)
        stub = _STUB.format(python=python, root=root, here=str(self.folder))
        if len(stub.partition("\n")[0]) > _LONGEST_LINE or " " in python:
            program = self.folder / f"{name}.py"
            program.write_text(stub)
            stub = _SHELL_STUB.format(python=shlex.quote(python), program=shlex.quote(str(program)))
        Path(self.path).write_text(stub)
        Path(self.path).chmod(0o755)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process of its containers that still lives."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def search_path(self) -> str:
        """Return a PATH that finds the program first."""
        return f"{self.folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"

    def processes(self) -> list[int]:
        """Return the pids of its containers' processes that live."""
        try:
            lines = (self.folder / "pids").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [int(line.split()[0]) for line in lines if is_alive(line)]

    # Plans.

    def fails(
        self,
        command: str,
        text: str = "it is planned so",
        *,
        status: int = 1,
        at: Moment = "at first",
        once: bool = False,
    ) -> None:
        """Have a command end with a text, on stderr and in the log, and a status."""
        self._plan(command, once, moment=at, text=text, status=status)

    def says(
        self,
        command: str,
        output: bytes = b"",
        *,
        errors: bytes = b"",
        log: bytes | None = None,
        status: int = 0,
        once: bool = False,
    ) -> None:
        """Have a command do nothing but write to stdout, stderr and (unless None) its log, and end with a status."""
        raw = [(1, output), (2, errors)]
        self._plan(command, once, moment="at first", output=b"", raw=raw, log=log, status=status)

    def hangs(
        self, command: str, *, at: Moment = "at first", text: str | None = None, status: int = 1, once: bool = False
    ) -> RuncGate:
        """Have a command hang until the gate that is returned is released, and then fail if there is a text."""
        gate = self.folder / f"gate-{next(self._numbers)}"
        failure = {} if text is None else {"text": text, "status": status}
        self._plan(command, once, moment=at, gate=str(gate), **failure)
        return RuncGate(gate)

    def dies(
        self, command: str, *, at: Moment = "before the answer", signum: int = signal.SIGKILL, once: bool = False
    ) -> None:
        """Have a command be killed by a signal, SIGKILL if not said otherwise."""
        self._plan(command, once, moment=at, signal=int(signum))

    def exits_early(self, command: str, status: int = 0, *, once: bool = False) -> None:
        """Have what a command starts be over before it answers.

        The process of `create`, `exec` and `restore` ends with `status` instead of running; `start` runs init, waits
        for its end, and answers then (the status is init's own).
        """
        self._plan(command, once, init_exits=status)

    def behave(self) -> None:
        """Forget all plans."""
        for path in (self.folder / "plans").iterdir():
            path.unlink(missing_ok=True)

    # Calls.

    def calls(self) -> list[RuncCall]:
        """Return every call so far, or since `forget`, in the order in which they began."""
        return self._all_calls()[self._skipped :]

    def words(self) -> list[list[str]]:
        """Return the arguments of `calls`."""
        return [call.arguments for call in self.calls()]

    def commands(self) -> list[str]:
        """Return the subcommands of `calls`."""
        return [_command(call.arguments) for call in self.calls()]

    def forget(self) -> None:
        """Forget the calls so far."""
        self._skipped = len(self._all_calls())

    def _all_calls(self) -> list[RuncCall]:
        try:
            data = (self.folder / "calls").read_bytes()
        except FileNotFoundError:
            return []
        found = []
        while data:
            size = int.from_bytes(data[:4], "big")
            found.append(RuncCall(*marshal.loads(data[4 : 4 + size])))  # noqa: S302  # our own program wrote it
            data = data[4 + size :]
        return found

    def _plan(self, command: str, once: bool, **plan: Any) -> None:
        name = f"{next(self._numbers):06}-{command}-{'once' if once else 'always'}"
        hidden = self.folder / f".{name}"
        hidden.write_bytes(marshal.dumps({key: value for key, value in plan.items() if value is not None}, 4))
        hidden.rename(self.folder / "plans" / name)


def _command(arguments: list[str]) -> str:
    from shim.testing.runc_program import Call

    return Call(arguments).command
