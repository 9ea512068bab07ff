"""A runc that kills a victim at an exact moment, and a logger to be killed: both are programs beside containerd.

The wrapper runs the real runc.  What the file `plan` in its folder says ("create before shim") happens once: at that
call, before or after the real one, the victim gets SIGKILL; then the plan is gone.
"""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Final, NamedTuple

STEPS: Final = ("create", "start", "exec", "delete")
MOMENTS: Final = ("before", "after")
VICTIMS: Final = ("shim", "runc", "logger", "containerd")

_WRAPPER: Final = """#!/bin/sh
# tests/faults/runtime.py: {real} with an accident.
plan={folder}/plan
step=
for word; do
    case $word in
        create | start | exec | delete | kill | state | ps | pause | resume | update) step=$word && break ;;
    esac
done
strike() {{
    [ -e "$plan" ] || return 0
    read -r when moment victim <"$plan"
    [ "$when" = "$step" ] && [ "$moment" = "$1" ] || return 0
    mv "$plan" {folder}/done
    case $victim in
        shim) kill -9 "$PPID" ;;
        runc) kill -9 $$ ;;
        *) kill -9 "$(cat {folder}/"$victim".pid)" ;;
    esac
}}
strike before
{real} "$@"
status=$?
strike after
exit $status
"""

# containerd's protocol of loggers: output on 3 and 4, ready when 5 is closed.
_LOGGER: Final = """#!/bin/sh
echo $$ >{folder}/logger.pid
exec 5>&-
cat <&3 >/dev/null &
cat <&4 >/dev/null
wait
"""


class Accident(NamedTuple):
    """Who is killed at which call of the runtime, before it begins or after its end."""

    step: str
    moment: str
    victim: str

    def __str__(self) -> str:
        return f"{self.step}-{self.moment}-{self.victim}"


ACCIDENTS: Final = tuple(Accident(step, moment, victim) for step in STEPS for moment in MOMENTS for victim in VICTIMS)


class Scene:
    """The folder of the two programs and of the plan."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logger = folder / "logger"
        real = shutil.which("runc", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
        if real is None:
            raise FileNotFoundError(2, "install the Debian package runc", "runc")
        quoted = shlex.quote(str(folder))
        self._write(folder / "runc", _WRAPPER.format(real=shlex.quote(real), folder=quoted))
        self._write(self.logger, _LOGGER.format(folder=quoted))

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def plan(self, accident: Accident, containerd: int) -> None:
        """Have an accident happen."""
        (self.folder / "containerd.pid").write_text(str(containerd))
        (self.folder / "done").unlink(missing_ok=True)
        (self.folder / "logger.pid").unlink(missing_ok=True)
        (self.folder / "plan").write_text(" ".join(accident) + "\n")

    def has_happened(self) -> bool:
        """Say whether the accident has happened; one that has not is called off."""
        (self.folder / "plan").unlink(missing_ok=True)
        return (self.folder / "done").exists()
