"""A loop, an engine without a runtime, and pyrunc's daemon on a fake one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.api import task_v3_pb2
from tests.engine.caller import Caller
from tests.engine.served import Served
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


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One daemon for most tests, each with containers of its own; it must have met no fault in the end."""
    with Served(tmp_path_factory.mktemp("served")) as served:
        yield served
        assert served.process.poll() is None
        assert [] == [
            line for line in served.log.read_text().splitlines() if "level=error" in line and "cgroup" not in line
        ]
        assert [] == served.containerd.faults


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    """A daemon for tests that end it."""
    with Served(tmp_path) as served:
        yield served


@pytest.fixture
def caller(request: pytest.FixtureRequest, tmp_path: Path, thread: LoopThread) -> Iterator[Caller]:
    """A client, of task v3 if not said otherwise."""
    caller = Caller(tmp_path, thread, getattr(request, "param", task_v3_pb2))
    yield caller
    assert 0 == caller.daemon.reaper.windows
