"""What a method of a service is on the wire, as its .proto file declares it; clients and servers share it.

Rule: names, messages and kind; neither handlers nor sockets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from shim.ttrpc._envelope import encode_head
from shim.ttrpc._streams import Kind
from shim.ttrpc.status import RemoteProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from google.protobuf.message import Message

    RequestT = TypeVar("RequestT", bound=Message)
    ResponseT = TypeVar("ResponseT", bound=Message)
else:
    RequestT = TypeVar("RequestT")
    ResponseT = TypeVar("ResponseT")

Metadata = Mapping[str, str] | Sequence[tuple[str, str]]
"""Text that goes with a request: a mapping, or pairs where a key has several values.  Keys are sent in lower case."""


class Rpc(Generic[RequestT, ResponseT]):
    """One rpc of a service: `Rpc("pkg.Service", "Method", Request, Response, Kind.BIDI)`."""

    __slots__ = ("full_name", "head", "kind", "name", "request", "response", "service")

    def __init__(
        self,
        service: str,
        name: str,
        request: type[RequestT],
        response: type[ResponseT],
        kind: Kind = Kind.UNARY,
    ) -> None:
        self.service: str = service
        self.name: str = name
        self.request: type[RequestT] = request
        self.response: type[ResponseT] = response
        self.kind: Kind = kind
        self.full_name: str = f"{service}/{name}"
        self.head: bytes = encode_head(service, name)

    def __repr__(self) -> str:
        return f"Rpc({self.full_name}, {self.kind.name})"

    def decode_response(self, payload: bytes) -> ResponseT:
        """Parse what the server sent.

        Raises:
            RemoteProtocolError: It is not this rpc's response.
        """
        try:
            return self.response.FromString(payload)
        except Exception as error:  # protobuf raises different types per implementation
            raise RemoteProtocolError(f"ttrpc: error unmarshalling payload: {error}", self.full_name) from None


class OutgoingCall(NamedTuple):
    """A call on its way out, which a client's interceptor may change with `_replace`.

    `request` is None where the client streams; `timeout_s` None means no deadline; `cancellation` is the blocking
    client's.
    """

    rpc: Rpc[Any, Any]
    request: Any
    timeout_s: float | None
    metadata: Metadata
    cancellation: Any = None


def metadata_pairs(metadata: Metadata) -> Sequence[tuple[str, str]]:
    """Return metadata as pairs in the order in which they are sent."""
    return list(metadata.items()) if isinstance(metadata, Mapping) else metadata


def timeout_ns(timeout_s: float | None) -> int:
    """Return a deadline as a request carries it: at least 1 ns, since 0 means none, and within 63 bits."""
    return 0 if timeout_s is None else max(1, int(min(timeout_s, 9e9) * 1e9))


def snake_case(name: str) -> str:
    """Return an rpc's name as Python spells methods: `ResizePty` is `resize_pty`, `CloseIO` is `close_io`."""
    out: list[str] = []
    for index, char in enumerate(name):
        if char.isupper() and index:
            follows_lower = name[index - 1].islower() or name[index - 1].isdigit()
            starts_word = index + 1 < len(name) and name[index + 1].islower()
            if (follows_lower or starts_word) and out[-1] != "_":
                out.append("_")
        out.append(char.lower())
    return "".join(out)
