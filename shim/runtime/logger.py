"""The shim's log: lines into the fifo `log` of the bundle, which containerd copies to its own log.

Rule: never blocks and never fails.  A full pipe drops the line; no reader (containerd restarts) is no error.
Format: logrus text, as Go's shim writes it, so that people's greps keep working.
"""

from __future__ import annotations

import os
import time
from typing import Final

from shim.runtime import tracing
from shim.runtime.config import LOG_LEVELS as LEVELS

_PLAIN: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._/@^+")
_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def format_value(value: object) -> str:
    """Return a value as logrus writes it: bare if it holds only plain characters, else quoted."""
    text = str(value)
    if text and _PLAIN.issuperset(text):
        return text
    out = [char if char.isprintable() and char not in '"\\' else _escape(char) for char in text]
    return '"' + "".join(out) + '"'


def _escape(char: str) -> str:
    code = ord(char)
    wide = f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return _ESCAPES.get(char) or (f"\\x{code:02x}" if code < 0x80 else wide)


def format_time(when_ns: int) -> str:
    """Return nanoseconds since the epoch as RFC 3339 in UTC with nine digits of fraction."""
    seconds, fraction = divmod(when_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:09d}Z"


def fault_fields(error: BaseException) -> dict[str, object]:
    """Return what a record has of an exception: its text, and the places it came through."""
    trace = []
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        trace.append(f"{os.path.basename(code.co_filename)}:{step.tb_lineno} {code.co_name}")
        step = step.tb_next
    return {"error": f"{type(error).__name__}: {error}", "trace": " > ".join(trace)}


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return -1


class Logger:
    """Writes records to a descriptor; `fd` below 0 drops them all.

    `level` is the least of `LEVELS` that is written; `is_debug` means all of them.  `fields` stand in every record.
    Every method is safe from any thread, and none of them blocks.
    """

    def __init__(self, fd: int = -1, *, is_debug: bool = False, level: str = "info", **fields: object) -> None:
        self.fd = fd
        self._least = 0 if is_debug else LEVELS.index(level)
        self._fields = "".join(f" {name}={format_value(value)}" for name, value in fields.items())

    @classmethod
    def open(cls, path: str, *, is_debug: bool, level: str = "info", **fields: object) -> Logger:
        """Log to a fifo or file; one that cannot be opened drops all records.

        A fifo is opened for reading too: so the open never waits, and what is written while containerd restarts is
        kept.
        """
        return cls(_open(path), is_debug=is_debug, level=level, **fields)

    def move(self, path: str) -> bool:
        """Log to another fifo or file, by the same descriptor; False if it cannot be opened, and all stays as it is."""
        fd = _open(path)
        if fd < 0:
            return False
        if self.fd < 0:
            self.fd = fd
        else:
            os.dup2(fd, self.fd, inheritable=False)
            os.close(fd)
        return True

    @property
    def level(self) -> str:
        """The least level that is written."""
        return LEVELS[self._least]

    @property
    def is_debug(self) -> bool:
        """True when debug records are written."""
        return not self._least

    def debug(self, message: str, /, **fields: object) -> None:
        """Write a record that only `-debug` shows."""
        self._write(0, message, fields)

    def info(self, message: str, /, **fields: object) -> None:
        """Write a record."""
        self._write(1, message, fields)

    def warning(self, message: str, /, **fields: object) -> None:
        """Write a record about something that went on regardless."""
        self._write(2, message, fields)

    def error(self, message: str, /, **fields: object) -> None:
        """Write a record about something that failed."""
        self._write(3, message, fields)

    def fault(self, message: str, error: BaseException) -> None:
        """Write a record about an exception that nobody expected, with the places it came through."""
        self._write(3, message, fault_fields(error))

    def raw(self, text: str) -> None:
        """Write text as it is."""
        if self.fd >= 0:
            try:
                os.write(self.fd, text.encode("utf-8", "backslashreplace"))
            except OSError:
                return  # full, or nobody reads

    def _write(self, level: int, message: str, fields: dict[str, object]) -> None:
        if level < self._least:
            return
        extra = "".join(f" {name}={format_value(value)}" for name, value in fields.items() if value is not None)
        trace = tracing.current_trace()
        if trace is not None:
            extra += f" traceid={trace.trace_id} spanid={trace.span_id}"
        when = format_time(time.time_ns())
        self.raw(f'time="{when}" level={LEVELS[level]} msg={format_value(message)}{extra}{self._fields}\n')
