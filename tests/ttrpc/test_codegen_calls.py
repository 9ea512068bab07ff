"""Generated modules at work: their clients call their services over a socket."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim import ttrpc
from shim.ttrpc import aio
from tests.protos.conformance_ttrpc import AsyncConformanceService, conformance_service
from tests.ttrpc import typed_user

# Echo's number and one; twice the number of metadata pairs, the second with the sum; the sum; the echo; one null.
ANSWERS = [2, 1, 6, 13, 8, 1]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[ttrpc.Client]:
    """A client of a server with blocking handlers."""
    path = str(tmp_path / "server.sock")
    server = ttrpc.Server(typed_user.make_services(typed_user.Blocking()))
    server.listen(path)
    with server, ttrpc.connect(path) as client:
        yield client


def test_every_kind_of_method_is_called(client: ttrpc.Client) -> None:
    """From stub to handler and back."""
    assert ANSWERS == typed_user.call(client)


@pytest.mark.parametrize("number", range(5))
def test_what_a_subclass_leaves_out_answers_unimplemented(client: ttrpc.Client, number: int) -> None:
    """Whatever its kind: an rpc that is added to a .proto file breaks no server."""
    call = [*typed_user.call_what_is_left_out(client)][number]
    with pytest.raises(ttrpc.RpcError, match=r"method (State|Wait|Stream|EchoNull|FailStream)$") as caught:
        call()

    assert ttrpc.Code.UNIMPLEMENTED == caught.value.code


@pytest.mark.parametrize("implementation", [typed_user.Asynchronous(), typed_user.Blocking()])
def test_every_kind_of_method_is_called_from_asyncio(
    tmp_path: Path, implementation: typed_user.Asynchronous | typed_user.Blocking
) -> None:
    """Its server takes handlers of both styles."""

    async def serve_and_call() -> list[int]:
        server = aio.Server(typed_user.make_services(implementation))
        server.listen(str(tmp_path / "server.sock"))
        async with server, await aio.connect(str(tmp_path / "server.sock")) as client:
            return await typed_user.call_from_asyncio(client)

    assert ANSWERS == asyncio.run(serve_and_call())


def test_what_an_asyncio_subclass_leaves_out_answers_unimplemented(tmp_path: Path) -> None:
    """For each kind of method too."""

    async def serve_and_call() -> list[int]:
        server = aio.Server([conformance_service(AsyncConformanceService())])
        server.listen(str(tmp_path / "server.sock"))
        codes: list[int] = []
        async with server, await aio.connect(str(tmp_path / "server.sock")) as client:
            async for call in typed_user.call_what_is_left_out_from_asyncio(client):
                with pytest.raises(ttrpc.RpcError) as caught:
                    await call
                codes.append(caught.value.code)
        return codes

    assert [ttrpc.Code.UNIMPLEMENTED] * 4 == asyncio.run(serve_and_call())
