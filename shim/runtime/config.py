"""What a shim's author may switch off or change about the runtime around the shim; `run` takes it.

Rule: choices of the program, made in code.  What an operator chooses comes by flags, options and files.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shim.errors import InvalidArgumentError

LOG_LEVELS: Final = ("debug", "info", "warning", "error")


class Config(NamedTuple):
    """Switches of `run`, named as the Rust crate's.

    `default_log_level` is `debug`, `info`, `warning` or `error`; `-debug` on the command line means `debug` whatever
    it says.  `no_setup_logger` leaves Python's `logging` as it is.  `no_reaper` leaves SIGCHLD to the author: nothing
    is waited for, and no exit is told to the monitor.  `no_sub_reaper` lets orphans of the containers go to the
    system's init; where the system has no subreapers that is so anyway.
    """

    no_setup_logger: bool = False
    default_log_level: str = "info"
    no_reaper: bool = False
    no_sub_reaper: bool = False

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            InvalidArgumentError: A value is none of those that there are.
        """
        if self.default_log_level not in LOG_LEVELS:
            known = ", ".join(LOG_LEVELS)
            raise InvalidArgumentError(f"default_log_level must be one of {known}, is {self.default_log_level!r}")
