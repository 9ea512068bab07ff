"""Loggers as shell scripts, and a reaper that has real children without reaping those of others."""

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from shim.runtime.reaper import Child, Exit, Reaper

READY: Final = "exec 5>&-"
CALL_READY: Final = "printf x >&5; exec 5>&-"
COPY: Final = 'cat <&3 >"$here/out" & cat <&4 >"$here/err" & wait; echo ended >"$here/end"'


class OwnReaper(Reaper):
    """Waits for each child by its pid, in a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.spawned: list[Child] = []

    def spawn(
        self,
        argv: list[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        pass_fds: Mapping[int, int] | None = None,
        new_session: bool = False,
        folder: str | None = None,
    ) -> Child:
        """Start a program."""
        child = super().spawn(
            argv, env=env, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=pass_fds, folder=folder
        )
        self.spawned.append(child)
        threading.Thread(target=self._wait, args=(child,)).start()
        return child

    def _wait(self, child: Child) -> None:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            _, status = os.waitpid(child.pid, 0)
            del self._children[child.pid]
        code = os.waitstatus_to_exitcode(status)
        exit_ = Exit(child.pid, 128 - code if code < 0 else code, time.time())
        for callback in child.finish(exit_):
            self.tell(callback, exit_)


def write_logger(folder: Path, *lines: str) -> str:
    """Write a logger whose `$here` is the folder, and return its path."""
    path = folder / "logger"
    path.write_text("\n".join(["#!/bin/sh", f"here={folder}", *lines, ""]))
    path.chmod(0o755)
    return str(path)
