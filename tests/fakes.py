"""What tests of many rooms share: a loop in a thread, patience, and what a child in another folder needs."""

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from shim.testing.conditions import PATIENCE_S as PATIENCE_S
from shim.testing.conditions import wait_until as wait_until
from shim.ttrpc import Client, connect
from shim.ttrpc.loop import Loop

T = TypeVar("T")

ROOT: Final = Path(__file__).parent.parent


def python_path() -> str:
    """Return a PYTHONPATH by which a child in another folder finds what this process finds."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def connect_soon(address: str) -> Client:
    """Connect to a daemon that is about to listen."""
    clients: list[Client] = []

    def is_there() -> bool:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            clients.append(connect(address, timeout_s=PATIENCE_S))
        return bool(clients)

    assert wait_until(is_there), f"nobody listens on {address}"
    return clients[0]


def open_descriptors() -> list[int]:
    """Return what this process has open, the one for looking excepted."""
    return sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}"))


class LoopThread:
    """A loop that runs in a thread of its own; what its callbacks raise is kept in `errors`."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.loop = Loop(on_error=self.errors.append)
        self._thread = threading.Thread(target=self.loop.run, name="loop")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, function: Callable[[], T]) -> T:
        """Return what `function` returns on the loop's thread."""
        results: list[T] = []
        done = threading.Event()

        def run() -> None:
            try:
                results.append(function())
            finally:
                done.set()

        self.loop.call_soon(run)
        assert done.wait(PATIENCE_S), "the loop does not answer"
        assert results, self.errors
        return results[0]

    def settle(self) -> None:
        """Wait until what has been handed to the loop so far is done."""
        self.call(lambda: None)

    def close(self) -> None:
        """End the thread."""
        self.loop.stop()
        self._thread.join(PATIENCE_S)
        if not self._thread.is_alive():
            self.loop.close()
