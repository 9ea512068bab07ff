"""Takes the place of `heapq` in the shims' own binaries: what is in C."""

from _heapq import *  # noqa: F403
