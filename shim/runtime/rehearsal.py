"""A rehearsal: a whole life of a daemon, in the zygote, so that what its forks do first has been done before.

Rule: the same code as in earnest, asked over a socket by what the shim's `play` says, and an end that leaves nothing:
no thread, no child, no file, no signal handler.  Python rewrites code while it runs it for the first times, and a fork
would have to copy each page that this touches.  What goes wrong here costs memory and time, never a container.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from google.protobuf.empty_pb2 import Empty

from shim.api.events_service_ttrpc import EventsService, events_service
from shim.runtime import address
from shim.runtime.daemon import HELD_SIGNALS
from shim.runtime.flags import Flags
from shim.runtime.serve import LoopDaemon, serve
from shim.runtime.shim import Shim
from shim.ttrpc._client_connection import ClientConnection
from shim.ttrpc._envelope import encode_head
from shim.ttrpc._events import ClientEvent, ResponseReceived
from shim.ttrpc.loop import READABLE

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from shim.ttrpc.service import CallContext, Service

    Play = Generator[tuple[str, str, bytes], bytes, None]
    """Yields service, method and request, and is resumed with the response."""

NAMESPACE: Final = "rehearsal"
_CAUGHT: Final = (*HELD_SIGNALS, signal.SIGCHLD)
# Far more than a life takes; then the zygote does without.
_LIMIT_S: Final = 10.0
_POLL_S: Final = 0.001


class RehearsalError(Exception):
    """The play has not been given to its end; the text says why."""


def is_possible(shim: Shim) -> bool:
    """Say whether the shim's daemon is a blocking one that ends when it is told to, whatever its author has written."""
    return shim.daemon_runner() is serve and type(shim).wait_shim is Shim.wait_shim


def rehearse(shim: Shim, folder: str) -> None:
    """Be a daemon of this shim from its first call to its last one; `folder` is made for it, and goes again.

    Raises:
        RehearsalError: A call failed, or took too long.
        OSError: The folder or a socket in it cannot be made.
    """
    was_collecting = gc.isenabled()
    os.mkdir(folder, 0o700)
    try:
        with _borrowed_process(folder):
            _Performance(shim, folder).give()
    finally:
        remove(folder)
        gc.unfreeze()  # a daemon freezes what it finds when it begins to serve
        gc.collect()  # or the next life would take more memory, which forks then share for nothing
        if not was_collecting:
            gc.disable()


def remove(folder: str) -> None:
    """Remove a rehearsal's folder, as far as it is there; by hand, since shutil is large."""
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files:
            os.unlink(os.path.join(parent, name))
        for name in folders:
            os.rmdir(os.path.join(parent, name))
    if os.path.isdir(folder):
        os.rmdir(folder)


@contextmanager
def _borrowed_process(folder: str) -> Iterator[None]:
    """Give the process back as it was: where it works, its environment, its signals."""
    environment = dict(os.environ)
    place = os.getcwd()
    handlers = {number: signal.getsignal(number) for number in _CAUGHT}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    os.chdir(folder)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(place)


def _reap() -> None:
    """Wait for children that a life has left that was cut short; each of them is about to end."""
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        return


class _Performance(EventsService):
    """One life of an understudy of the shim's, and all that it meets: the client, and who gets its events."""

    def __init__(self, shim: Shim, folder: str) -> None:
        bound = address.bind(os.path.join(folder, "s"))
        if bound is None:
            raise RehearsalError(f"somebody listens in {folder}")
        os.environ["TTRPC_ADDRESS"] = bound.path
        understudy = object.__new__(type(shim))
        understudy.__dict__.update(shim.__dict__)
        understudy.__dict__.update(
            flags=Flags(namespace=NAMESPACE, id=NAMESPACE),
            config=shim.config._replace(no_sub_reaper=True, no_setup_logger=True),
            services=lambda daemon: self._services(type(shim).services(understudy, daemon)),
            _exit=None,
        )
        self._bound = bound
        self._daemon = LoopDaemon(understudy, bound)
        self._daemon.pool.idle_s = 0.0  # its threads end with their work
        self._play = shim.play(folder)
        self._client = ClientConnection()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._failure = ""

    def _services(self, own: Sequence[Service]) -> list[Service]:
        return [*own, events_service(self)]

    def forward(self, context: CallContext, request: object, /) -> Empty:
        """Take an event, as containerd would."""
        return Empty()

    def give(self) -> None:
        """Live."""
        daemon = self._daemon
        loop = daemon.loop
        try:
            self._sock.connect(self._bound.path)
            self._sock.setblocking(False)
            loop.register(self._sock.fileno(), READABLE, self._answered)
            loop.call_later(_LIMIT_S, lambda: self._end("took too long"))
            self._say(next(self._play))
            daemon.serve()
        finally:
            self._play.close()
            self._sock.close()
            daemon.close()
            self._bound.remove()
            self._bound.listener.close()
        self._await_threads()
        _reap()
        if self._failure:
            raise RehearsalError(self._failure)

    def _say(self, line: tuple[str, str, bytes]) -> None:
        service, method, request = line
        self._sock.sendall(self._client.send_request(encode_head(service, method), request)[1])

    def _answered(self, _events: int) -> None:
        try:
            data = self._sock.recv(64 << 10)
        except BlockingIOError:
            return
        if not data:
            self._end("the daemon hung up")
        for event in self._client.receive_data(data):
            self._heard(event)

    def _heard(self, event: ClientEvent) -> None:
        if not isinstance(event, ResponseReceived) or event.code:
            self._end(f"a call failed: {event}")
            return
        try:
            self._say(self._play.send(event.payload))
        except StopIteration:
            self._end("")
        except Exception as error:  # the play's, which nobody else would hear of
            self._end(str(error))

    def _end(self, failure: str) -> None:
        self._failure = self._failure or failure
        self._daemon.loop.unregister(self._sock.fileno())
        self._sock.close()
        self._daemon.request_shutdown()

    def _await_threads(self) -> None:
        """A fork takes over none of them, and whatever lock one holds."""
        deadline = time.monotonic() + _LIMIT_S
        while len(os.listdir("/proc/self/task")) != 1:
            if time.monotonic() > deadline:
                raise RehearsalError("a thread has not ended")
            time.sleep(_POLL_S)
