"""A server on a loop that somebody else runs: listeners, connections, services, limits, and the way to an end.

Rule: the loop never waits for a handler, a handler never for a slow reader, and one bad call never ends a connection.
`Server` runs it on a loop of its own, `aio.Server` on asyncio's, a shim's daemon on the loop that serves its stdio too.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from shim.ttrpc.address import SocketFile, listen, remove_socket_file, socket_file
from shim.ttrpc.calls import Call, OpenCall, ServerStream
from shim.ttrpc.context import Credentials
from shim.ttrpc.loop import READABLE, EventLoop
from shim.ttrpc.peer import Peer
from shim.ttrpc.pool import WorkerPool
from shim.ttrpc.service import Interceptor, Service, ServiceTable, Step
from shim.ttrpc.status import Code, RpcError

_ACCEPT_RETRY_S: Final = 0.5


class Limits(NamedTuple):
    """What peers may make a server hold.

    0 `connections` or `calls` means any number.  `connections` beyond the limit wait to be accepted; `calls` in flight
    beyond it, on one connection, are answered with RESOURCE_EXHAUSTED.  Above `unsent_bytes` of answers that a peer
    does not read, it is not read from either.  A handler that takes none of its client's messages stops the reading
    too, for at most `stall_s` seconds: then its call ends with RESOURCE_EXHAUSTED and the others of the connection go
    on.
    """

    connections: int = 0
    calls: int = 0
    unsent_bytes: int = 8 << 20
    stall_s: float = 1.0


def peer_credentials(sock: socket.socket) -> Credentials | None:
    """Return who is on the other end of a unix socket, or None where the system cannot tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None or sock.family != socket.AF_UNIX:
        return None
    return Credentials(*struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, option, 12)))


def same_user(credentials: Credentials | None) -> bool:
    """Admit only this process's effective user and group, as containerd's servers do."""
    return credentials is None or (credentials.uid == os.geteuid() and credentials.gid == os.getegid())


class LoopServer:
    """Serves services on listening or connected sockets; its methods belong to the loop's thread.

    `authorize` may refuse a peer by its credentials, and may block: it runs in the pool.  `on_fault` gets exceptions
    that no handler should raise (the peer gets UNKNOWN), `on_refused` the peers that were refused.  `step` is what a
    loop that runs coroutines adds.
    """

    def __init__(
        self,
        services: Iterable[Service],
        loop: EventLoop,
        pool: WorkerPool,
        *,
        interceptors: Sequence[Interceptor] = (),
        authorize: Callable[[Credentials | None], bool] = same_user,
        limits: Limits | None = None,
        step: Step | None = None,
        on_fault: Callable[[str, BaseException], None] = lambda _method, _error: None,
        on_refused: Callable[[Credentials | None], None] = lambda _credentials: None,
    ) -> None:
        self.loop = loop
        self.pool = pool
        self.table: ServiceTable = ServiceTable((), interceptors, step)
        self._runs_coroutines = step is not None
        self.limits: Limits = limits or Limits()
        self._on_fault = on_fault
        self.is_draining: bool = False
        self.on_deserted: Callable[[], None] | None = None  # called when the last connection has ended
        self.is_plain: bool = not self.limits.calls  # nothing but its handler decides what a call is answered
        self._authorize = authorize
        self._on_refused = on_refused
        self._listeners: dict[int, socket.socket] = {}
        self._files: list[SocketFile] = []
        self._peers: set[Peer] = set()
        self._asking = 0  # peers of whom `authorize` has not said yet
        self._on_drained: Callable[[], None] | None = None
        self._lock = threading.RLock()  # stop may be called by a signal's handler, in the thread that holds it
        for service in services:
            self.register(service)

    @property
    def connections(self) -> int:
        """How many peers are connected."""
        return len(self._peers)

    def open_calls(self) -> list[OpenCall]:
        """Return the calls that wait for their answer, those that a `Deferred` will answer among them."""
        return [call for peer in list(self._peers) for call in peer.open_calls()]

    def register(self, service: Service) -> None:
        """Add a service; calls find it at once.

        Raises:
            ValueError: There is one of that name.
            TypeError: A handler is of a kind that this server cannot run.
        """
        for method in service.methods.values():
            if method.is_async and not self._runs_coroutines:
                name = f"{service.name}/{method.name}"
                raise TypeError(f"the handler of {name} is a coroutine function: shim.ttrpc.aio.Server runs those")
        self.table.add(service)

    def listen(self, address: str, *, backlog: int = 128) -> None:
        """Bind an address (as `connect` takes it) and accept connections; the end of the server removes the socket.

        A socket file that nobody listens on any more is replaced.

        Raises:
            ValueError: The address is no ttrpc address.
            OSError: It cannot be bound; the message names the address.
            RuntimeError: The server has ended.
        """
        if self.is_draining:
            raise RuntimeError(f"cannot listen on {address}: the server has ended")
        sock = listen(address, backlog)
        file = socket_file(sock)
        if file is not None:
            self._files.append(file)
        self.add_listener(sock)

    def add_listener(self, sock: socket.socket) -> None:
        """Accept connections on a listening socket; the server owns it from here."""
        sock.setblocking(False)
        with self._lock:
            if not self.is_draining:
                self._listeners[sock.fileno()] = sock
                self.loop.register(sock.fileno(), READABLE, lambda _events: self._accept(sock))
                return
        sock.close()

    def add_connection(self, sock: socket.socket) -> None:
        """Serve one connected socket; the server owns it from here."""
        sock.setblocking(False)
        self._peers.add(Peer(self, sock, peer_credentials(sock)))

    def close(self) -> None:
        """Close every listener and connection at once; calls in flight are given up."""
        self.close_listeners()
        for peer in list(self._peers):
            peer.close()

    def close_listeners(self) -> None:
        """Stop accepting; connections live on."""
        with self._lock:
            listeners, self._listeners = self._listeners, {}
        for fd, sock in listeners.items():
            self.loop.unregister(fd)
            sock.close()
        while self._files:
            remove_socket_file(self._files.pop())

    def shutdown(self, grace_s: float, on_drained: Callable[[], None]) -> None:
        """Stop accepting, refuse new calls, and call `on_drained()` once those in flight have been answered.

        After `grace_s` seconds the remaining ones are given up; then every connection is closed.  Runs on the loop.
        """
        self.is_draining = True
        self.is_plain = False
        self.close_listeners()
        self._on_drained = on_drained
        self.loop.call_later(grace_s, self._finish_shutdown)
        self.check_drained()

    def check_drained(self) -> None:
        """End a shutdown that only waited for the last answer; runs on the loop."""
        if self.is_draining and all(peer.is_idle for peer in self._peers):
            self._finish_shutdown()

    def _finish_shutdown(self) -> None:
        done, self._on_drained = self._on_drained, None
        if done is None:
            return
        for peer in list(self._peers):
            peer.close()
        done()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            if self.limits.connections and len(self._peers) + self._asking >= self.limits.connections:
                self._watch_listeners(0)
                return
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors: the backlog keeps the peers until some are free
                if listener.fileno() in self._listeners:
                    self.report("accept", error)
                    self._watch_listeners(0)
                    self.loop.call_later(_ACCEPT_RETRY_S, lambda: self._watch_listeners(READABLE))
                return
            credentials = peer_credentials(sock)
            if self._authorize is same_user:
                self._admit(sock, credentials, is_welcome=same_user(credentials))
            else:  # somebody's own rule may take its time
                self._asking += 1
                self.pool.submit(partial(self._ask, sock, credentials))

    def _ask(self, sock: socket.socket, credentials: Credentials | None) -> None:
        """Let `authorize` decide; in a thread of the pool."""
        try:
            is_welcome = self._authorize(credentials)
        except Exception as error:  # a hook's fault refuses one peer
            self.report("authorize", error)
            is_welcome = False
        self.loop.call_soon(lambda: self._answer_asked(sock, credentials, is_welcome))

    def _answer_asked(self, sock: socket.socket, credentials: Credentials | None, is_welcome: bool) -> None:
        self._asking -= 1
        self._admit(sock, credentials, is_welcome=is_welcome)
        if self.limits.connections and not is_welcome:
            self._watch_listeners(READABLE)

    def _admit(self, sock: socket.socket, credentials: Credentials | None, *, is_welcome: bool) -> None:
        if is_welcome and not self.is_draining:
            sock.setblocking(False)
            self._peers.add(Peer(self, sock, credentials))
            return
        if not is_welcome:
            self.guard("on_refused", lambda: self._on_refused(credentials))
        sock.close()

    def _watch_listeners(self, events: int) -> None:
        for fd in list(self._listeners):
            self.loop.modify(fd, events)

    # For the server's parts.

    def report(self, where: str, error: BaseException) -> None:
        """Hand an exception that is no answer to `on_fault`, which must not make it worse."""
        try:
            self._on_fault(where, error)
        except Exception:  # noqa: S110  # there is nobody left to tell
            pass

    def guard(self, method: str, step: Callable[[], object]) -> None:
        """Run an author's callback; its fault is reported and ends nothing else."""
        try:
            step()
        except Exception as error:
            self.report(method, error)

    def forget(self, peer: Peer) -> None:
        """Drop a closed connection from the books."""
        self._peers.discard(peer)
        if not self._peers and self.on_deserted is not None:
            self.on_deserted()
        if self.limits.connections:
            self._watch_listeners(READABLE)

    def run(self, call: Call) -> None:
        """Run a call's handler: here if it never blocks, else on a thread."""
        if call.endpoint.is_inline and not call.endpoint.kind:
            call.run()
            return
        try:
            self.pool.submit(call.run)
        except RuntimeError as error:
            call.fail(RpcError(Code.RESOURCE_EXHAUSTED, str(error), call.context.method))

    def drive(self, call: Call, result: Any) -> None:
        """Await what a handler returned; any thread.

        Raises:
            TypeError: This server runs no coroutines.
        """
        if hasattr(result, "close"):
            result.close()
        raise TypeError(f"the handler of {call.endpoint.full_name} returned something to await")

    def make_stream(self, call: Call) -> Any:
        """Return what the handler of a client's stream gets."""
        return ServerStream(call)
