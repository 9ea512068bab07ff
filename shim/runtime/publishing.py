"""Events from a program that is no shim's daemon: a `RemotePublisher` with a thread of its own.

Rule: the same queue, order and patience as in a daemon; leaving the `with` waits until all has been delivered.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Final, Self

from shim.errors import InvalidArgumentError, UnavailableError
from shim.runtime.logger import Logger
from shim.runtime.publisher import RemotePublisher
from shim.ttrpc.loop import Loop

_FLUSH_S: Final = 5.0


class StandalonePublisher(RemotePublisher):
    """`with StandalonePublisher(address, namespace) as publisher: publisher.publish(topic, event)`.

    `address` is containerd's ttrpc socket, its path or `unix://` and that.  Leaving waits `timeout_s` seconds for
    what has not been delivered.

    Raises:
        InvalidArgumentError: There is no address.
    """

    def __init__(
        self, address: str, namespace: str, *, timeout_s: float = _FLUSH_S, logger: Logger | None = None
    ) -> None:
        if not address:
            raise InvalidArgumentError("no address of containerd's ttrpc socket to publish to")
        self._own_loop = Loop()
        self._timeout_s = timeout_s
        super().__init__(self._own_loop, address, namespace, logger or Logger())
        self._thread = threading.Thread(target=self._own_loop.run, name="publisher", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for the last answer, and end the thread.

        Raises:
            UnavailableError: Events were not delivered; the text says how many.
        """
        left: list[int] = []

        def end() -> None:
            left.append(self.pending)
            self.close()
            self._own_loop.stop()

        self._own_loop.call_soon(lambda: self.flush(self._timeout_s, end))
        self._thread.join()
        self._own_loop.close()
        if left[0] and error is None:
            raise UnavailableError(f"{left[0]} events were not delivered to {self._address}")
