"""Servers to call."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ttrpc.echo import EchoServer


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[EchoServer]:
    """A server; no error may have reached its loop or its pool by the end."""
    with EchoServer(tmp_path / "echo.sock") as server:
        yield server
    assert [] == server.thread.errors
