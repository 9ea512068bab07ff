"""A program whose exec takes as long as a test wants: the kernel waits for the end of a lease on its file.

Rule: no clock decides.  A test sees that the exec waits, and lets it go on.
"""

import fcntl
import os
import shutil
import signal
from pathlib import Path
from typing import Final


class SlowProgram:
    """`true`, by another path, until `let_go`."""

    def __init__(self, folder: Path) -> None:
        self.path: Final = folder / "slow"
        shutil.copy("/bin/true", self.path)
        self._fd = os.open(self.path, os.O_RDONLY)
        fcntl.fcntl(self._fd, fcntl.F_SETSIG, signal.SIGURG)  # which ends nothing, unlike SIGIO
        fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    def is_waiting(self) -> bool:
        """Say whether an exec waits at this moment."""
        return fcntl.fcntl(self._fd, fcntl.F_GETLEASE) != fcntl.F_WRLCK

    def let_go(self) -> None:
        """Let all go on that wait, and come later; twice is fine."""
        if self._fd >= 0:
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)  # no close would do: the child has it open too
            os.close(self._fd)
            self._fd = -1
