"""Bytes that a socket has not taken yet.

Rule: they leave in order; small ones share a system call, large ones are not copied.  Neither waits nor watches.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

JOINED_SIZE: Final = 64 << 10  # up to here copying costs less than a list of buffers
_MOST_BUFFERS: Final = 64  # for one sendmsg; the system takes 1024


class Unsent:
    """A queue of frames, or of what is left of the first one; true when there is something."""

    __slots__ = ("_buffers", "_is_begun", "size")

    def __init__(self) -> None:
        self._buffers: deque[memoryview] = deque()
        self._is_begun = False
        self.size: int = 0  # in bytes

    def __bool__(self) -> bool:
        return bool(self._buffers)

    def add(self, frame: bytes, sent: int = 0) -> None:
        """Queue a frame, of which the socket has taken `sent` bytes; nothing is left of an empty one."""
        if len(frame) <= sent:
            return
        self._is_begun = self._is_begun or bool(sent)  # nothing but the first may have begun
        self._buffers.append(memoryview(frame)[sent:])
        self.size += len(frame) - sent

    def extend(self, frames: Iterable[bytes]) -> None:
        """Queue frames."""
        for frame in frames:
            self.add(frame)

    def clear(self) -> None:
        """Forget everything."""
        self._buffers.clear()
        self._is_begun = False
        self.size = 0

    def drop(self, is_unwanted: Callable[[memoryview], bool]) -> bool:
        """Forget the frames that are not wanted, but for one that has begun; return whether there were any."""
        begun = 1 if self._is_begun else 0
        frames = list(self._buffers)
        kept = frames[:begun] + [frame for frame in frames[begun:] if not is_unwanted(frame)]
        self._buffers = deque(kept)
        self.size = sum(map(len, kept))
        return len(kept) < len(frames)

    def send(self, sock: socket.socket) -> None:
        """Send what the socket takes.

        Raises:
            OSError: It takes nothing any more, ever.
        """
        buffers = self._buffers
        try:
            while buffers:
                sent = self._send_once(sock)
                self.size -= sent
                while sent:
                    first = buffers[0]
                    self._is_begun = sent < len(first)
                    if self._is_begun:
                        buffers[0] = first[sent:]
                        break
                    sent -= len(first)
                    buffers.popleft()
        except BlockingIOError:
            pass

    def _send_once(self, sock: socket.socket) -> int:
        buffers = self._buffers
        if len(buffers) == 1:
            return sock.send(buffers[0])
        if self.size <= JOINED_SIZE:
            return sock.send(b"".join(buffers))
        return sock.sendmsg([buffers[at] for at in range(min(len(buffers), _MOST_BUFFERS))])
