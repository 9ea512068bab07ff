"""Every pairing of a client and a server; peers that speak bytes on either side."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ttrpc.conformance.ends import KINDS, End, make_end
from tests.ttrpc.conformance.scene import Scene
from tests.ttrpc.conformance.script import Script, dial, pair
from tests.ttrpc.conformance.servers import STYLES, ServerEnd

Connect = Callable[..., End]


@pytest.fixture(params=STYLES)
def style(request: pytest.FixtureRequest) -> str:
    """Which server, and how its handlers are written."""
    return str(request.param)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which client."""
    return str(request.param)


@pytest.fixture
def address(tmp_path: Path) -> str:
    """Where the server listens."""
    return f"unix://{tmp_path}/s"


@pytest.fixture
def serve(style: str, address: str) -> Iterator[Callable[..., ServerEnd]]:
    """Make a server with other than the usual arguments."""
    servers: list[ServerEnd] = []

    def make(**options: Any) -> ServerEnd:
        servers.append(ServerEnd(style, address, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.dispose()


@pytest.fixture
def server(serve: Callable[..., ServerEnd]) -> Iterator[ServerEnd]:
    """A server; no handler may have failed other than as told by the end."""
    made = serve()
    yield made
    assert [] == made.faults


@pytest.fixture
def scene(server: ServerEnd) -> Scene:
    """What the server's handlers tell."""
    return server.scene


@pytest.fixture
def connect(kind: str) -> Iterator[Connect]:
    """Make a client of the kind at hand; its arguments are those of `make_end`."""
    ends: list[End] = []

    def make(*args: Any, **options: Any) -> End:
        ends.append(make_end(kind, *args, **options))
        return ends[-1]

    yield make
    for end in ends:
        end.dispose()


@pytest.fixture
def client(connect: Connect, server: ServerEnd) -> End:
    """A client of the server."""
    return connect(server.address)


@pytest.fixture
def raw(server: ServerEnd) -> Iterator[Script]:
    """A client of the server that speaks bytes."""
    script = dial(server.address)
    yield script
    script.close()


@pytest.fixture
def scripted(connect: Connect) -> Iterator[tuple[Script, End]]:
    """A server that speaks bytes, and a client of it."""
    script, sock = pair()
    yield script, connect(sock)
    script.close()
