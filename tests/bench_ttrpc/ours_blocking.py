"""This project's blocking server and client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from google.protobuf.empty_pb2 import Empty

from shim.ttrpc import CallContext, Server, ServerStream, Service, connect
from tests.bench_ttrpc.loads import drive_blocking, serve_until_told
from tests.bench_ttrpc.rpcs import DIVIDE, ECHO, ECHO_NULL, ECHO_STREAM, RPCS, answer, parts
from tests.protos.conformance_pb2 import Part, Payload, Total


class Conformance:
    """The handlers; asyncio's server runs them too."""

    def echo(self, _context: CallContext, request: Payload) -> Payload:
        """Answer with the same."""
        return answer(request)

    def echo_stream(self, _context: CallContext, stream: ServerStream[Payload, Payload]) -> Iterator[Payload]:
        """Answer each message."""
        for request in stream:
            yield answer(request)

    def echo_null(self, _context: CallContext, stream: ServerStream[Payload, Empty]) -> Empty:
        """Answer once at the end."""
        for _ in stream:
            pass
        return Empty()

    def divide(self, _context: CallContext, request: Total) -> Iterator[Part]:
        """Send many."""
        return parts(request)


class Client:
    """The calls."""

    def __init__(self, address: str) -> None:
        self._client = connect(f"unix://{address}")

    def echo(self, request: Payload) -> Payload:
        """Call Echo."""
        return self._client.call(ECHO, request)

    @contextmanager
    def ping_pong(self) -> Iterator[Callable[[Payload], Payload]]:
        """Open EchoStream."""
        with self._client.open(ECHO_STREAM) as stream:

            def exchange(request: Payload) -> Payload:
                stream.send(request)
                received = stream.recv()
                if received is None:
                    raise RuntimeError("the stream has ended")
                return received

            yield exchange
            stream.close_send()
            if stream.recv() is not None:
                raise RuntimeError("an answer too many")

    def upload(self, messages: Iterator[Payload]) -> None:
        """Call EchoNull."""
        with self._client.open(ECHO_NULL) as stream:
            for message in messages:
                stream.send(message)
            stream.close_and_recv()

    def download(self, count: int) -> int:
        """Call Divide."""
        with self._client.open(DIVIDE, Total(sum=count, count=count)) as stream:
            return sum(1 for _ in stream)


def serve(address: str, variant: str) -> None:
    """Serve with Echo run by the loop (`inline`) or in a thread (`pool`)."""
    server = Server([Service.bind(RPCS, Conformance(), inline=["Echo"] if variant == "inline" else [])])
    server.listen(f"unix://{address}")
    serve_until_told()
    server.serve()


def drive(address: str, _variant: str) -> None:
    """Call as told."""
    drive_blocking(Client(address))
