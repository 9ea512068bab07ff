"""What a ttrpc connection tells its owner: frozen values, no behaviour."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

MethodT = TypeVar("MethodT")


class RequestReceived(NamedTuple, Generic[MethodT]):
    """A client called `method`; `timeout_ns` counts from arrival, 0 means no deadline, below 0 already over.

    For a client's stream the messages follow as events of their own, and `payload` is empty.
    """

    stream_id: int
    method: MethodT
    payload: bytes
    timeout_ns: int
    metadata: tuple[tuple[str, str], ...]


class MessageReceived(NamedTuple):
    """One message of a stream."""

    stream_id: int
    payload: bytes


class EndReceived(NamedTuple):
    """The peer sends no more messages on this stream; for a client the call has ended well."""

    stream_id: int


class ResponseReceived(NamedTuple):
    """The server ended a call; `code` 0 is success and `payload` then holds the message, where there is one."""

    stream_id: int
    code: int
    message: str
    payload: bytes
    details: tuple[tuple[str, bytes], ...] = ()


class FaultReceived(NamedTuple):
    """The peer broke the protocol within one call, which has ended by that; the connection goes on."""

    stream_id: int
    message: str


ServerEvent = RequestReceived[MethodT] | MessageReceived | EndReceived | FaultReceived
ClientEvent = ResponseReceived | MessageReceived | EndReceived | FaultReceived
