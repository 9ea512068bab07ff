"""What containerd says to `start` on stdin, and what it wants to hear on stdout; and the answer of `delete`.

Rule: pure; bytes in, bytes out.  The form of the answer follows from stdin alone: BootstrapParams (2.3+) get a
BootstrapResult, anything else (1.6 to 2.2) the plain address, which all of those take for version 2 over ttrpc.
Spec: containerd api/runtime/bootstrap/v1/bootstrap.proto; contract 2.5 and 2.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from shim.errors import InvalidArgumentError
from shim.ttrpc.wire import bytes_field, number_field

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any

# containerd caps what it reads back; a start that is sent more than this is not containerd's.
MAX_INPUT: Final = 10 << 20
DEBUG_LEVEL: Final = -4
# In containerd 2.0 to 2.2 the operator's way to say it is `env` of the plugin io.containerd.shim.v1.manager.
JSON_VARIABLE: Final = "CONTAINERD_SHIM_JSON"


class Bootstrap(NamedTuple):
    """What `start` was told beyond its flags; `options` are the runtime's, or None."""

    is_legacy: bool = True
    options: Any | None = None
    socket_dir: str = ""
    is_debug: bool = False
    containerd_version: str = ""


def read_bootstrap(data: bytes, namespace: str, task_id: str) -> Bootstrap:
    """Decide which protocol `data` speaks and return what it says.

    The two encodings overlap, so parsing proves nothing: the new form counts only when it repeats the id and the
    namespace of the flags.
    """
    if not data:
        return Bootstrap()  # the common case of 1.6 to 2.2: nothing to load protobuf for
    from google.protobuf.any_pb2 import Any
    from google.protobuf.message import DecodeError

    from shim.api.bootstrap_pb2 import BootstrapParams

    try:
        params = BootstrapParams.FromString(data)
    except DecodeError:
        params = None
    if params is not None and params.instance_id == task_id and params.namespace == namespace:
        return Bootstrap(
            is_legacy=False,
            options=params.extensions[0].value if params.extensions else None,
            socket_dir=params.socket_dir,
            is_debug=params.log_level <= DEBUG_LEVEL,
            containerd_version=params.containerd_version,
        )
    try:
        options = Any.FromString(data)
    except DecodeError:
        return Bootstrap()
    return Bootstrap(options=options if options.type_url else None)


def write_deleted(pid: int, exit_status: int, exited_at_ns: int) -> bytes:
    """Return what `delete` prints: a DeleteResponse of task v2 and v3, by hand, to be spared loading protobuf."""
    seconds, nanos = divmod(exited_at_ns, 1_000_000_000)
    exited_at = number_field(b"\x08", seconds) + number_field(b"\x10", nanos)
    return number_field(b"\x08", pid) + number_field(b"\x10", exit_status) + bytes_field(b"\x1a", exited_at)


def write_answer(address: str, bootstrap: Bootstrap, json_version: str = "") -> bytes:
    """Return what `start` prints for the address of its daemon.

    `json_version` is what an operator of containerd 2.0 to 2.2 may ask for: JSON that names version 2 or 3 of the task
    service, where the plain address means 2.  containerd 1.7 takes it for 2, containerd 1.6 not at all.

    Raises:
        InvalidArgumentError: `json_version` is neither '' nor 2 nor 3.
    """
    if json_version not in ("", "2", "3"):
        raise InvalidArgumentError(f"{JSON_VARIABLE} must be 2 or 3, is {json_version!r}")
    if bootstrap.is_legacy:
        text = address if not json_version else _json_answer(address, json_version)
        return text.encode("utf-8", "surrogateescape")
    from shim.api.bootstrap_pb2 import BootstrapResult

    return BootstrapResult(version=3, address=address, protocol="ttrpc").SerializeToString()


def _json_answer(address: str, version: str) -> str:
    from json import dumps

    return f'{{"version":{version},"address":{dumps(address, ensure_ascii=False)},"protocol":"ttrpc"}}'
