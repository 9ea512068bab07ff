"""Work in other threads: a function in one of its own, coroutines on a loop in one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from tests.fakes import PATIENCE_S

T = TypeVar("T")


def in_thread(function: Callable[[], T]) -> Future[T]:
    """Run a function in a thread of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class AsyncioThread:
    """asyncio's loop in a thread; what its callbacks raise is kept in `errors`."""

    def __init__(self) -> None:
        self.errors: list[dict[str, Any]] = []
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda _loop, context: self.errors.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever, name="asyncio", daemon=True)
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin to run a coroutine."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float = PATIENCE_S) -> T:
        """Return what a coroutine returns."""
        return self.start(coroutine).result(timeout_s)

    def call(self, function: Callable[[], T]) -> T:
        """Return what `function` returns on the loop's thread."""

        async def run() -> T:
            return function()

        return self.run(run())

    @property
    def tasks(self) -> int:
        """How many tasks there are."""
        return self.call(lambda: len(asyncio.all_tasks(self.loop)) - 1)

    def close(self) -> None:
        """End what runs, and the thread."""

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.run(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()
        assert [] == self.errors
