"""A client of the Task service without a connection, a process or a runtime in between."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf.message import Message

from shim.engine.config import Config
from shim.engine.service import Engine
from shim.errors import ShimError
from shim.runtime.flags import Flags
from shim.runtime.logger import Logger
from shim.ttrpc.service import CallContext, snake_case
from shim.ttrpc.status import status_of
from tests.engine.world import OWN_PIDS, FakeReaper
from tests.fakes import LoopThread


class FakePublisher:
    """Notes what is published."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Message]] = []

    def publish(self, topic: str, event: Message) -> None:
        """Note it."""
        self.events.append((topic, event))


class FakeDaemon:
    """What the engine uses of its process."""

    def __init__(self, thread: LoopThread) -> None:
        self.flags = Flags(namespace="ns", id="c1")
        self.loop = thread.loop
        self.reaper = FakeReaper()
        self.publisher = FakePublisher()
        self.logger = Logger()
        self.pool = self
        self.shutdowns = 0
        self.is_deserted = False
        self.deserted: list[Callable[[], None]] = []
        self.logs: list[str] = []

    def move_log(self, path: str) -> bool:
        """Note it."""
        self.logs.append(path)
        return True

    def on_deserted(self, callback: Callable[[], None]) -> None:
        """Note whom to tell when the last client has gone."""
        self.deserted.append(callback)

    def submit(self, job: Callable[[], None]) -> None:
        """Run it elsewhere."""
        threading.Thread(target=job).start()

    def on_shutdown(self, callback: Callable[[], None]) -> None:
        """Take it: this daemon never ends."""

    def request_shutdown(self) -> None:
        """Note it."""
        self.shutdowns += 1


class Caller:
    """A client of one version of the service, without a connection in between."""

    def __init__(self, folder: Path, thread: LoopThread, api: ModuleType, config: Config | None = None) -> None:
        self.folder = folder
        self.daemon = FakeDaemon(thread)
        self.engine = Engine(self.daemon, config)  # type: ignore[arg-type]
        self.api = api
        self.methods = next(
            service.methods for service in self.engine.services() if service.name.startswith(api.DESCRIPTOR.package)
        )

    def call(self, method: str, name: str = "", **fields: Any) -> Any:
        """Call a method with a request made of `fields`."""
        request = getattr(self.api, name or f"{method.title()}Request")(**fields)
        found = next(each for wire, each in self.methods.items() if snake_case(wire) == method)
        answer = found.handler(CallContext(method), found.request.FromString(request.SerializeToString()))
        kind = getattr(self.api, answer.DESCRIPTOR.name, None) if isinstance(answer, Message) else None
        return answer if kind is None else kind.FromString(answer.SerializeToString())

    def fails(self, method: str, name: str = "", **fields: Any) -> tuple[int, str]:
        """Call a method that raises, and return the status that a client would get."""
        with pytest.raises(ShimError) as caught:
            self.call(method, name, **fields)
        return status_of(caught.value)

    def bundle(self, container: str = "c1", spec: str = OWN_PIDS) -> str:
        """Make a bundle."""
        path = self.folder / container
        path.mkdir()
        (path / "config.json").write_text(spec)
        return str(path)

    def create(self, container: str = "c1", **fields: Any) -> Any:
        """Create a container."""
        bundle = fields.pop("bundle", None) or self.bundle(container)
        return self.call("create", "CreateTaskRequest", id=container, bundle=bundle, **fields)

    def run(self, container: str = "c1") -> int:
        """Create and start a container, and return its pid."""
        pid: int = self.create(container).pid
        self.call("start", id=container)
        return pid

    def topics(self) -> list[str]:
        """Return the topics of what was published."""
        return [topic for topic, _ in self.daemon.publisher.events]
