"""Shims to run as programs."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.home import Home, Make


@pytest.fixture(params=["fork", "reexec"])
def spawn(request: pytest.FixtureRequest) -> str:
    """Each way to become a daemon."""
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder with a path short enough for sockets named by a hash."""
    with tempfile.TemporaryDirectory(prefix="tiny") as folder:
        yield Path(folder)


@pytest.fixture
def home(tmp_path: Path, sockets: Path) -> Home:
    """A shim that will not leave a daemon."""
    return Home(tmp_path, sockets, "reexec")


@pytest.fixture
def nest(tmp_path: Path, sockets: Path, spawn: str) -> Iterator[Home]:
    """A shim that may leave a daemon, which is ended here in good order."""
    home = Home(tmp_path, sockets, spawn)
    yield home
    home.close()


@pytest.fixture(params=["blocking", "asyncio"])
def style(request: pytest.FixtureRequest) -> str:
    """Each kind of shim."""
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture
def make(tmp_path: Path, sockets: Path, spawn: str, style: str) -> Iterator[Make]:
    """A maker of a home for a shim, whose daemon is ended in good order; it must have warned of nothing."""
    homes: list[Home] = []

    def make(name: str) -> Home:
        module = "tests.runtime.shims" if style == "blocking" else "tests.runtime.aio_shims"
        home = Home(tmp_path, sockets, spawn, module, name)
        home.python = ("-W", "error")
        homes.append(home)
        return home

    yield make
    for home in homes:
        home.close()
        assert [] == re.findall(r".*(?:Warning|never awaited|destroyed|never retrieved).*", home.log())
