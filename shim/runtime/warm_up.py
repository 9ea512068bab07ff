"""What warms the image of a binary up: every import of a shim's three processes, and the life of a daemon some times.

Rule: the same each time and on every machine, since two builds have to give the same bytes: one thread, no child, and
`FakeHost` in the place of what differs.  It writes into the working directory alone.  Python specializes code while it
runs it for the first times (PEP 659); a process that starts from the image runs it as it is by then.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.empty_pb2 import Empty

from shim.api.events_service_ttrpc import EventsService, events_service
from shim.host import libc, mountinfo
from shim.runtime import actions, address, bootstrap, daemon, legacy, main
from shim.runtime import flags as flags_module
from shim.runtime.config import Config
from shim.runtime.flags import Flags
from shim.runtime.serve import LoopDaemon, serve
from shim.runtime.shim import Shim
from shim.ttrpc._client_connection import ClientConnection
from shim.ttrpc._envelope import encode_head
from shim.ttrpc._events import ClientEvent, ResponseReceived
from shim.ttrpc.loop import READABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from shim.ttrpc.service import CallContext, Service

    Calls = Generator[tuple[str, str, bytes], bytes, None]
    """Yields service, method and request, and is resumed with the response."""

# After some calls Python has specialized a function for the types that it meets; one call in a life is too few.
_LIVES: Final = 6
_LIMIT_S: Final = 20.0
# Above what the kernel ever gives to a process.
_FIRST_PID: Final = (1 << 22) + 1
_OWN_PID: Final = 1000
_MOUNTS: Final = """\
21 26 0:20 / /proc rw,nosuid,nodev,noexec,relatime shared:13 - proc proc rw
26 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
28 22 0:25 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
"""
_CAUGHT: Final = (*daemon.HELD_SIGNALS, signal.SIGCHLD)
_NAMESPACE: Final = "warm-up"
_WORDS: Final = [
    *("-namespace", "default", "-address", "/run/containerd/containerd.sock", "-publish-binary", "/usr/bin/containerd"),
    *("-id", "c"),
]


class WarmUpError(Exception):
    """A life has not come to its end; the text says why."""


def warm_up(
    runtime_id: str,
    shim: Callable[[str, Flags, Config], Shim],
    config: Config | None,
    calls: Callable[[FakeHost, str], Calls] | None,
) -> bool:
    """Load all of a shim, and run it; say whether whole lives of a daemon were run.

    `calls` are what its daemon is asked, given the host that it sees and a folder of its own.

    Raises:
        WarmUpError: The daemon failed a call, or took too long.
    """
    main._version_text("")
    practised = shim(runtime_id, Flags(namespace=_NAMESPACE, id=_NAMESPACE), config or Config())
    practised.preload()
    runner = practised.daemon_runner()
    place = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    folder = f"/proc/self/fd/{place}"  # whatever the build has called it
    with ExitStack() as stack:
        host = stack.enter_context(FakeHost.in_the_place_of_the_real_one(folder))
        stack.enter_context(_borrowed_process(folder))
        for _ in range(_LIVES):
            _launch(practised)
        if calls is not None and runner is serve:
            for number in range(_LIVES):
                own = os.path.join(folder, str(number))
                os.mkdir(own)
                _Life(practised, own, host, calls).live()
                gc.unfreeze()  # a daemon freezes what it finds when it begins to serve
                gc.collect()
    os.close(place)
    gc.disable()
    return calls is not None and runner is serve


class FakeHost:
    """What differs between machines and between two runs, always the same: programs, pids, time, mounts.

    A program that the shim starts has ended well before it could do anything.  One that is told to write a pid file has
    left a container's process behind, which lives until `end`.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._next_pid = _FIRST_PID
        self._ended: list[tuple[int, int]] = []
        self._alive: set[int] = set()
        self.reap: Callable[[], None] = lambda: None

    @classmethod
    @contextmanager
    def in_the_place_of_the_real_one(cls, folder: str) -> Iterator[FakeHost]:
        """Let this process see it until the end of the block; `folder` is where it may write."""
        own = cls(folder)
        mounts = os.path.join(folder, "mountinfo")
        with open(mounts, "w") as file:
            file.write(_MOUNTS)
        places: list[tuple[Any, str, Any]] = [
            (libc, "spawn", own._spawn),
            (os, "waitpid", own._wait),
            (os, "kill", own._kill),
            (os, "getpid", lambda: _OWN_PID),
            (os, "getcwd", lambda: folder),
            (time, "monotonic", count(1000.0, 1e-5).__next__),
            (time, "time", count(1.7e9, 1e-5).__next__),
            (time, "time_ns", count(1_700_000_000_123_456_789, 10_000).__next__),
            (mountinfo.read, "__defaults__", (mounts,)),
        ]
        before = [getattr(place, name) for place, name, _ in places]
        for place, name, value in places:
            setattr(place, name, value)
        try:
            yield own
        finally:
            for (place, name, _), value in zip(places, before, strict=True):
                setattr(place, name, value)

    def end(self, pid: int, status: int = 0) -> None:
        """End a container's process, and tell of it."""
        if pid in self._alive:
            self._alive.remove(pid)
            self._ended.append((pid, status))
            self.reap()

    @property
    def last_pid(self) -> int:
        """The pid of the latest process."""
        return self._next_pid - 1

    def _spawn(
        self, _file: str, argv: list[str], *_args: object, told: bytearray, **_options: object
    ) -> tuple[int, int]:
        pid = self._start()
        told[:] = pid.to_bytes(len(told), sys.byteorder)
        if "--pid-file" in argv:
            left = self._start()
            self._alive.add(left)
            with open(argv[argv.index("--pid-file") + 1], "w") as file:
                file.write(str(left))
        self._ended.append((pid, 0))
        self.reap()  # an exit that comes before its spawn has returned is kept for it
        return pid, -1

    def _start(self) -> int:
        self._next_pid += 1
        return self._next_pid - 1

    def _wait(self, pid: int, _options: int) -> tuple[int, int]:
        for ended in self._ended:
            if pid in (-1, ended[0]):
                self._ended.remove(ended)
                return ended
        raise ChildProcessError(10, "No child processes")

    def _kill(self, pid: int, signum: int) -> None:
        if pid == _OWN_PID:
            self.reap()
        elif signum:
            self.end(pid, signum)


@contextmanager
def _borrowed_process(folder: str) -> Iterator[None]:
    """Give the process back as it was: where it works, its environment, its signals."""
    place = os.getcwd()
    handlers = {number: signal.getsignal(number) for number in _CAUGHT}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _CAUGHT)
    os.chdir(folder)
    os.environ["PATH"] = os.defpath
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.environ.clear()
        os.chdir(place)


def _launch(shim: Shim) -> None:
    """Run what `start` and `delete` do before and after a daemon, less what has an effect."""
    flags_module.parse(["-v"])
    flags_module.parse([*_WORDS, "delete"])
    flags_module.parse([*_WORDS, "start"])
    address.socket_path("/run/containerd/containerd.sock", "default", "c")
    for words in (b"", b"\x0a\x04name"):  # an Any of this type
        told = bootstrap.read_bootstrap(words, "default", "c")
        bootstrap.write_answer("unix:///run/containerd/s/0", told, "")
    legacy.read_address(os.getcwd())
    legacy.write_address_file(os.getcwd(), "unix:///run/containerd/s/0")
    os.unlink("address")
    actions._delete(shim, shim.flags)


class _Life(EventsService):
    """One life of a shim's daemon, and all that it meets: the client, and the receiver of its events."""

    def __init__(self, shim: Shim, folder: str, host: FakeHost, calls: Callable[[FakeHost, str], Calls]) -> None:
        bound = address.bind(os.path.join(folder, "s"))
        if bound is None:
            raise WarmUpError(f"another process listens in {folder}")
        os.environ["TTRPC_ADDRESS"] = bound.path
        own = object.__new__(type(shim))
        own.__dict__.update(shim.__dict__)
        own.__dict__.update(
            flags=Flags(namespace=_NAMESPACE, id=_NAMESPACE),
            config=shim.config._replace(no_sub_reaper=True, no_setup_logger=True),
            services=lambda daemon: self._services(type(shim).services(own, daemon)),
            _exit=None,
        )
        self._bound = bound
        self._daemon = LoopDaemon(own, bound)
        self._daemon.pool.submit = self._run_now  # type: ignore[method-assign]
        host.reap = self._daemon.reaper.reap
        self._host = host
        self._calls = calls(host, folder)
        self._client = ClientConnection()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._failure = ""

    def _run_now(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            self._end(f"{type(error).__name__}: {error}")

    def _services(self, own: Sequence[Service]) -> list[Service]:
        return [*own, events_service(self)]

    def forward(self, context: CallContext, request: object, /) -> Empty:
        """Take an event, as containerd would."""
        return Empty()

    def live(self) -> None:
        """Serve from the first call to the last one."""
        loop: Any = self._daemon.loop
        try:
            self._sock.connect(self._bound.path)
            self._sock.setblocking(False)
            loop.register(self._sock.fileno(), READABLE, self._answered)
            limit = loop.call_later(_LIMIT_S, lambda: self._end("took too long"))
            self._ask(next(self._calls))
            self._daemon.serve()
            limit.cancel()
        finally:
            self._host.reap = lambda: None
            self._calls.close()
            self._sock.close()
            loop.close()
            if self._daemon.logger.fd >= 0:
                os.close(self._daemon.logger.fd)
            self._bound.remove()
            self._bound.listener.close()
        if self._failure:
            raise WarmUpError(self._failure)

    def _ask(self, call: tuple[str, str, bytes]) -> None:
        service, method, request = call
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
            self._ask(self._calls.send(event.payload))
        except StopIteration:
            self._end("")
        except Exception as error:  # that of the calls, for which there is no other to hear of it
            self._end(f"{type(error).__name__}: {error}")

    def _end(self, failure: str) -> None:
        self._failure = self._failure or failure
        self._daemon.loop.unregister(self._sock.fileno())
        self._sock.close()
        self._daemon.request_shutdown()
