"""Python's `logging` into the shim's log, for shims that use it.

Rule: loaded only when the author's modules have loaded `logging`, which costs each daemon time and memory.
"""

from __future__ import annotations

import logging
from typing import Final

from shim.runtime.logger import Logger, fault_fields

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
# What a record has of itself; the rest came by `extra=` and stands in the line as fields.
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class ShimHandler(logging.Handler):
    """Writes records as containerd's log has them: level, text, the fields of `extra=`, a traceback's places."""

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; never blocks."""
        try:
            fields = {name: value for name, value in vars(record).items() if name not in _OWN}
            if record.name != "root":
                fields["logger"] = record.name
            error = record.exc_info[1] if record.exc_info else None
            if error is not None:
                fields |= fault_fields(error)
            write = {
                logging.DEBUG: self._logger.debug,
                logging.INFO: self._logger.info,
                logging.WARNING: self._logger.warning,
            }.get(max(logging.DEBUG, record.levelno // 10 * 10), self._logger.error)
            write(record.getMessage(), **fields)
        except Exception:  # a record that cannot be formatted is its author's fault, and ends nothing
            self.handleError(record)


def set_up_logging(logger: Logger) -> None:
    """Let the root logger write to the shim's log, from its level on, and nowhere else."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(ShimHandler(logger))
    root.setLevel(_LEVELS[logger.level])
