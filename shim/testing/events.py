"""Collects what `ctr events` prints into a list of parsed events.

An `EventLog` belongs to a `Containerd` (its `events()` makes one). It follows containerd through a restart.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

_LINE: Final = re.compile(r"^(?P<time>\d{4}-\S+ \S+ \S+ \S+) (?P<namespace>\S+) (?P<topic>/\S+) (?P<body>.*)$")


@dataclass(frozen=True, slots=True)
class Event:
    """One event as containerd passed it on; `body` is its message as JSON (an empty one is `{}`)."""

    time: str
    namespace: str
    topic: str
    body: dict[str, Any]

    @property
    def container(self) -> str:
        """The container that the event is about, or an empty string."""
        value = self.body.get("container_id") or self.body.get("id") or ""
        return str(value)


def parse(line: str) -> Event | None:
    """Parse one line of `ctr events`, or return None if it is something else."""
    match = _LINE.match(line)
    if match is None:
        return None
    try:
        body = json.loads(match["body"] or "{}")
    except ValueError:
        return None
    return Event(match["time"], match["namespace"], match["topic"], body if isinstance(body, dict) else {})


class EventLog:
    """All events since the log was opened, in the order in which containerd sent them."""

    def __init__(self, spawn: Callable[[], subprocess.Popen[str]], poke: Callable[[], object]) -> None:
        self._spawn = spawn
        self._poke = poke
        self._events: list[Event] = []
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self.connect()

    def connect(self, timeout_s: float = 20.0) -> None:
        """Start `ctr events` (anew, after a restart of containerd) and return once events really arrive."""
        self.close()
        self._process = self._spawn()
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        with self._changed:
            seen = len(self._events)
        deadline = time.monotonic() + timeout_s
        # `ctr events` does not say when it is subscribed: cause events until one comes through.
        while time.monotonic() < deadline:
            self._poke()
            with self._changed:
                if self._changed.wait_for(lambda: len(self._events) > seen, 0.2):
                    return
        raise TimeoutError(f"ctr events showed nothing for {timeout_s} s")

    def close(self) -> None:
        """Stop listening; what was collected stays."""
        process, reader = self._process, self._reader
        self._process = self._reader = None
        if process is not None:
            process.kill()
            process.wait()
        if reader is not None:
            reader.join()

    def all(self, container: str | None = None, *, prefix: str = "/") -> list[Event]:
        """Return the events so far, of one container if given, whose topic starts with `prefix`."""
        with self._changed:
            events = list(self._events)
        events = [event for event in events if event.topic.startswith(prefix)]
        return [event for event in events if container is None or event.container == container]

    def topics(self, container: str | None = None, *, prefix: str = "/tasks/") -> list[str]:
        """Return the topics so far in order, by default those of tasks."""
        return [event.topic for event in self.all(container, prefix=prefix)]

    def wait(self, topic: str, container: str | None = None, *, count: int = 1, timeout_s: float = 10.0) -> Event:
        """Return the `count`-th event with this topic (of this container), waiting for it if need be.

        Raises:
            TimeoutError: it did not come in time; the message lists what came.
        """

        def matching() -> list[Event]:
            return [event for event in self.all(container) if event.topic == topic]

        with self._changed:
            if self._changed.wait_for(lambda: len(matching()) >= count, timeout_s):
                return matching()[count - 1]
        raise TimeoutError(f"no {topic} of {container} within {timeout_s} s, only {self.topics(prefix='/')}")

    def pids(self) -> Sequence[int]:
        """Return the process ids of the listening `ctr`."""
        return [self._process.pid] if self._process is not None else []

    def _read(self, process: subprocess.Popen[str]) -> None:
        with process:
            for line in process.stdout or ():
                event = parse(line.rstrip("\n"))
                if event is not None:
                    with self._changed:
                        self._events.append(event)
                        self._changed.notify_all()
