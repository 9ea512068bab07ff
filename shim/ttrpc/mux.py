"""Several ttrpc connections on one socket, as NRI has them: `Mux` gives each a socket of its own, its channel.

    with Mux(sock) as mux:
        server.add_connection(mux.channel(PLUGIN_SERVICE))
        client = ttrpc.Client(mux.channel(RUNTIME_SERVICE))

Rule: channels are ordinary sockets, so blocking and asyncio clients and servers use them unchanged; one thread moves
the bytes.  It holds 8 MiB for a channel that is not read, then reads no more, and ends the channel if that lasts.
Spec: containerd/nri pkg/net/multiplex.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from types import TracebackType
from typing import Final, Self

from shim.ttrpc._frame import READ_SIZE
from shim.ttrpc._mux import MAX_CONNECTION_ID, MuxCutter, MuxError, MuxReader
from shim.ttrpc.loop import FAILED, READABLE, WRITABLE, Loop, LoopTimer
from shim.ttrpc.status import ConnectionClosedError, LocalProtocolError

__all__ = ["PLUGIN_SERVICE", "RUNTIME_SERVICE", "Mux", "MuxError"]

PLUGIN_SERVICE: Final = 1
"""NRI's connection on which the runtime calls the plugin."""
RUNTIME_SERVICE: Final = 2
"""NRI's connection on which the plugin calls the runtime."""

_MAX_HELD: Final = 8 << 20  # two messages of the largest size
_MAX_UNSENT: Final = 1 << 20
_MOST_BUFFERS: Final = 64
_LAST_READS: Final = 64
_GONE: Final = (BrokenPipeError, ConnectionResetError)


class _Channel:
    """The pump's end of one channel."""

    __slots__ = ("connection_id", "cutter", "held", "is_deaf", "is_ended", "sock", "stalled_at", "watched")

    def __init__(self, connection_id: int, sock: socket.socket) -> None:
        self.connection_id = connection_id
        self.sock = sock
        self.cutter = MuxCutter(connection_id)
        self.held = bytearray()  # what has come for it and the socket does not take
        self.stalled_at: float | None = None  # since when it has held up others and its user has taken nothing
        self.is_ended = False  # nothing more comes from its user
        self.is_deaf = False  # its user reads no more
        self.watched: int | None = None

    def put(self, part: memoryview) -> None:
        """Send to the user, or hold what the socket does not take."""
        if not self.held:
            part = part[self._send(part) :]
        if not self.is_deaf:
            self.held += part

    def push(self) -> None:
        """Send what is held, as far as the socket takes it."""
        with memoryview(self.held) as view:
            sent = self._send(view)
        del self.held[:sent]
        if sent:
            self.stalled_at = None

    def _send(self, data: memoryview) -> int:
        if self.is_deaf:
            return len(data)
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.is_deaf = True
            return len(data)

    def end(self) -> None:
        """Give the user the end of the connection, after what the socket holds for it."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
            while self.sock.recv(READ_SIZE):  # bytes left unread would turn the end into a reset
                pass
        except OSError:
            pass  # the user was faster
        self.sock.close()


class Mux:
    """Multiplexes connections on a connected socket, the trunk, which it owns from here; also a context manager.

    The end of the trunk ends every channel after what came for it.  A channel that its user closes is alone in that:
    the peer is not told (there is no way), and what still comes for it is dropped, as is what comes for ids that are
    not among `connection_ids`.  When the last channel has ended, the trunk is closed behind what was written.
    Credentials that a server sees on a channel are this process's own; the trunk's are `peer_credentials(sock)`.

    A channel whose user does not read holds up the others once 8 MiB wait for it, for at most `stall_s` seconds: then
    it ends.  While the peer does not read, channels take what their sockets and one message hold.  `error` tells what
    went wrong first; None if nothing did: the peer's hanging up is the ordinary end.

    Raises:
        ValueError: An id is 0, which is reserved, or over 32 bits, or there is none, or one twice.
    """

    def __init__(
        self,
        sock: socket.socket,
        connection_ids: Sequence[int] = (PLUGIN_SERVICE, RUNTIME_SERVICE),
        *,
        stall_s: float = 10.0,
    ) -> None:
        ids = tuple(connection_ids)
        if not ids or len(set(ids)) < len(ids) or not all(0 < number <= MAX_CONNECTION_ID for number in ids):
            raise ValueError(f"connection ids {ids}: want different ones from 1 to {MAX_CONNECTION_ID}")
        self.error: Exception | None = None
        self._ids = ids
        self._stall_s = stall_s
        self._stall_timer: LoopTimer | None = None
        self._trunk: socket.socket | None = sock
        self._trunk_watched = 0
        self._reader = MuxReader()
        self._unsent: deque[memoryview] = deque()  # whole mux frames but for the first
        self._unsent_size = 0
        self._lock = threading.Lock()
        self._is_over = False
        self._is_closed = False
        self._untaken: dict[int, socket.socket] = {}
        self._channels: dict[int, _Channel] = {}
        with ExitStack() as undo:
            for number in ids:
                ours, theirs = map(undo.enter_context, socket.socketpair())
                ours.setblocking(False)
                self._channels[number] = _Channel(number, ours)
                self._untaken[number] = theirs
            sock.setblocking(False)
            self._loop = Loop(on_error=self._fail)
            undo.callback(self._loop.close)
            self._thread = threading.Thread(target=self._run, name="ttrpc mux", daemon=True)
            self._thread.start()
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_closed(self) -> bool:
        """True once the trunk and every channel have ended."""
        return self._is_over

    def channel(self, connection_id: int) -> socket.socket:
        """Return the connected socket of one connection, which the caller owns from here; each can be had once.

        What comes before that waits in it.

        Raises:
            ValueError: It has been taken, or is not among the ids that this was made with.
            ConnectionClosedError: `close` has been called.
        """
        with self._lock:
            if self._is_closed:
                raise ConnectionClosedError(f"connection {connection_id}: mux: closed")
            sock = self._untaken.pop(connection_id, None)
        if sock is None:
            known = connection_id in self._ids
            raise ValueError(f"connection {connection_id} " + ("has been taken" if known else f"is not in {self._ids}"))
        return sock

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the trunk and every channel have ended; False if they have not in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def close(self) -> None:
        """End every channel and the trunk, and the thread; what channels have written leaves if the trunk takes it.

        From any thread, and repeating it is fine.
        """
        with self._lock:
            self._is_closed = True
            untaken, self._untaken = self._untaken, {}
            if not self._is_over:
                self._loop.call_soon(self._close)
        self._thread.join()
        for sock in untaken.values():
            sock.close()

    # All below runs in the thread.

    def _run(self) -> None:
        try:
            self._watch()
            self._loop.run()
        finally:
            self._drop_all()
            with self._lock:
                self._is_over = True
                self._loop.close()

    def _fail(self, error: Exception) -> None:
        """Note a fault of our own, after which nothing here can be relied on."""
        self._note(error)
        self._loop.stop()

    def _note(self, error: Exception) -> None:
        if self.error is None:
            self.error = error

    def _close(self) -> None:
        for channel in list(self._channels.values()):
            if self._unsent_size <= _MAX_UNSENT and not channel.is_ended:
                self._read_channel(channel)
        self._drop_all()
        self._loop.stop()

    def _drop_all(self) -> None:
        for channel in list(self._channels.values()):
            self._drop(channel)
        self._close_trunk()

    # The trunk.

    def _on_trunk(self, events: int) -> None:
        if self._unsent and events & (WRITABLE | FAILED):
            self._flush()
        if self._trunk_watched & READABLE and events & (READABLE | FAILED):
            self._read_trunk()
        self._watch()

    def _read_trunk(self) -> bool:
        """Hand what has come to its channels; False when there was nothing, or the trunk has ended."""
        if self._trunk is None:
            return False
        try:
            data = self._trunk.recv(READ_SIZE)
        except BlockingIOError:
            return False
        except OSError as error:
            self._end_trunk(error)
            return False
        if not data:
            is_whole = self._reader.is_between_frames
            self._end_trunk(None if is_whole else MuxError("the trunk ended inside a mux frame"))
            return False
        try:
            for connection_id, part in self._reader.feed(data):
                channel = self._channels.get(connection_id)
                if channel is not None:
                    channel.put(part)
        except MuxError as error:
            self._end_trunk(error)
            return False
        return True

    def _flush(self) -> None:
        """Write what is queued, as far as the trunk takes it."""
        unsent = self._unsent
        try:
            while unsent and self._trunk is not None:
                sent = self._trunk.sendmsg(list(islice(unsent, _MOST_BUFFERS)))
                self._unsent_size -= sent
                while sent:
                    first = unsent[0]
                    if sent < len(first):
                        unsent[0] = first[sent:]
                        break
                    sent -= len(first)
                    unsent.popleft()
        except BlockingIOError:
            pass
        except OSError as error:
            for _ in range(_LAST_READS):  # the peer's last words may be there still
                if not self._read_trunk():
                    break
            self._end_trunk(error)

    def _end_trunk(self, error: Exception | None) -> None:
        """Close the trunk; channels end once their users have what came for them."""
        if self._trunk is None:
            return
        if error is not None and not isinstance(error, _GONE):
            self._note(error)
        self._close_trunk()

    def _close_trunk(self) -> None:
        trunk, self._trunk = self._trunk, None
        if trunk is None:
            return
        if self._trunk_watched:
            self._loop.unregister(trunk.fileno())
            self._trunk_watched = 0
        trunk.close()
        self._unsent.clear()
        self._unsent_size = 0

    # Channels.

    def _on_channel(self, channel: _Channel, events: int) -> None:
        if channel.connection_id not in self._channels:
            return
        if channel.held and events & (WRITABLE | FAILED):
            channel.push()
        if (channel.watched or 0) & READABLE and events & (READABLE | FAILED):
            self._read_channel(channel)
        if channel.is_ended and events & FAILED:
            channel.is_deaf = True
        self._watch()

    def _read_channel(self, channel: _Channel) -> None:
        """Take what a user has written, and write it to the trunk."""
        try:
            data = channel.sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:  # closed by its user, who had not read everything
            data = b""
            channel.is_deaf = True
        channel.is_ended = not data
        try:
            for frame in channel.cutter.feed(data):
                self._unsent.append(memoryview(frame))
                self._unsent_size += len(frame)
        except LocalProtocolError as error:
            self._note(error)
            channel.is_ended = channel.is_deaf = True
        self._flush()

    def _drop(self, channel: _Channel) -> None:
        """End a channel for its user, if that has not ended it already."""
        if self._channels.pop(channel.connection_id, None) is None:
            return
        if channel.watched is not None:
            self._loop.unregister(channel.sock.fileno())
        channel.end()

    def _check_stalls(self) -> None:
        """End the channels that hold up something and of which nothing has been taken for too long."""
        self._stall_timer = None
        late = time.monotonic() - self._stall_s
        for channel in list(self._channels.values()):
            if channel.stalled_at is not None and channel.stalled_at <= late:
                if self._trunk is not None:
                    text = f"connection {channel.connection_id}: {len(channel.held)} bytes have not been read"
                    self._note(ConnectionClosedError(f"{text} for {self._stall_s} s"))
                self._drop(channel)
        self._watch()

    def _note_stall(self, channel: _Channel) -> float | None:
        """Return since when something waits for this channel's user to read: others, or the end of it all."""
        if len(channel.held) <= (_MAX_HELD if self._trunk is not None else 0):
            channel.stalled_at = None
        elif channel.stalled_at is None:
            channel.stalled_at = time.monotonic()
        return channel.stalled_at

    # What the loop watches.

    def _watch(self) -> None:
        """Drop what has ended, and bring what the loop watches in line with the queues."""
        for channel in list(self._channels.values()):
            if (channel.is_ended and channel.is_deaf) or (self._trunk is None and not channel.held):
                self._drop(channel)
            else:
                self._watch_channel(channel)
        trunk = self._trunk
        stalls = [since for channel in self._channels.values() if (since := self._note_stall(channel)) is not None]
        if trunk is not None:
            if not self._channels and not self._unsent:
                self._close_trunk()
            else:
                self._watch_trunk(trunk, is_reading=not stalls)
        if not self._channels and self._trunk is None:
            self._loop.stop()
        elif stalls and self._stall_timer is None:
            wait_s = min(stalls) + self._stall_s - time.monotonic()
            self._stall_timer = self._loop.call_later(wait_s, self._check_stalls)

    def _watch_trunk(self, trunk: socket.socket, *, is_reading: bool) -> None:
        # Without a wish it is not registered at all: a peer that has hung up would be reported over and over.
        events = (READABLE if is_reading else 0) | (WRITABLE if self._unsent else 0)
        if events == self._trunk_watched:
            return
        if not events:
            self._loop.unregister(trunk.fileno())
        elif self._trunk_watched:
            self._loop.modify(trunk.fileno(), events)
        else:
            self._loop.register(trunk.fileno(), events, self._on_trunk)
        self._trunk_watched = events

    def _watch_channel(self, channel: _Channel) -> None:
        is_reading = not channel.is_ended and self._trunk is not None and self._unsent_size <= _MAX_UNSENT
        events: int | None = (READABLE if is_reading else 0) | (WRITABLE if channel.held else 0)
        if not events and not channel.is_ended:
            events = None  # as the trunk; one that has ended is watched for its user's hanging up
        if events == channel.watched:
            return
        fd = channel.sock.fileno()
        if events is None:
            self._loop.unregister(fd)
        elif channel.watched is not None:
            self._loop.modify(fd, events)
        else:
            self._loop.register(fd, events, lambda ready: self._on_channel(channel, ready))
        channel.watched = events
