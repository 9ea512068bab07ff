"""The entry point of every shim: `run`, wired top to bottom.

Rule: stdout of `start`, `delete` and `-info` is protocol, and containerd reads start's stderr together with it, so
nothing is printed that is not an answer or the one line of a failure.  Each action imports only what it needs. Spec:
containerd pkg/shim/shim.go; contract section 2.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from shim import __version__
from shim.errors import InvalidArgumentError, ShimError, UsageError
from shim.runtime import flags as flags_module
from shim.runtime.flags import Flags, HelpRequested

if TYPE_CHECKING:
    from shim.runtime.bootstrap import Bootstrap
    from shim.runtime.shim import Shim

_MAX_INPUT = 10 << 20


def run(runtime_id: str, shim_class: type[Shim], arguments: list[str] | None = None) -> NoReturn:
    """Be the shim `runtime_id` (such as `io.containerd.pyrunc.v1`) and end the process with containerd's exit codes.

    0 success, 1 the action failed (one line on stderr says why), 2 the command line is wrong.
    """
    words = sys.argv[1:] if arguments is None else arguments
    program = os.path.basename(sys.argv[0])
    try:
        code = _run(runtime_id, shim_class, flags_module.parse(words), program)
    except HelpRequested:
        sys.stderr.write(flags_module.usage(sys.argv[0]))
        code = 0
    except UsageError as error:
        sys.stderr.write(f"{error}\n{flags_module.usage(sys.argv[0])}")
        code = 2
    except (ShimError, OSError) as error:
        sys.stderr.write(f"{runtime_id}: {_one_line(error)}")
        code = 1
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End at once: an interpreter's orderly end costs milliseconds that containerd waits for."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or 1
    os._exit(code)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([*names, error.strerror])
    return " ".join(str(error).split("\n"))


def _run(runtime_id: str, shim_class: type[Shim], flags: Flags, program: str) -> int:
    if flags.version:
        _write_out(_version_text(program).encode())
        return 0
    shim = shim_class(runtime_id)
    if flags.info:
        _write_out(_info(shim))
        return 0
    if not flags.namespace:
        raise InvalidArgumentError("shim namespace cannot be empty")
    if flags.action == "start":
        _ignore_stop_signals()
        _write_out(_start(shim, flags))
    elif flags.action == "delete":
        _ignore_stop_signals()
        _write_out(_delete(shim, flags))
    else:
        _serve(shim, flags)
    return 0


def _write_out(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def _version_text(program: str) -> str:
    version = ".".join(str(part) for part in sys.version_info[:3])
    try:
        from shim_revision import REVISION  # type: ignore[import-not-found]  # written by build/spec
    except ImportError:
        REVISION = ""
    return f"{program}:\n  Version:  {__version__}\n  Revision: {REVISION}\n  Python version: {version}\n\n"


def _read_in() -> bytes:
    """Read stdin to its end; a terminal, as in a start by hand, counts as empty."""
    if os.isatty(0):
        return b""
    chunks = []
    size = 0
    while chunk := os.read(0, 64 << 10):
        chunks.append(chunk)
        size += len(chunk)
        if size > _MAX_INPUT:
            raise InvalidArgumentError(f"stdin has more than {_MAX_INPUT} bytes")
    return b"".join(chunks)


def _info(shim: Shim) -> bytes:
    from google.protobuf.any_pb2 import Any
    from google.protobuf.message import DecodeError

    data = _read_in()
    try:
        options = Any.FromString(data) if data else None
    except DecodeError:
        raise InvalidArgumentError("stdin of -info is no google.protobuf.Any") from None
    return shim.info(options).SerializeToString()


def _ignore_stop_signals() -> None:
    """A stray SIGTERM or SIGINT must not interrupt a start or a clean-up half way."""
    import signal

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)


def _start(shim: Shim, flags: Flags) -> bytes:
    from shim.runtime import address, bootstrap, legacy

    told = bootstrap.read_bootstrap(_read_in(), flags.namespace, flags.id)
    if not flags.id:
        raise InvalidArgumentError("shim id cannot be empty")
    group = shim.group(flags)
    path = address.socket_path(flags.address, flags.namespace, group, told.socket_dir)
    bound = address.bind(path)
    text = "unix://" + path
    if bound is not None:
        try:
            _spawn(shim, flags, told, bound)
        except BaseException:
            bound.remove()
            raise
    if told.is_legacy:
        legacy.write_address_file(os.getcwd(), text)
    return bootstrap.write_answer(text, told)


def _spawn(shim: Shim, flags: Flags, told: Bootstrap, bound: address.Bound) -> None:
    """Leave a daemon behind.  What it shall inherit is set on this process first, so that it never runs without."""

    from shim.host import cgroup, process
    from shim.runtime import daemon

    if told.is_debug and not flags.debug:
        flags = flags._replace(debug=True)
    if os.environ.get("SCHED_CORE"):
        from shim.host import libc

        libc.sched_core_create()
    path = shim.shim_cgroup(told.options)
    if path:
        cgroup.join(path, os.getpid())
    process.raise_oom_score()
    if not daemon.should_fork():
        daemon.reexec(flags, bound)
        return
    from shim.runtime.serve import Daemon

    shim.preload()
    folder = process.unpacked_folder()
    if folder:
        daemon.sweep_unpacked_folders(folder)
    daemon.fork(flags, bound, lambda: Daemon(flags, shim.runtime_id, bound).serve(shim))


def _delete(shim: Shim, flags: Flags) -> bytes:
    import time

    from google.protobuf.timestamp_pb2 import Timestamp

    from shim.api.task_v2_pb2 import DeleteResponse

    if not flags.id:
        raise InvalidArgumentError("shim id cannot be empty")
    deleted = shim.delete(flags)
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    exited_at = Timestamp(seconds=seconds, nanos=nanos)
    answer = DeleteResponse(pid=deleted.pid, exit_status=deleted.exit_status, exited_at=exited_at)
    return answer.SerializeToString()


def _serve(shim: Shim, flags: Flags) -> None:
    from shim.runtime import address, daemon
    from shim.runtime.serve import Daemon

    if flags.socket:
        path = flags.socket.removeprefix("unix://")
        bound = address.bind(path)
        if bound is None:
            raise InvalidArgumentError(f"socket {path} is served by another shim")
    else:
        bound = address.adopt(daemon.LISTEN_FD)
    shim.preload()
    server = Daemon(flags, shim.runtime_id, bound)
    if not flags.socket:
        daemon.disown_unpacked_folder()
    server.serve(shim)


if TYPE_CHECKING:
    from shim.runtime import address
