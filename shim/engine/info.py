"""The answer to `-info`: who this shim is and what its OCI runtime can do.

Rule: answers whatever options come; an OCI runtime that cannot tell its features only leaves them out.
Spec: contract 1.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shim import __version__
from shim.api.types_pb2 import RuntimeInfo
from shim.engine.call import run_captured
from shim.engine.config import DEFAULT_CONFIG, Config
from shim.engine.options import RuncOptions, decode_options
from shim.engine.runc import DEFAULT_BINARY
from shim.errors import InvalidArgumentError, NotFoundError
from shim.host.process import find_executable
from shim.runtime.reaper import ForegroundReaper

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any

FEATURES_TYPE: Final = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def runtime_info(runtime_id: str, options: Any | None, config: Config | None = None) -> RuntimeInfo:
    """Return what `-info` prints.

    Raises:
        NotFoundError: The OCI runtime that the options name does not exist.
    """
    info = RuntimeInfo(name=runtime_id)
    info.version.version = __version__
    if options is not None and options.type_url:
        info.options.CopyFrom(options)
    try:
        decoded = decode_options(options)
    except InvalidArgumentError:
        decoded = RuncOptions()  # another shim's options, asked about ours
    config = config or DEFAULT_CONFIG
    binary = decoded.binary_name or config.binary_name or DEFAULT_BINARY
    if find_executable(binary) is None:
        raise NotFoundError(f'failed to look up the path of "{binary}": executable file not found in $PATH')
    ended = run_captured(ForegroundReaper(), [binary, "features"], limit_s=config.limits.features)
    if ended.status == 0 and ended.output.lstrip().startswith("{"):
        info.features.type_url = FEATURES_TYPE
        info.features.value = ended.output.encode()
    return info
