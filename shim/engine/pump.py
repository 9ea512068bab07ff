"""Moving bytes from one descriptor to another on the event loop.

Rule: no thread and, between pipes, no copy (splice).  A slow sink stops the reading, a broken one does not: the
source is then drained into nothing, since a container must not block on a pipe that nobody empties
(containerd#12462).
"""

from __future__ import annotations

import errno
import os
import select
import stat
from collections.abc import Callable
from typing import Final

from shim.ttrpc.loop import FAILED, READABLE, WRITABLE, EventLoop, Timer

_CHUNK: Final = 64 << 10
# How much one source may move before the others get their turn.
_ROUNDS: Final = 16
_TTY_RETRY_S: Final = 0.02
_TTY_GRACE_S: Final = 0.2


class Pump:
    """Copies `source` to `sink` until the source ends, then calls `on_done()`; the descriptors stay the owner's.

    Both must be non-blocking (a sink that is a regular file excepted).  `is_tty` says that the source is a console,
    whose EIO only means that nobody has the other end open right now.  All methods belong to the loop's thread.
    """

    def __init__(
        self, loop: EventLoop, source: int, sink: int, on_done: Callable[[], None], *, is_tty: bool = False
    ) -> None:
        self._loop = loop
        self._source = source
        self._sink = sink
        self._on_done: Callable[[], None] | None = on_done
        self._is_tty = is_tty
        self._is_splicing = not is_tty and _is_pipe(source) and _is_pipe(sink)
        self._is_polled = not _is_regular(sink)
        self._is_sink_broken = False
        self._held = b""
        self._watched: int | None = None
        self._is_due = False
        self._timer: Timer | None = None
        self._is_ending = False

    def start(self) -> None:
        """Begin to copy."""
        self._watch(self._source, READABLE)

    def finish(self) -> None:
        """End a console's copy once what is in flight has come through: its process has exited."""
        if self._on_done is not None and not self._is_ending:
            self._is_ending = True
            if self._watched is None and not self._held:
                self._watch(self._source, READABLE)
            self._set_timer(_TTY_GRACE_S, self._stop_if_quiet)

    def stop(self) -> None:
        """End now; what has not been copied is lost."""
        self._watch(None, 0)
        if self._timer is not None:
            self._timer.cancel()
        done, self._on_done = self._on_done, None
        if done is not None:
            done()

    def _stop_if_quiet(self) -> None:
        if self._watched != self._source:  # the reader is slow; its backlog is still to come
            self._set_timer(_TTY_GRACE_S, self._stop_if_quiet)
            return
        # Polling may be silent while the kernel's own worker is late on a busy machine; reading makes it hand over.
        timer = self._timer
        self._ready(READABLE)
        if self._timer is timer:
            self.stop()

    def _set_timer(self, delay_s: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, callback)

    def _watch(self, fd: int | None, events: int) -> None:
        """Wait for one descriptor only: a hung-up source would otherwise wake the loop without end."""
        if fd != self._watched:
            if self._watched is not None:
                self._loop.unregister(self._watched)
            self._watched = fd if fd is not None and self._can_watch(fd, events) else None

    def _can_watch(self, fd: int, events: int) -> bool:
        """Register a descriptor; what cannot be, a plain file or /dev/null, is ready at any time: go on soon."""
        try:
            self._loop.register(fd, events, self._ready)
        except PermissionError:
            if not self._is_due:
                self._is_due = True
                self._loop.call_soon(self._go_on)
            return False
        return True

    def _go_on(self) -> None:
        self._is_due = False
        self._ready(READABLE)

    def _ready(self, _events: int) -> None:
        for _ in range(_ROUNDS):
            if self._on_done is None or not self._move():
                return

    def _move(self) -> bool:
        """Move one chunk; False when there is nothing more to do now."""
        if self._held:
            return self._write_held()
        try:
            if self._is_splicing and not self._is_sink_broken:
                size = os.splice(self._source, self._sink, _CHUNK, flags=_SPLICE_FLAGS)
                if size == 0:
                    self.stop()
                return size > 0
            self._held = os.read(self._source, _CHUNK)
        except BlockingIOError:
            self._wait()
            return False
        except OSError as error:
            return self._failed(error)
        if not self._held:
            self.stop()
            return False
        if self._is_ending:
            self._set_timer(_TTY_GRACE_S, self._stop_if_quiet)
        return self._write_held()

    def _wait(self) -> None:
        """A splice that would block does not say on which side."""
        if self._is_splicing and not self._is_sink_broken and not _is_ready(self._sink, select.POLLOUT):
            self._watch(self._sink, WRITABLE)
        else:
            self._watch(self._source, READABLE)

    def _failed(self, error: OSError) -> bool:
        if self._is_splicing and not self._is_sink_broken:
            if error.errno == errno.EINVAL:
                self._is_splicing = False  # one of the two cannot be spliced after all
            else:
                self._is_sink_broken = True
                self._watch(self._source, READABLE)
            return True
        if self._is_tty and error.errno == errno.EIO and not self._is_ending:
            self._watch(None, 0)
            self._set_timer(_TTY_RETRY_S, lambda: self._watch(self._source, READABLE))
            return False
        self.stop()
        return False

    def _write_held(self) -> bool:
        try:
            if not self._is_sink_broken:
                self._held = self._held[os.write(self._sink, self._held) :]
            else:
                self._held = b""
        except BlockingIOError:
            if self._is_polled:
                self._watch(self._sink, WRITABLE)
            return False
        except OSError:
            self._is_sink_broken = True
            self._held = b""
        if self._held:
            return True
        self._watch(self._source, READABLE)
        return True


_SPLICE_FLAGS: Final = getattr(os, "SPLICE_F_NONBLOCK", 0) | getattr(os, "SPLICE_F_MOVE", 0)


def _is_ready(fd: int, event: int) -> bool:
    poller = select.poll()
    poller.register(fd, event)
    return any(ready & (event | FAILED) for _, ready in poller.poll(0))


def _is_pipe(fd: int) -> bool:
    return hasattr(os, "splice") and stat.S_ISFIFO(os.fstat(fd).st_mode)


def _is_regular(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)
