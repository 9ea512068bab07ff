"""Services: what can be called by name, and how a call meets its handler.

Rule: knows messages and handlers, no transport.  A handler takes (context, request), or (context, stream) where the
client streams, and returns the response, a `Deferred` that will have it later, or an iterable where the server streams;
it raises to answer with a status.  Coroutine functions and asynchronous generators are for the asyncio server.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from google.protobuf.message_factory import GetMessageClass

from shim.ttrpc._envelope import encode_head
from shim.ttrpc._streams import Kind
from shim.ttrpc.context import CallContext, Credentials, Deferred
from shim.ttrpc.rpc import Metadata, Rpc, snake_case
from shim.ttrpc.status import Code, RpcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
    from google.protobuf.message import Message

__all__ = [
    "CallContext",
    "Credentials",
    "Deferred",
    "Endpoint",
    "Handler",
    "Interceptor",
    "Metadata",
    "Method",
    "Service",
    "ServiceTable",
    "snake_case",
]

Handler = Callable[[CallContext, Any], Any]
Interceptor = Callable[[CallContext, Any, Handler], Any]
"""Stands around every call: `def log(context, request, handler): return handler(context, request)`."""

Step = Callable[[Handler], Handler]
"""Makes a plain handler of a coroutine function: it runs it, and returns a Deferred when that has to wait."""

_CO_ASYNC = 0x80 | 0x200  # coroutine functions and asynchronous generators; `inspect` is too dear for two numbers


class Method:
    """One callable method: its wire name, its messages, its kind, its handler.

    `is_inline` says that the handler never blocks, so that the event loop may run it itself.
    """

    __slots__ = ("handler", "is_inline", "kind", "name", "request", "response")

    def __init__(
        self,
        name: str,
        request: type[Message],
        response: type[Message],
        handler: Handler,
        *,
        kind: Kind = Kind.UNARY,
        is_inline: bool = False,
    ) -> None:
        self.name: str = name
        self.request: type[Message] = request
        self.response: type[Message] = response
        self.handler: Handler = handler
        self.kind: Kind = kind
        self.is_inline: bool = is_inline

    @property
    def is_async(self) -> bool:
        """True when the handler is a coroutine function or an asynchronous generator."""
        handler: Any = self.handler
        while True:
            if hasattr(handler, "__wrapped__"):  # functools.wraps says what a decorator stands around
                handler = handler.__wrapped__
            elif isinstance(handler, partial):
                handler = handler.func
            else:
                break
        if not hasattr(handler, "__code__") and not hasattr(handler, "__func__"):
            handler = type(handler).__call__
        code = getattr(getattr(handler, "__func__", handler), "__code__", None)
        return code is not None and bool(code.co_flags & _CO_ASYNC)


class Service:
    """A named set of methods."""

    __slots__ = ("methods", "name")

    def __init__(self, name: str, methods: Mapping[str, Method]) -> None:
        self.name: str = name
        self.methods: dict[str, Method] = dict(methods)

    @classmethod
    def bind(cls, rpcs: Sequence[Rpc[Any, Any]], implementation: object, *, inline: Collection[str] = ()) -> Service:
        """Bind the rpcs of one service to an object with one method for each, named in snake case.

        An rpc that the object lacks answers UNIMPLEMENTED.  `inline` names the rpcs whose handlers never block.

        Raises:
            ValueError: The rpcs are of several services, or there are none; or `inline` names an unknown one.
        """
        services = sorted({rpc.service for rpc in rpcs})
        if len(services) != 1:
            raise ValueError(f"the rpcs of one service are wanted, these are of {services}")
        unknown = set(inline) - {rpc.name for rpc in rpcs}
        if unknown:
            raise ValueError(f"service {services[0]} has no rpc {', '.join(sorted(unknown))}")
        methods: dict[str, Method] = {}
        for rpc in rpcs:
            handler = getattr(implementation, snake_case(rpc.name), None)
            if handler is not None:
                methods[rpc.name] = Method(
                    rpc.name, rpc.request, rpc.response, handler, kind=rpc.kind, is_inline=rpc.name in inline
                )
        return cls(services[0], methods)

    @classmethod
    def from_descriptor(
        cls, descriptor: ServiceDescriptor, implementation: object, *, inline: Collection[str] = ()
    ) -> Service:
        """Like `bind`, for a service as protobuf's generated module describes it."""
        return cls.bind(
            [_rpc_of(descriptor.full_name, method) for method in descriptor.methods], implementation, inline=inline
        )


class LateService(Service):
    """A service that is made when its first call comes: for what most servers are never asked, and costs to load.

    `make` runs in the server's loop, once.  Its handlers must be of a kind that the server can run.
    """

    __slots__ = ("make",)

    def __init__(self, name: str, make: Callable[[], Service]) -> None:
        super().__init__(name, {})
        self.make: Callable[[], Service] = make


def _rpc_of(service: str, method: MethodDescriptor) -> Rpc[Any, Any]:
    kind = Kind(method.server_streaming + 2 * method.client_streaming)
    return Rpc(service, method.name, GetMessageClass(method.input_type), GetMessageClass(method.output_type), kind)


class Endpoint:
    """A method as one server serves it: under its full name, behind the server's interceptors."""

    __slots__ = (
        "_method",
        "from_string",
        "full_name",
        "handler",
        "is_async",
        "is_inline",
        "is_quick",
        "kind",
        "response",
    )

    def __init__(
        self, service: str, method: Method, interceptors: Sequence[Interceptor] = (), step: Step | None = None
    ) -> None:
        self._method = method
        self.full_name: str = f"{service}/{method.name}"
        self.kind: Kind = method.kind
        self.is_inline: bool = method.is_inline
        self.is_async: bool = method.is_async
        self.from_string: Callable[[bytes], Message] = method.request.FromString
        self.response: type[Message] = method.response
        self.handler: Handler = method.handler
        for interceptor in reversed(interceptors):
            self.handler = _intercepted(interceptor, self.handler)
        if step is not None and self.is_async and self.is_inline and not self.kind:
            self.handler = step(self.handler)
            self.is_async = False
        self.is_quick: bool = self.is_inline and not self.is_async and not self.kind  # from request to answer in one go

    def decode(self, payload: bytes) -> Message:
        """Parse a request's payload.

        Raises:
            RpcError: INTERNAL, the payload is not this method's request.
        """
        try:
            return self.from_string(payload)
        except Exception as error:  # protobuf raises different types per implementation
            text = f"ttrpc: error unmarshalling payload: {error}"
            raise RpcError(Code.INTERNAL, text, self.full_name) from None

    def encode(self, response: object) -> bytes:
        """Serialise what a handler returned.

        Raises:
            RpcError: INTERNAL, it is not this method's response message.
        """
        if not isinstance(response, self.response):
            got, wanted = type(response).__name__, self.response.DESCRIPTOR.full_name
            raise RpcError(Code.INTERNAL, f"method {self._method.name} returned {got}, not {wanted}")
        return response.SerializeToString()


def _intercepted(interceptor: Interceptor, handler: Handler) -> Handler:
    return lambda context, request: interceptor(context, request, handler)


class ServiceTable:
    """All services of one server, found by name.

    `heads` has the methods by the encoded names that a request begins with, the short way.
    """

    __slots__ = ("_interceptors", "_late", "_services", "_step", "heads")

    def __init__(
        self, services: Iterable[Service] = (), interceptors: Sequence[Interceptor] = (), step: Step | None = None
    ) -> None:
        self._services: dict[str, dict[str, Endpoint]] = {}
        self._late: dict[str, LateService] = {}
        self._interceptors = tuple(interceptors)
        self._step = step
        self.heads: dict[bytes, Endpoint] = {}
        for service in services:
            self.add(service)

    @property
    def endpoints(self) -> list[Endpoint]:
        """Every method of every service."""
        return list(self.heads.values())

    def add(self, service: Service) -> None:
        """Add a service.

        Raises:
            ValueError: There is one of that name.
        """
        if service.name in self._services or service.name in self._late:
            raise ValueError(f"duplicate service {service.name} registered")
        if isinstance(service, LateService):
            self._late[service.name] = service
            return
        endpoints = {
            name: Endpoint(service.name, method, self._interceptors, self._step)
            for name, method in service.methods.items()
        }
        self._services[service.name] = endpoints
        self.heads.update({encode_head(service.name, name): endpoint for name, endpoint in endpoints.items()})

    def find(self, service: str, method: str) -> Endpoint:
        """Return the method.

        Raises:
            RpcError: UNIMPLEMENTED with the text that containerd's fallback from task v3 to v2 expects.
        """
        if service in self._late:
            made = self._late[service].make()
            del self._late[service]
            self.add(made)
        found = self._services.get(service)
        if found is None:
            raise RpcError(Code.UNIMPLEMENTED, f"service {service}")
        try:
            return found[method]
        except KeyError:
            raise RpcError(Code.UNIMPLEMENTED, f"method {method}") from None
