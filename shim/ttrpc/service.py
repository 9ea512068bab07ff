"""Services: what can be called by name, and how a call meets its handler.

Rule: knows messages and handlers, no transport.  A handler takes (context, request) and returns the response message,
or a `Deferred` that will have it later; it raises to answer with a status.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from google.protobuf.message_factory import GetMessageClass

from shim.ttrpc.status import Code, RpcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor
    from google.protobuf.message import Message


class Credentials(NamedTuple):
    """The process on the other end of a unix socket, as of its connect call (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


class CallContext:
    """What a handler may know about its call beyond the request.

    `deadline` is a `time.monotonic()` value or None; `metadata` holds (key, value) pairs in order of arrival.
    """

    __slots__ = ("_cancelled", "deadline", "metadata", "method", "peer")

    def __init__(
        self,
        method: str,
        *,
        timeout_ns: int = 0,
        metadata: tuple[tuple[str, str], ...] = (),
        peer: Credentials | None = None,
    ) -> None:
        self.method = method
        self.metadata = metadata
        self.peer = peer
        self.deadline = time.monotonic() + timeout_ns / 1e9 if timeout_ns else None
        self._cancelled = False

    @property
    def is_cancelled(self) -> bool:
        """True once nobody waits for the answer: the deadline passed or the peer went away."""
        return self._cancelled

    def cancel(self) -> None:
        """Say that the answer is no longer wanted; the handler keeps running."""
        self._cancelled = True

    def remaining(self) -> float | None:
        """Return the seconds until the deadline (never below 0), or None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def values(self, key: str) -> list[str]:
        """Return all metadata values of a key, which is compared without regard to case."""
        wanted = key.lower()
        return [value for name, value in self.metadata if name.lower() == wanted]


class Deferred:
    """An answer that comes later and holds no thread while it is awaited.

    The first of `resolve` and `fail` counts, later ones are ignored; both may be called from any thread.
    `on_abandoned()` is called when nobody waits any more: the deadline has passed or the peer is gone.
    """

    __slots__ = ("_callbacks", "_error", "_lock", "_response", "is_done", "on_abandoned")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[Deferred], None]] = []
        self._response: Message | None = None
        self._error: BaseException | None = None
        self.is_done = False
        self.on_abandoned: Callable[[], None] | None = None

    def resolve(self, response: Message) -> None:
        """Answer with a message."""
        self._finish(response, None)

    def fail(self, error: BaseException) -> None:
        """Answer with the status of an exception."""
        self._finish(None, error)

    def _finish(self, response: Message | None, error: BaseException | None) -> None:
        with self._lock:
            if self.is_done:
                return
            self._response, self._error, self.is_done = response, error, True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def abandon(self) -> None:
        """Say that nobody waits for the answer any more; what is answered after that is dropped."""
        with self._lock:
            if self.is_done:
                return
            self.is_done = True
            self._callbacks.clear()
        if self.on_abandoned is not None:
            self.on_abandoned()

    def on_done(self, callback: Callable[[Deferred], None]) -> None:
        """Call `callback(self)` once done: now if it is, else in the thread that finishes it."""
        with self._lock:
            if not self.is_done:
                self._callbacks.append(callback)
                return
        callback(self)

    def result(self) -> Message | None:
        """Return the response, or raise what the call failed with; only once done."""
        if self._error is not None:
            raise self._error
        return self._response


Handler = Callable[[CallContext, Any], Any]


class Method:
    """One callable method: its wire name, its messages, its handler.

    `is_inline` says that the handler never blocks, so that the event loop may run it itself.
    """

    __slots__ = ("handler", "is_inline", "name", "request", "response")

    def __init__(
        self, name: str, request: type[Message], response: type[Message], handler: Handler, *, is_inline: bool = False
    ) -> None:
        self.name = name
        self.request = request
        self.response = response
        self.handler = handler
        self.is_inline = is_inline

    def decode(self, payload: bytes, service: str) -> Message:
        """Parse a request's payload.

        Raises:
            RpcError: INTERNAL, the payload is not this method's request.
        """
        try:
            return self.request.FromString(payload)
        except Exception as error:  # protobuf raises different types per implementation
            text = f"ttrpc: error unmarshalling payload: {error}"
            raise RpcError(Code.INTERNAL, text, f"{service}/{self.name}") from None

    def encode(self, response: object) -> bytes:
        """Serialise what a handler returned.

        Raises:
            RpcError: INTERNAL, it is not this method's response message.
        """
        if not isinstance(response, self.response):
            got, wanted = type(response).__name__, self.response.DESCRIPTOR.full_name
            raise RpcError(Code.INTERNAL, f"method {self.name} returned {got}, not {wanted}")
        return response.SerializeToString()


class Service:
    """A named set of methods."""

    __slots__ = ("methods", "name")

    def __init__(self, name: str, methods: Mapping[str, Method]) -> None:
        self.name = name
        self.methods = dict(methods)

    @classmethod
    def from_descriptor(
        cls, descriptor: ServiceDescriptor, implementation: object, *, inline: Collection[str] = ()
    ) -> Service:
        """Bind a service of a .proto file to an object with one method per rpc, named in snake case.

        An rpc that the object lacks answers UNIMPLEMENTED.  `inline` names the rpcs whose handlers never block.
        """
        methods: dict[str, Method] = {}
        for rpc in descriptor.methods:
            handler = getattr(implementation, snake_case(rpc.name), None)
            if handler is None:
                continue
            request, response = GetMessageClass(rpc.input_type), GetMessageClass(rpc.output_type)
            methods[rpc.name] = Method(rpc.name, request, response, handler, is_inline=rpc.name in inline)
        return cls(descriptor.full_name, methods)


def snake_case(name: str) -> str:
    """Return an rpc's name as Python spells methods: `ResizePty` is `resize_pty`, `CloseIO` is `close_io`."""
    out = []
    for index, char in enumerate(name):
        if char.isupper() and index:
            follows_lower = name[index - 1].islower()
            starts_word = index + 1 < len(name) and name[index + 1].islower()
            if follows_lower or starts_word:
                out.append("_")
        out.append(char.lower())
    return "".join(out)


class ServiceTable:
    """All services of one server, found by name."""

    __slots__ = ("_services",)

    def __init__(self, services: Collection[Service]) -> None:
        self._services: dict[str, Service] = {}
        for service in services:
            if service.name in self._services:
                raise ValueError(f"duplicate service {service.name} registered")
            self._services[service.name] = service

    def find(self, service: str, method: str) -> Method:
        """Return the method.

        Raises:
            RpcError: UNIMPLEMENTED with the text that containerd's fallback from task v3 to v2 expects.
        """
        found = self._services.get(service)
        if found is None:
            raise RpcError(Code.UNIMPLEMENTED, f"service {service}")
        try:
            return found.methods[method]
        except KeyError:
            raise RpcError(Code.UNIMPLEMENTED, f"method {method}") from None
