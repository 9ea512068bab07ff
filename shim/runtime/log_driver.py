"""Log drivers: the programs behind log URIs of the form `binary:///path/to/program?key=value`.

Rule: a program of its own that a shim starts for each container or exec; it loads nothing else of the shim's runtime.
A driver is ready when it writes a byte to descriptor 5 and closes it: `binary` takes either, `binary-v2` the byte.
Spec: containerd core/runtime/v2/logging; contract 8.6.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from io import FileIO
from typing import Final, NoReturn, Protocol

from shim.errors import InvalidArgumentError, ShimError

_STDOUT: Final = 3
_STDERR: Final = 4
_READY: Final = 5
_CHUNK: Final = 64 << 10


class Config:
    """What a shim tells a log driver: whose output it gets, and where that comes.

    `id` is the container's, or the exec's for the output of an exec; `stdout` and `stderr` are files without a buffer,
    which end when the process and the shim have closed theirs.  The URI's query is `sys.argv`: a key, its value, and so
    on.
    """

    def __init__(self, id: str, namespace: str, stdout: FileIO, stderr: FileIO, stop: FileIO | None = None) -> None:
        self.id: str = id
        self.namespace: str = namespace
        self.stdout: FileIO = stdout
        self.stderr: FileIO = stderr
        self._stop = stop

    def close(self) -> None:
        """Close the streams; `run` does at the end."""
        for file in (self.stdout, self.stderr, self._stop):
            if file is not None:
                file.close()

    def lines(self) -> Iterator[tuple[str, bytes]]:
        """Yield each line of both streams as it comes: `stdout` or `stderr`, and the line with its newline.

        A line without end is yielded in pieces of at least 64 KiB, and at the end of its stream.  This ends when both
        streams have; or, when SIGTERM has come, once everything that had been written has been read.
        """
        poller = select.poll()
        streams = {self.stdout.fileno(): ("stdout", self.stdout), self.stderr.fileno(): ("stderr", self.stderr)}
        rests = dict.fromkeys(streams, b"")
        stop = -1 if self._stop is None else self._stop.fileno()
        for fd in (*streams, *([stop] if stop >= 0 else [])):
            poller.register(fd, select.POLLIN)
        patience = None
        while rests and (ready := poller.poll(patience)):
            for fd, _ in ready:
                if fd == stop:
                    patience = 0
                    poller.unregister(stop)
                    continue
                name, stream = streams[fd]
                data = stream.read(_CHUNK)
                *lines, rest = (rests.pop(fd) + (data or b"")).split(b"\n")
                yield from ((name, line + b"\n") for line in lines)
                if rest and (not data or len(rest) >= _CHUNK):
                    yield name, rest
                    rest = b""
                if data:
                    rests[fd] = rest
                else:
                    poller.unregister(fd)
        yield from ((streams[fd][0], rest) for fd, rest in rests.items() if rest)


class Driver(Protocol):
    """What takes a container's output; made by a call with the `Config`, after which the container may start."""

    def wait(self) -> None:
        """Return when there is no more output."""


def run(driver: Callable[[Config], Driver]) -> NoReturn:
    """Be a log driver: make it by `driver(config)`, say that it is ready, and wait for it.

    Exit status 0 when it has come to its end; 1, and a line on stderr, when it failed, or when no shim has started this
    program.  SIGTERM, which a shim sends when the container is deleted, only ends `Config.lines`.
    """
    try:
        config = _read_config()
        try:
            made = driver(config)
            _say_ready()
            made.wait()
        finally:
            config.close()
    except (ShimError, OSError) as error:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {error}")
    sys.exit(0)


def _say_ready() -> None:
    try:
        os.write(_READY, b"\0")
    except BrokenPipeError:
        pass  # the shim is gone, but the container's output is not
    os.close(_READY)


def _read_config() -> Config:
    for name in ("CONTAINER_ID", "CONTAINER_NAMESPACE"):
        if name not in os.environ:
            raise InvalidArgumentError(f"{name} is not set: a shim starts this program, for a log URI binary://")
    for fd in (_STDOUT, _STDERR, _READY):
        try:
            os.set_inheritable(fd, False)
        except OSError:
            raise InvalidArgumentError(f"descriptor {fd} is not open: a shim opens it") from None
    stdout, stderr = FileIO(_STDOUT), FileIO(_STDERR)
    return Config(os.environ["CONTAINER_ID"], os.environ["CONTAINER_NAMESPACE"], stdout, stderr, _note_sigterm())


def _note_sigterm() -> FileIO:
    """Return a file that has something to read once SIGTERM has come, which does no more than that."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return FileIO(read_end)
