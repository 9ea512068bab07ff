"""A shim's daemon as containerd holds it: a connection, the client that fits its version, and its bundle.

Rule: dials what containerd dials, with its words when nobody answers; falls back from task v3 to v2 where 2.x does.
Spec: containerd pkg/shim/util_unix.go, core/runtime/v2/bridge.go and task_manager.go.
"""

from __future__ import annotations

import contextlib
import os
import socket
from types import ModuleType
from typing import Any, Final

from google.protobuf.message import Message

from shim.api import task_v2_pb2, task_v2_ttrpc, task_v3_pb2, task_v3_ttrpc
from shim.testing.bundle import Bundle
from shim.testing.conditions import PATIENCE_S
from shim.testing.versions import Endpoint, UnspokenError, VerdictError, Version
from shim.ttrpc import Client, Code, Rpc, RpcError

_V2: Final = {rpc.name: rpc for rpc in task_v2_ttrpc.TASK_RPCS}
_V3: Final = {rpc.name: rpc for rpc in task_v3_ttrpc.TASK_RPCS}
_UNIX: Final = "unix://"
# Only for these does 2.x try task v2 when a shim that said version 3 does not know task v3.
_DOWNGRADING: Final = ("Connect", "Create")


def dial(endpoint: Endpoint, version: Version, error: type[VerdictError]) -> Client:
    """Connect to where an answer says.

    Raises:
        VerdictError: Nobody answers there; of the kind `error`, with containerd's text.
        UnspokenError: It is no unix socket.
    """
    prefix = "failed to create TTRPC connection: " if version.reads_json else ""
    scheme, separator, rest = endpoint.address.partition("://")
    if separator and scheme != "unix" and version.keeps_bootstrap:
        if scheme in ("vsock", "hvsock"):
            raise UnspokenError(f"containerd would dial {endpoint.address}")
        raise error(f"{prefix}unsupported protocol: {scheme}")
    is_abstract = not endpoint.address.startswith(_UNIX)
    target = f"\0{endpoint.address}" if is_abstract else rest
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(os.fsencode(target))
    except OSError as failure:
        sock.close()
        # A path that is too long has no errno in Python; Go says EINVAL.
        reason = os.strerror(failure.errno).lower() if failure.errno else "invalid argument"
        name = f"@{endpoint.address}" if is_abstract else rest
        raise error(f"{prefix}dial unix {name}: connect: {reason}") from None
    return Client(sock)


class RunningShim:
    """A connected daemon; `task` is the typed client of the version that its `start` named."""

    def __init__(self, client: Client, version: Version, endpoint: Endpoint, bundle: Bundle) -> None:
        self.client = client
        self.endpoint = endpoint
        self.bundle = bundle
        self.is_v3 = endpoint.version == 3
        self._version = version

    @property
    def task(self) -> task_v2_ttrpc.TaskClient | task_v3_ttrpc.TaskClient:
        """The typed client of the task service."""
        return task_v3_ttrpc.TaskClient(self.client) if self.is_v3 else task_v2_ttrpc.TaskClient(self.client)

    @property
    def messages(self) -> ModuleType:
        """The module of the messages that `task` takes and returns."""
        return task_v3_pb2 if self.is_v3 else task_v2_pb2

    @property
    def socket_path(self) -> str:
        """The path of the daemon's socket, or '' when it has none."""
        return self.endpoint.address.removeprefix(_UNIX) if self.endpoint.address.startswith(_UNIX) else ""

    def call(self, method: str, *, timeout_s: float | None = PATIENCE_S, **fields: Any) -> Any:
        """Call a method of the task service by its name, with a request made of `fields`, and return the response.

        `id` is the container's if not given, and so is Create's `bundle`.

        Raises:
            RpcError: The call failed.
            ConnectionClosedError: The daemon has gone.
        """
        fields.setdefault("id", self.bundle.id)
        if method == "Create":
            fields.setdefault("bundle", str(self.bundle.path))
        try:
            return self._call(method, fields, timeout_s)
        except RpcError as error:
            if not self.is_v3 or error.code != Code.UNIMPLEMENTED or method not in _DOWNGRADING:
                raise
        self.is_v3 = False
        return self._call(method, fields, timeout_s)

    def probe(self) -> int:
        """Call Connect, as containerd does to see whether a shim that it found again lives; return the shim's pid."""
        pid: int = self.call("Connect").shim_pid
        return pid

    def remove_socket(self) -> None:
        """Remove the socket of a daemon that has gone without doing it; one that is served stays."""
        if not self.socket_path:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(self.socket_path)
            except ConnectionRefusedError:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.socket_path)
            except OSError:
                return  # it is gone, or none

    def _call(self, method: str, fields: dict[str, Any], timeout_s: float | None) -> Message:
        rpc: Rpc[Any, Any] = (_V3 if self.is_v3 else _V2)[method]
        response: Message = self.client.call(rpc, rpc.request(**fields), timeout_s=timeout_s)
        return response
