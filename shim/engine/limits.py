"""How long each call of the OCI runtime may take.

Rule: every call has a limit and this is the only table of them.  They are far above what a healthy host needs: they
are there for what would otherwise hang for ever, a hook, a frozen file system, a runtime's bug.
"""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """Seconds, by the runtime's subcommand."""

    create: float = 120.0
    start: float = 120.0
    exec: float = 120.0
    kill: float = 60.0
    delete: float = 120.0
    pause: float = 60.0
    resume: float = 60.0
    update: float = 60.0
    ps: float = 60.0
    features: float = 5.0
    checkpoint: float = 1800.0
    restore: float = 1800.0


DEFAULT_LIMITS = Limits()
