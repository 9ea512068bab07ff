"""What the tests of libc share: both makings of its calls, and a spawn that ends in what the child has written."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

from shim.host import libc_ctypes
from tests import libc_builtin
from tests.fakes import ROOT

ENVIRONMENT: Final = (f"PATH={os.defpath}",)


class Calls(NamedTuple):
    """One making of the calls: the module, and the words by which another process gets it as `calls`."""

    module: ModuleType
    prelude: str

    @property
    def is_builtin(self) -> bool:
        """Say whether it is the one of frozen shims."""
        return self.module.__name__ == "_shim_libc"

    def spawn(
        self,
        argv: Sequence[str],
        *,
        file: str = "",
        env: Sequence[str] = ENVIRONMENT,
        fds: Sequence[tuple[int, int]] = (),
        folder: str | None = None,
        blocked: int = 0,
        new_group: bool = False,
        new_session: bool = False,
        told: bytearray | None = None,
    ) -> tuple[int, int]:
        """Spawn, with /dev/null for descriptors that are not given."""
        placed = {0: -1, 1: -1, 2: -1, **dict(fds)}
        pid, pidfd = self.module.spawn(
            file or argv[0],
            argv,
            env,
            fds=list(placed.items()),
            folder=folder,
            blocked=blocked,
            new_group=new_group,
            new_session=new_session,
            told=bytearray(4) if told is None else told,
        )
        return int(pid), int(pidfd)

    def run(self, program: str, *arguments: str) -> str:
        """Run a program that has them as `calls`, in a process of its own: what it sets does not stick to the tests."""
        command = [sys.executable, "-c", f"import os, sys; {self.prelude}\n{program}", *arguments]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout.strip()

    def output(self, argv: Sequence[str], *, fds: Sequence[tuple[int, int]] = (), **rest: object) -> str:
        """Return what a child writes until its end, which has to be status 0."""
        read_end, write_end = os.pipe()
        try:
            pid, pidfd = self.spawn(argv, fds=((1, write_end), *fds), **rest)  # type: ignore[arg-type]
        finally:
            os.close(write_end)
        with open(read_end, errors="surrogateescape") as file:
            text = file.read()
        os.close(pidfd)

        assert (pid, 0) == os.waitpid(pid, 0)
        return text


def calls_of(name: str, builtin: Path) -> Calls:
    """Return the calls by name; `builtin` is where the module of frozen shims has been compiled to."""
    if name == "builtin":
        words = f"from pathlib import Path; from tests.libc_builtin import load; calls = load(Path({str(builtin)!r}))"
        return Calls(libc_builtin.load(builtin), words)
    return Calls(libc_ctypes, "from shim.host import libc_ctypes as calls")
