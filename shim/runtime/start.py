"""What `start` was asked, and `spawn`, which gives the container a daemon.

Rule: `spawn` binds the socket; the daemon itself is made when `start_shim` has returned, so that what fails until then
leaves neither a process nor a socket.  Spec: containerd pkg/shim/util_unix.go; contract sections 3 and 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from shim.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.any_pb2 import Any

    from shim.runtime.address import Bound


class Planned(NamedTuple):
    """A daemon that is to be made: its socket, and what its environment has beyond that of `start`."""

    bound: Bound
    environment: Mapping[str, str]


class StartOpts:
    """What containerd said when it asked for a daemon for a container.

    `id`, `namespace`, `address` (of containerd's grpc socket), `publish_binary` and `debug` are the flags;
    `ttrpc_address` is where events go, '' if nowhere; `bundle` the container's folder, also the working directory;
    `options` the runtime's options, a `google.protobuf.Any`, or None; `socket_dir` and `containerd_version` are '' for
    containerd 1.6 to 2.2, which do not say them.
    """

    __slots__ = (
        "address",
        "bundle",
        "containerd_version",
        "debug",
        "id",
        "namespace",
        "options",
        "planned",
        "publish_binary",
        "socket_dir",
        "ttrpc_address",
    )

    def __init__(
        self,
        *,
        id: str,
        namespace: str,
        address: str = "",
        publish_binary: str = "",
        ttrpc_address: str = "",
        debug: bool = False,
        bundle: str = "",
        options: Any | None = None,
        socket_dir: str = "",
        containerd_version: str = "",
    ) -> None:
        self.id: str = id
        self.namespace: str = namespace
        self.address: str = address
        self.publish_binary: str = publish_binary
        self.ttrpc_address: str = ttrpc_address
        self.debug: bool = debug
        self.bundle: str = bundle
        self.options: Any | None = options
        self.socket_dir: str = socket_dir
        self.containerd_version: str = containerd_version
        self.planned: Planned | None = None


def spawn(opts: StartOpts, grouping: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Return the address of the daemon of a group, whose name is `grouping`, by default the container's id.

    If no daemon of the group lives yet, one is made once `start_shim` has returned, with `environment` added to ours.

    Raises:
        SocketError: The socket cannot be bound; the text names it.
        FailedPreconditionError: It has been called before, for another group.
    """
    from shim.runtime import address

    path = address.socket_path(opts.address, opts.namespace, opts.id if grouping is None else grouping, opts.socket_dir)
    if opts.planned is not None:
        if opts.planned.bound.path == path:
            return opts.planned.bound.address
        raise FailedPreconditionError(f"one start makes one daemon, and {opts.planned.bound.path} is bound already")
    bound = address.bind(path)
    if bound is not None:
        opts.planned = Planned(bound, dict(environment or {}))
    return "unix://" + path
