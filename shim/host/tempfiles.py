"""Temporary files and folders with names nobody else has.

By hand because `tempfile` loads 30 modules (shutil, random, lzma, …) into every daemon for these two functions.
"""

from __future__ import annotations

import os

_RANDOM_BYTES = 6


def runtime_folder() -> str:
    """Return where short-lived files of this user go: $XDG_RUNTIME_DIR, $TMPDIR, or /tmp."""
    return os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108  (names are random)


def short_folder(room: int) -> str:
    """Return the runtime folder if its path has at most `room` bytes, else /tmp."""
    folder = runtime_folder()
    return folder if len(os.fsencode(folder)) <= room else "/tmp"  # noqa: S108  (as above)


def make_folder(parent: str, prefix: str) -> str:
    """Make a folder that only this user may enter, and return its path.  Raises OSError."""
    while True:
        path = os.path.join(parent, prefix + os.urandom(_RANDOM_BYTES).hex())
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            continue
        return path


def write_file(parent: str, prefix: str, data: bytes) -> str:
    """Write `data` into a new file that only this user may read, and return its path.  Raises OSError."""
    while True:
        path = os.path.join(parent, prefix + os.urandom(_RANDOM_BYTES).hex())
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
        except OSError:
            os.unlink(path)
            raise
        return path
