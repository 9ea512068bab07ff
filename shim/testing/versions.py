"""What each version of containerd tells a shim's `start` and `delete`, and how it judges what the shim answers.

Rule: pure, a version is a row of VERSIONS; nothing here knows a process or a socket.  The judgement is containerd's,
with its text, also where it is strange: that is what a shim's author has to know.
Spec: containerd runtime/v2 (1.6, 1.7) and core/runtime/v2 (2.x): shim.go, binary.go, bridge.go; pkg/shim/util.go.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from shim.api.bootstrap_pb2 import BootstrapParams, BootstrapResult, Extension, LogLevel

# The newest version of the task service that 2.x speaks; 1.7 speaks one less.
_CURRENT: Final = 3
# Executables of these names get the old stdin from every containerd.
_OLD_SHIMS: Final = ("shim-runc-v1", "shim-runhcs-v1")


class VerdictError(Exception):
    """containerd would give this shim up; the text is what it would say."""


class StartError(VerdictError):
    """`start` failed, or its answer leads nowhere."""


class DeleteError(VerdictError):
    """`delete` failed, or its answer is no DeleteResponse."""


class ReconnectError(VerdictError):
    """A restarted containerd does not find the shim again."""


class UnspokenError(Exception):
    """A real containerd would go on in a way that this fake does not speak; the text names it."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a shim is served and how, as containerd understood its answer."""

    version: int
    address: str
    protocol: str = "ttrpc"


@dataclass(frozen=True, slots=True)
class Call:
    """Whom a call of the shim's binary is about, and what containerd says of itself."""

    namespace: str
    id: str
    bundle: str
    grpc_address: str
    ttrpc_address: str
    publish_binary: str = "/usr/bin/containerd"
    debug: bool = False
    options: Any | None = None
    socket_dir: str = ""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of containerd, as far as shims can tell it from the others."""

    name: str
    release: str
    reads_json: bool = True
    reads_protobuf: bool = False
    newest_task: int = _CURRENT
    tells_more: bool = True  # MAX_SHIM_VERSION, GRPC_ADDRESS and NAMESPACE in the environment
    debugs_delete: bool = True
    keeps_bootstrap: bool = True  # finds shims again by the bundle's bootstrap.json, which it writes
    trims_failure: bool = False

    # What it tells.

    def start_arguments(self, call: Call) -> list[str]:
        """Return the arguments of `start`."""
        return [*self._names(call), *(["-debug"] if call.debug else []), "start"]

    def delete_arguments(self, call: Call) -> list[str]:
        """Return the arguments of `delete`."""
        debug = ["-debug"] if call.debug and self.debugs_delete else []
        return [*self._names(call), "-bundle", call.bundle, *debug, "delete"]

    def environment(self, call: Call) -> dict[str, str]:
        """Return what it adds to its own environment for a shim."""
        added = {"GOMAXPROCS": "2", "TTRPC_ADDRESS": call.ttrpc_address}
        if self.tells_more:
            added |= {"MAX_SHIM_VERSION": "2", "GRPC_ADDRESS": call.grpc_address, "NAMESPACE": call.namespace}
        return added

    def start_stdin(self, call: Call, program: str = "") -> bytes | None:
        """Return what `start` reads from stdin; None is no stdin at all (/dev/null)."""
        is_old = any(name in os.path.basename(program) for name in _OLD_SHIMS)
        if not self.reads_protobuf or is_old:
            return None if call.options is None else call.options.SerializeToString()
        params = BootstrapParams(
            instance_id=call.id,
            namespace=call.namespace,
            log_level=LogLevel.LOG_LEVEL_DEBUG if call.debug else LogLevel.LOG_LEVEL_INFO,
            containerd_version=self.release,
            containerd_ttrpc_address=call.ttrpc_address,
            containerd_grpc_address=call.grpc_address,
            containerd_binary=call.publish_binary,
            extensions=[] if call.options is None else [Extension(value=call.options)],
            socket_dir=call.socket_dir,
        )
        return params.SerializeToString()

    def _names(self, call: Call) -> list[str]:
        words = ["-namespace", call.namespace, "-address", call.grpc_address]
        return [*words, "-publish-binary", call.publish_binary, "-id", call.id]

    # What it understands.

    def read_answer(self, output: bytes) -> Endpoint:
        """Return how it understands the output of a `start` that succeeded (stdout and stderr are one pipe).

        Raises:
            StartError: It does not; the text says why.
        """
        if self.reads_protobuf:
            try:
                result = BootstrapResult.FromString(output)
            except DecodeError:
                pass  # the address or JSON of a shim that was built for an older version
            else:
                return Endpoint(result.version, result.address, result.protocol)
        text = output.strip().decode("utf-8", "surrogateescape")
        found = _read_json(text) if self.reads_json else None
        if found is None or found.version < 2:
            return Endpoint(2, text)
        if found.version > self.newest_task:
            raise StartError(f"unsupported shim version ({found.version}): not implemented")
        return found

    def judge_protocol(self, endpoint: Endpoint) -> None:
        """Look at the protocol before anybody is dialed.

        Raises:
            StartError: It is none.
        """
        if endpoint.protocol.lower() not in ("ttrpc", "grpc"):
            raise StartError(f"unexpected protocol: {_quote(endpoint.protocol)}")

    def judge_version(self, endpoint: Endpoint) -> None:
        """Look at the version of the task service once the shim has been reached.

        Raises:
            StartError: containerd has no client for it.
            UnspokenError: It would go on over grpc.
        """
        speaks_grpc = endpoint.protocol.lower() == "grpc"
        if self.keeps_bootstrap and speaks_grpc and endpoint.version != _CURRENT:
            raise StartError(f"containerd client supports only v3 GRPC task service (got {endpoint.version})")
        if speaks_grpc:
            raise UnspokenError(f"containerd {self.name} would go on over grpc with task v3")
        if self.keeps_bootstrap and endpoint.version not in (2, _CURRENT):
            raise StartError(f"containerd client supports only v2 and v3 TTRPC task client (got {endpoint.version})")

    def failure(self, output: bytes, returncode: int) -> str:
        """Return what it says of a `start` that failed, from all that it wrote and its return code."""
        text = (output.strip() if self.trims_failure else output).decode("utf-8", "surrogateescape")
        return go_status(returncode) if self.trims_failure and not text else f"{text}: {go_status(returncode)}"


def go_status(returncode: int) -> str:
    """Return Go's words for how a process ended, from `subprocess`'s number."""
    if returncode >= 0:
        return f"exit status {returncode}"
    # Go has words of its own for signals; those of the C library differ from them in case alone.
    return f"signal: {(signal.strsignal(-returncode) or str(-returncode)).lower()}"


def _read_json(text: str) -> Endpoint | None:
    """Read a JSON answer as Go does: keys in any case, null for nothing; None if it is not one."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    fields = {key.lower(): field for key, field in value.items() if field is not None}
    version, address, protocol = fields.get("version", 0), fields.get("address", ""), fields.get("protocol", "")
    if type(version) is not int or not isinstance(address, str) or not isinstance(protocol, str):
        return None
    return Endpoint(version, address, protocol)


def _quote(text: str) -> str:
    """Quote as Go's %q does, as far as answers of shims go."""
    return json.dumps(text, ensure_ascii=False)


_ROWS: Final = (
    Version(
        "1.6",
        "v1.6.39",
        reads_json=False,
        newest_task=2,
        tells_more=False,
        debugs_delete=False,
        keeps_bootstrap=False,
    ),
    Version("1.7", "v1.7.34", newest_task=2, keeps_bootstrap=False),
    Version("2.0", "v2.0.11"),
    Version("2.1", "v2.1.9"),
    Version("2.2", "v2.2.7"),
    Version("2.3", "v2.3.4", reads_protobuf=True),
    Version("2.4", "v2.4.0-beta.0", reads_protobuf=True, trims_failure=True),
)
VERSIONS: Final[Mapping[str, Version]] = MappingProxyType({version.name: version for version in _ROWS})
