"""Shims to run as programs."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.home import Home


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
