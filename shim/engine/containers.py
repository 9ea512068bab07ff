"""The containers of one shim, by id.

Rule: a container is in the table only between a Create and a Delete that succeeded, and the shim may end only while
the table is empty and no Create is under way.  Spec: contract 6.1 and 6.18.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from shim.engine.container import Container
from shim.errors import AlreadyExistsError, ContainerNotFoundError, UnavailableError


class Containers:
    """A table of containers; all methods are safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._containers: dict[str, Container] = {}
        self._reserved: set[str] = set()
        self._is_closed = False
        self.had_any: bool = False

    def __len__(self) -> int:
        return len(self._containers)

    def get(self, container_id: str) -> Container:
        """Return a container.  Raises ContainerNotFoundError."""
        with self._lock:
            try:
                return self._containers[container_id]
            except KeyError:
                raise ContainerNotFoundError(container_id) from None

    def find(self, container_id: str) -> Container | None:
        """Return a container, or None."""
        with self._lock:
            return self._containers.get(container_id)

    def knows(self, container_id: str) -> bool:
        """Say whether there is such a container, or one is being made."""
        with self._lock:
            return container_id in self._containers or container_id in self._reserved

    def all(self) -> list[Container]:
        """Return every container there is."""
        with self._lock:
            return list(self._containers.values())

    @contextmanager
    def reserve(self, container_id: str) -> Iterator[None]:
        """Keep an id for a container that is being made.

        Raises:
            AlreadyExistsError: The id is taken.
            UnavailableError: The shim is going down.
        """
        with self._lock:
            if self._is_closed:
                raise UnavailableError("shim is shutting down: unavailable")
            if container_id in self._containers or container_id in self._reserved:
                raise AlreadyExistsError(f"container {container_id}")
            self._reserved.add(container_id)
        try:
            yield
        finally:
            with self._lock:
                self._reserved.discard(container_id)

    def add(self, container: Container) -> None:
        """Enter a container under its reserved id."""
        with self._lock:
            self._containers[container.id] = container
            self.had_any = True

    def remove(self, container: Container) -> None:
        """Forget a deleted container."""
        with self._lock:
            self._containers.pop(container.id, None)

    def close_if_empty(self) -> bool:
        """Take no more containers, if there is none; say whether that is so."""
        with self._lock:
            if not self._containers and not self._reserved:
                self._is_closed = True
            return self._is_closed
