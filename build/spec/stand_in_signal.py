"""Takes the place of `signal` in the shims' own binaries: what is in C, where signals are numbers, not enumerations."""

from _signal import *  # noqa: F403
