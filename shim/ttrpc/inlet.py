"""What the blocking client reads from: whoever is the reader waits here, for data, for a deadline, or to be cancelled.

Rule: one thread at a time.  A lone caller looks for its answer before it sleeps.
"""

from __future__ import annotations

import os
import select
import socket
from typing import Final

from shim.ttrpc._frame import LARGE_READ_SIZE, READ_SIZE
from shim.ttrpc.pending import Pending
from shim.ttrpc.spin import Spin

_NOW: Final = int(socket.MSG_DONTWAIT)  # an enum's operators are slow


class Inlet:
    """The receiving half of one link's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._size = READ_SIZE
        self._spin = Spin()
        self._poller = select.poll()
        self._poller.register(sock, select.POLLIN)
        self._wake_fds: tuple[int, int] | None = None

    def close(self) -> None:
        """Give the descriptors back that wake the reader; the socket is the link's."""
        fds, self._wake_fds = self._wake_fds, None
        for fd in fds or ():
            os.close(fd)

    def allow_interruption(self) -> None:
        """Make `interrupt` work from the next `receive` on."""
        if self._wake_fds is None:
            self._wake_fds = os.pipe()
            self._poller.register(self._wake_fds[0], select.POLLIN)

    def interrupt(self) -> None:
        """Let the reader return with nothing; from another thread."""
        if self._wake_fds is not None:
            os.write(self._wake_fds[1], b"\0")

    def receive(self, pending: Pending, *, is_alone: bool) -> bytes | None:
        """Read once; None when a deadline or an interruption came first, empty at the end of the connection."""
        if is_alone and (data := self._spin.find(self.receive_now)) is not None:
            return data
        if pending.is_cancellable:
            data = self.receive_now()
            if data is not None:
                return data
        elif pending.deadline is None and self._wake_fds is None:
            try:
                return self._sized(self._sock.recv(self._size))
            except OSError:
                return b""
        remaining = pending.remaining()
        try:
            ready = self._poller.poll(None if remaining is None else remaining * 1000)
        except (OSError, ValueError):  # closed by another thread
            return b""
        wake = self._wake_fds
        if wake is not None and any(fd == wake[0] for fd, _ in ready):
            try:
                os.read(wake[0], 64)
            except OSError:
                return b""  # closed by another thread
            return None
        return self.receive_now() if ready else None

    def receive_now(self) -> bytes | None:
        """Read what is there; None when nothing is, empty at the end of the connection."""
        try:
            return self._sized(self._sock.recv(self._size, _NOW))
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _sized(self, data: bytes) -> bytes:
        """Note how much came: more may follow."""
        self._size = READ_SIZE if len(data) < READ_SIZE else LARGE_READ_SIZE
        return data
