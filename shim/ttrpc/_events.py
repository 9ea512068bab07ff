"""What a ttrpc connection tells its owner: frozen values, no behaviour."""

from __future__ import annotations

from typing import NamedTuple


class RequestReceived(NamedTuple):
    """A client called `service`/`method`; `timeout_ns` counts from arrival, 0 means no deadline."""

    stream_id: int
    service: str
    method: str
    payload: bytes
    timeout_ns: int
    metadata: tuple[tuple[str, str], ...]


class ResponseReceived(NamedTuple):
    """The server answered a call; `code` 0 is success and `payload` then holds the message."""

    stream_id: int
    code: int
    message: str
    payload: bytes
