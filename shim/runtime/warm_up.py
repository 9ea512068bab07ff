"""What warms the image of a binary up: every import of a shim's three processes, and their code run some times.

Rule: one thread, no child, no file of this machine, and the same each time, since two builds have to give the same
bytes.  Python rewrites code while it runs it for the first times (PEP 659): a process that starts from the image would
have to copy each page that this touches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.runtime.config import Config
    from shim.runtime.flags import Flags
    from shim.runtime.shim import Shim


def warm_up(runtime_id: str, shim: Callable[[str, Flags, Config], Shim], config: Config | None) -> None:
    """Do so for the shim that `run` was called with."""
    from shim.host import cgroup, libc, process  # noqa: F401
    from shim.runtime import actions, address, bootstrap, daemon, legacy, start  # noqa: F401
    from shim.runtime.config import Config
    from shim.runtime.flags import Flags

    practised = shim(runtime_id, Flags(namespace="default", id="warm-up"), config or Config())
    practised.preload()
    practised.daemon_runner()
