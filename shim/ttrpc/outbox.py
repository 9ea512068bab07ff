"""What the blocking client has to send: frames in the order of their ids, written by whoever comes first.

Rule: a frame is queued under the link's lock, in the step that gives it its id, and written under the send lock.  Who
gets that writes all that is there, so that many callers share one system call; nobody waits for it to send a small
request. A frame of a call that has ended by then never begins (data on a stream that a Go server does not hold ends its
process), and one that has begun is ended before anything follows, by a thread if need be.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from shim.ttrpc.pending import Pending
from shim.ttrpc.status import ConnectionClosedError, TtrpcError

if TYPE_CHECKING:
    from shim.ttrpc.link import Link

LOOK_S: Final = 0.05  # how long one that waits for others looks away from its own call
_JOINED_SIZE: Final = 64 << 10  # up to here copying costs less than calls
_NOW: Final = int(socket.MSG_DONTWAIT)  # an enum's operators are slow
_CROWD: Final = 256
_NOBODY: Final = Pending("ttrpc", None)

Batch = list[tuple[bytes, Pending]]
"""Frames and the calls that they belong to."""


class Outbox:
    """The queue of one link."""

    def __init__(self, sock: socket.socket, link: Link, lock: threading.Lock) -> None:
        self._sock = sock
        self._link = link
        self._lock = lock
        self._send_lock = threading.Lock()
        self._queue: deque[tuple[bytes, Pending]] = deque()

    def put(self, frame: bytes, pending: Pending) -> bool:
        """Queue a frame, unless the caller may `write` it at once, which True says; the link's lock is held."""
        if not self._queue and self._send_lock.acquire(False):
            return True
        self.queue(frame, pending)
        return False

    def queue(self, frame: bytes, pending: Pending) -> None:
        """Queue a frame, for whoever comes to `flush_soon`; the link's lock is held."""
        if len(self._queue) >= _CROWD:  # the server does not read, and deadlines pass
            self._queue = deque(entry for entry in self._queue if entry[1].ended() is None)
        self._queue.append((frame, pending))

    def write(self, frame: bytes, pending: Pending) -> None:
        """Send the frame for which `put` gave the turn, and what has been queued behind it.

        Raises:
            TtrpcError: What `pending` has ended with while the socket took no more.
        """
        self._flush(pending, [(frame, pending)])
        if self._queue:
            self.flush_soon(pending)

    def flush_soon(self, pending: Pending) -> None:
        """Send what is queued, unless another thread is at it: that one will not leave a frame behind.

        Raises:
            TtrpcError: What `pending` has ended with while the socket took no more.
        """
        while self._queue and self._send_lock.acquire(False):
            self._flush(pending)

    def flush(self, pending: Pending) -> None:
        """Send what is queued, after who is at it; the wait for that counts too (ttrpc#174).

        Raises:
            TtrpcError: What `pending` has ended with meanwhile.
        """
        if not self._send_lock.acquire(False):
            self._wait_for_turn(pending)
        self._flush(pending)
        self.flush_soon(pending)

    def _wait_for_turn(self, pending: Pending) -> None:
        while True:
            if (ended := pending.ended()) is not None:
                raise ended.with_traceback(None)
            remaining = pending.remaining()
            if remaining == 0:
                raise self._link.expire(pending)
            if self._send_lock.acquire(timeout=LOOK_S if remaining is None else min(LOOK_S, remaining)):
                return

    def _flush(self, pending: Pending, batch: Batch | None = None) -> None:
        """Send `batch` and all that is queued; takes over the send lock, and gives it back or away."""
        try:
            if batch is not None:
                self._write(batch, pending)
            while self._queue:
                with self._lock:
                    batch = self._take()
                if batch:
                    self._write(batch, pending)
        except BaseException:
            if not self._queue or self._link.is_closed:
                self._send_lock.release()
                raise
            try:
                threading.Thread(target=self._flush_for_others, name="ttrpc sender", daemon=True).start()
            except RuntimeError:  # nobody can end what has begun, so nothing can follow it
                self._link.close()
                self._send_lock.release()
            raise
        self._send_lock.release()

    def _flush_for_others(self) -> None:
        """Send what a call that has ended has left; in a thread that ends with it."""
        try:
            self._flush(_NOBODY)
            self.flush_soon(_NOBODY)
        except TtrpcError:
            pass  # the connection has ended, and with it every call

    def _take(self) -> Batch:
        """Take from the queue what one write should have; the link's lock is held."""
        batch: Batch = []
        size = 0
        while self._queue and size < _JOINED_SIZE:
            frame, pending = self._queue.popleft()
            if pending.ended() is None:
                batch.append((frame, pending))
                size += len(frame)
        return batch

    def _write(self, batch: Batch, pending: Pending) -> None:
        data = batch[0][0] if len(batch) == 1 else b"".join([frame for frame, _ in batch])
        sent = 0
        try:
            while True:
                try:
                    sent += self._sock.send(memoryview(data)[sent:] if sent else data, _NOW)
                    if sent == len(data):
                        return
                except BlockingIOError:
                    error = self._link.wait_to_write(pending)
                    if error is not None:
                        raise error.with_traceback(None) from None
                    if len(batch) > 1:  # some of their calls may have ended meanwhile
                        self._put_back(batch, sent)
                        return
        except OSError:
            self._link.lose()
            with self._lock:
                self._queue.clear()
            raise pending.ended() or ConnectionClosedError(f"{pending.name}: ttrpc: closed") from None
        except BaseException:
            self._put_back(batch, sent)
            raise

    def _put_back(self, batch: Batch, sent: int) -> None:
        """Queue again what has not been sent, first of all the rest of a frame that has begun."""
        rest: Batch = []
        for frame, pending in batch:
            if sent >= len(frame):
                sent -= len(frame)
            elif sent:
                rest.append((frame[sent:], _NOBODY))
                sent = 0
            else:
                rest.append((frame, pending))
        with self._lock:
            self._queue.extendleft(reversed(rest))
