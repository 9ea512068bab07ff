"""grpcio's blocking server and client."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Final

from google.protobuf.empty_pb2 import Empty

from shim.ttrpc import Rpc
from tests.bench_ttrpc.loads import drive_blocking, serve_until_told
from tests.bench_ttrpc.rpcs import (
    ALL_MESSAGES,
    DIVIDE,
    ECHO,
    ECHO_NULL,
    ECHO_STREAM,
    RPCS,
    SERVICE,
    answer,
    parts,
)
from tests.protos.conformance_pb2 import Part, Payload, Total

grpc: Any = importlib.import_module("grpc")  # it ships no types

OPTIONS: Final = [("grpc.max_receive_message_length", ALL_MESSAGES), ("grpc.max_send_message_length", ALL_MESSAGES)]
_THREADS: Final = 16  # of its pool, which does not grow; a stream holds one


def _echo(request: Payload, _context: object) -> Payload:
    return answer(request)


def _echo_stream(requests: Iterator[Payload], _context: object) -> Iterator[Payload]:
    return map(answer, requests)


def _echo_null(requests: Iterator[Payload], _context: object) -> Empty:
    for _ in requests:
        pass
    return Empty()


def _divide(request: Total, _context: object) -> Iterator[Part]:
    return parts(request)


def handlers(functions: list[Callable[..., Any]]) -> Any:
    """Return what grpc wants for the rpcs, in their order."""
    made = {}
    for rpc, function in zip(RPCS, functions, strict=True):
        name = f"{_side(rpc.kind.has_client_stream)}_{_side(rpc.kind.has_server_stream)}_rpc_method_handler"
        made[rpc.name] = getattr(grpc, name)(function, rpc.request.FromString, rpc.response.SerializeToString)
    return grpc.method_handlers_generic_handler(SERVICE, made)


def stub(channel: Any, rpc: Rpc[Any, Any]) -> Any:
    """Return what calls the rpc on a channel, blocking or asyncio's."""
    kind = f"{_side(rpc.kind.has_client_stream)}_{_side(rpc.kind.has_server_stream)}"
    return getattr(channel, kind)(f"/{rpc.full_name}", rpc.request.SerializeToString, rpc.response.FromString)


def _side(is_stream: bool) -> str:
    return "stream" if is_stream else "unary"


class Client:
    """The calls."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(f"unix:{address}", options=OPTIONS)
        self.echo: Callable[[Payload], Payload] = stub(self._channel, ECHO)
        self.upload: Callable[[Iterator[Payload]], None] = stub(self._channel, ECHO_NULL)
        self._echo_stream = stub(self._channel, ECHO_STREAM)
        self._divide = stub(self._channel, DIVIDE)

    @contextmanager
    def ping_pong(self) -> Iterator[Callable[[Payload], Payload]]:
        """Open EchoStream."""
        requests: SimpleQueue[Payload | None] = SimpleQueue()
        responses = self._echo_stream(iter(requests.get, None))

        def exchange(request: Payload) -> Payload:
            requests.put(request)
            received: Payload = next(responses)
            return received

        yield exchange
        requests.put(None)
        if any(True for _ in responses):
            raise RuntimeError("an answer too many")

    def download(self, count: int) -> int:
        """Call Divide."""
        return sum(1 for _ in self._divide(Total(sum=count, count=count)))


def serve(address: str, _variant: str) -> None:
    """Serve."""
    server = grpc.server(ThreadPoolExecutor(_THREADS), options=OPTIONS)
    server.add_generic_rpc_handlers((handlers([_echo, _echo_stream, _echo_null, _divide]),))
    server.add_insecure_port(f"unix:{address}")
    server.start()
    serve_until_told()
    server.wait_for_termination()


def drive(address: str, _variant: str) -> None:
    """Call as told."""
    drive_blocking(Client(address))
