"""A loop, and an engine without a runtime."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.world import World
from tests.fakes import LoopThread


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    """A loop in a thread of its own; no error may have reached it by the end."""
    with LoopThread() as thread:
        yield thread
    assert [] == thread.errors


@pytest.fixture
def world(tmp_path: Path, thread: LoopThread) -> Iterator[World]:
    """An engine; no window may be open at its end."""
    world = World(tmp_path, thread)
    yield world
    os.close(world.logger.fd)
    assert 0 == world.reaper.windows
