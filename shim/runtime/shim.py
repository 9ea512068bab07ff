"""What a shim author implements: `Shim`, and the values that its methods get and give.

Rule: nothing heavy is imported here, since every short `start` and `delete` process loads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from shim.errors import UnimplementedError

if TYPE_CHECKING:
    from shim.api.types_pb2 import RuntimeInfo
    from shim.runtime.flags import Flags
    from shim.runtime.serve import Daemon
    from shim.ttrpc.service import Service


class Deleted(NamedTuple):
    """What the `delete` action found: the pid that init had (0 if unknown) and the status to report."""

    pid: int = 0
    exit_status: int = 137


class Shim:
    """A shim: subclass it and pass the class to `shim.run`.

    Every method has a default that suits a shim with one daemon for each container and nothing on disk.
    """

    def __init__(self, runtime_id: str) -> None:
        self.runtime_id = runtime_id

    def group(self, flags: Flags) -> str:
        """Return the name of the group whose daemon shall serve this container; the working directory is its bundle."""
        return flags.id

    def shim_cgroup(self, options: object) -> str:
        """Return the cgroup that the daemon shall live in, by the runtime options that containerd sent, or ''."""
        return ""

    def preload(self) -> None:
        """Import all that the daemon needs: nothing may be imported once it serves."""

    def services(self, daemon: Daemon) -> Sequence[Service]:
        """Return what the daemon serves."""
        raise UnimplementedError(f"{type(self).__name__} serves nothing: override services()")

    def delete(self, flags: Flags) -> Deleted:
        """Remove what a dead daemon left of container `flags.id`; must succeed when there is nothing."""
        return Deleted()

    def info(self, options: object) -> RuntimeInfo:
        """Describe the runtime for `-info`; `options` is the Any from stdin or None."""
        from shim.api.types_pb2 import RuntimeInfo

        return RuntimeInfo(name=self.runtime_id)
