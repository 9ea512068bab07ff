"""A container's bundle as containerd makes it, with the log fifo that containerd reads.

Rule: modes, names and order are containerd's; the folder is removed as containerd does it, by way of a hidden name.
Spec: containerd core/runtime/v2/bundle.go and shim_unix.go (openShimLog).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from shim.testing.conditions import PATIENCE_S, wait_until
from shim.testing.sweep import unmount_below

_CHUNK: Final = 64 << 10


class Bundle:
    """One bundle; `open_log` and `close_log` are containerd's coming and going."""

    def __init__(self, folder: Path, namespace: str, container: str, spec: Mapping[str, object] | None = None) -> None:
        """Make it below `folder`, which stands for both /run/containerd and /var/lib/containerd."""
        self.id = container
        self.path: Path = folder / "state/io.containerd.runtime.v2.task" / namespace / container
        self.work: Path = folder / "root/io.containerd.runtime.v2.task" / namespace / container
        for path in (self.path, self.work):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
        self.path.mkdir(mode=0o700)
        self.rootfs: Path = self.path / "rootfs"
        self.rootfs.mkdir(mode=0o711)
        self.work.mkdir(mode=0o711)
        (self.path / "work").symlink_to(self.work)
        if spec is not None:
            (self.path / "config.json").write_text(json.dumps(spec))
        self._logged = bytearray()
        self._reader: threading.Thread | None = None
        self._log = -1
        self._stop = (-1, -1)

    @property
    def log(self) -> str:
        """Everything that the shim has logged so far."""
        return self._logged.decode("utf-8", "replace")

    def wait_for_log(self, text: str, timeout_s: float = PATIENCE_S) -> str:
        """Return the log once it has `text`.

        Raises:
            AssertionError: It has not; the text of the error is the log.
        """
        if not wait_until(lambda: text in self.log, timeout_s):
            raise AssertionError(f"{text!r} was not logged:\n{self.log}")
        return self.log

    def open_log(self) -> None:
        """Read the log from here on, as containerd does before it runs `start` and when it finds a shim again."""
        if self._reader is not None:
            return
        path = self.path / "log"
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o700)
        # Read-write: neither side waits for the other, and the shim gets no SIGPIPE before the first byte.
        self._log = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._stop = os.pipe()
        self._reader = threading.Thread(target=self._read_log, name=f"log of {self.id}", daemon=True)
        self._reader.start()

    def close_log(self) -> None:
        """Let go of the log, as a containerd that ends does."""
        reader, self._reader = self._reader, None
        if reader is None:
            return
        os.close(self._stop[1])
        reader.join(PATIENCE_S)
        os.close(self._stop[0])
        os.close(self._log)

    def remove(self) -> None:
        """Remove it, as containerd does after `delete`."""
        unmount_below(self.rootfs)
        for path in (self.path, self.work):
            hidden = path.with_name(f".{path.name}")
            with contextlib.suppress(FileNotFoundError):
                path.rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)

    def _read_log(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._stop[0] in select.select([self._log, self._stop[0]], [], [])[0]
            with contextlib.suppress(BlockingIOError):
                while chunk := os.read(self._log, _CHUNK):
                    self._logged += chunk
