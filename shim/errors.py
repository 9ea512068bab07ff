"""What can go wrong in a shim, one class for each way of failing.

Rule: each class carries its RPC code; messages are lower case, name the thing, and end in containerd's class text where
clients look for it (`: not found`).  Codes and texts: containerd's errdefs and cmd/containerd-shim-runc-v2.
"""

from __future__ import annotations

from typing import ClassVar

from shim.ttrpc.status import Code


class ShimError(Exception):
    """Root of the errors that a shim answers calls with or ends with."""

    code: ClassVar[Code] = Code.UNKNOWN


class InvalidArgumentError(ShimError):
    """A request, an option or a configuration value makes no sense."""

    code: ClassVar[Code] = Code.INVALID_ARGUMENT


class NotFoundError(ShimError):
    """The thing that a request names does not exist."""

    code: ClassVar[Code] = Code.NOT_FOUND


class ContainerNotFoundError(NotFoundError):
    """No container with this id lives in this shim."""

    def __init__(self, container_id: str) -> None:
        super().__init__("container not created: not found")
        self.container_id = container_id


class ExecNotFoundError(NotFoundError):
    """The container has no exec with this id."""

    def __init__(self, exec_id: str) -> None:
        super().__init__(f"process does not exist {exec_id}: not found")
        self.exec_id = exec_id


class AlreadyExistsError(ShimError):
    """The id is taken."""

    code: ClassVar[Code] = Code.ALREADY_EXISTS

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: already exists")
        self.name = name


class FailedPreconditionError(ShimError):
    """The request is right, but not in the state that things are in."""

    code: ClassVar[Code] = Code.FAILED_PRECONDITION


class ProcessStateError(ShimError):
    """The process cannot do this in its state; Go's shim answers UNKNOWN with this text."""


class UnavailableError(ShimError):
    """The shim is going down and takes no new containers."""

    code: ClassVar[Code] = Code.UNAVAILABLE


class UnimplementedError(ShimError):
    """The shim does not do this."""

    code: ClassVar[Code] = Code.UNIMPLEMENTED


class EngineError(ShimError):
    """The OCI runtime failed; the text holds its own words."""


class EngineTimeoutError(EngineError):
    """A call of the OCI runtime was not done in time and has been killed; the text names call, limit and container."""

    code: ClassVar[Code] = Code.DEADLINE_EXCEEDED


class BusyError(ShimError):
    """Another operation on the process went on until the call's deadline; the text names the process."""

    code: ClassVar[Code] = Code.DEADLINE_EXCEEDED


class BundleError(ShimError):
    """A file of the bundle cannot be read or written; the text names it."""


class MountError(ShimError):
    """A file system cannot be mounted or unmounted; the text names it."""


class StdioError(ShimError):
    """A fifo, log target or console of a process cannot be opened; the text names it."""


class SocketError(ShimError):
    """The shim's socket cannot be made; the text names it."""


class CgroupError(ShimError):
    """A cgroup cannot be found or joined; the text names it."""


class UnsupportedSystemError(ShimError):
    """This operating system lacks what the call needs."""

    code: ClassVar[Code] = Code.UNIMPLEMENTED
