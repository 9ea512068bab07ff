"""The rpcs of tests/protos/conformance.proto that the benchmark calls, as every contender names them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.empty_pb2 import Empty

from shim.ttrpc import Kind, Rpc
from tests.protos.conformance_pb2 import Part, Payload, Total

SERVICE: Final = "shim.conformance.v1.Conformance"
ECHO: Final[Rpc[Payload, Payload]] = Rpc(SERVICE, "Echo", Payload, Payload)
ECHO_STREAM: Final[Rpc[Payload, Payload]] = Rpc(SERVICE, "EchoStream", Payload, Payload, Kind.BIDI)
ECHO_NULL: Final[Rpc[Payload, Empty]] = Rpc(SERVICE, "EchoNull", Payload, Empty, Kind.CLIENT_STREAM)
DIVIDE: Final[Rpc[Total, Part]] = Rpc(SERVICE, "Divide", Total, Part, Kind.SERVER_STREAM)
RPCS: Final[tuple[Rpc[Any, Any], ...]] = (ECHO, ECHO_STREAM, ECHO_NULL, DIVIDE)

ALL_MESSAGES: Final = 16 << 20  # what gRPC's sides are told to accept, so that no limit is in the way


def answer(request: Payload) -> Payload:
    """Return what Echo answers."""
    return Payload(seq=request.seq + 1, data=request.data)


def parts(total: Total) -> Iterator[Part]:
    """Yield what Divide answers, all parts alike: the benchmark counts them only."""
    part = Part(value=1)
    for _ in range(total.count):
        yield part


def check(answered: Payload, request: Payload) -> None:
    """Raise unless `answered` is Echo's answer; by its length, since comparing 1 MiB would be in the figures."""
    if answered.seq != request.seq + 1 or len(answered.data) != len(request.data):
        raise RuntimeError(f"echo of {len(request.data)} bytes came back with {len(answered.data)}")
