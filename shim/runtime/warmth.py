"""What makes a zygote worth having: its forks find all loaded and run in, in memory that they go on sharing.

Rule: one process of a user warms up at a time, since it takes a moment of a whole core; the others go without.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from shim.errors import ShimError
from shim.host import heap
from shim.runtime import rehearsal, worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shim.runtime.shim import Shim

# After eight calls Python 3.11 has compiled a function for the types that it meets; later ones need two.
_REHEARSALS: Final = 12
_LIVES: Final = 3
_LIFE_SUFFIX: Final = ".rehearsal"


@contextmanager
def only_one(folder: str) -> Iterator[bool]:
    """Say whether nobody else warms up in this folder, and let nobody until the end of the block."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(lock)


def warm_up(shim: Shim, path: str) -> None:
    """Load and run in all that a daemon of this shim does in its life; the zygote's socket will be at `path`.

    Raises:
        RehearsalError: It broke off, and this process may have something open that forks must not inherit.
    """
    folder = os.path.dirname(path)
    for name in os.listdir(folder):
        if name.endswith(_LIFE_SUFFIX):  # left by one that was killed
            rehearsal.remove(os.path.join(folder, name))
    before = heap.code_states()
    _run_in(shim, path + _LIFE_SUFFIX)
    heap.pack(before)
    del before
    _run_in(shim, path + _LIFE_SUFFIX)


def _run_in(shim: Shim, folder: str) -> None:
    for _ in range(_REHEARSALS):
        worker.rehearse()
    if not rehearsal.is_possible(shim):
        return
    try:
        for _ in range(_LIVES):
            rehearsal.rehearse(shim, folder)
    except (ShimError, OSError):
        return  # it could not begin: forks are slower and larger then
