"""What a shim is asked to do by its command line: start, delete, -info, or be the daemon.

Rule: wired top to bottom; each action imports only what it needs, since containerd waits for it.
Spec: containerd pkg/shim/shim.go; contract sections 2 to 4.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shim.errors import InvalidArgumentError

if TYPE_CHECKING:
    from shim.runtime.address import Bound
    from shim.runtime.flags import Flags
    from shim.runtime.shim import Shim
    from shim.runtime.start import Planned, StartOpts


def act(shim: Shim, flags: Flags) -> None:
    """Do what the flags say.  Raises ShimError or OSError when it fails."""
    if flags.info:
        _write_out(_info(shim))
        return
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


def _write_out(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def _read_in() -> bytes:
    """Read stdin to its end; a terminal, as in a start by hand, counts as empty."""
    from shim.runtime.bootstrap import MAX_INPUT

    if os.isatty(0):
        return b""
    chunks = []
    size = 0
    while chunk := os.read(0, 64 << 10):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_INPUT:
            raise InvalidArgumentError(f"stdin has more than {MAX_INPUT} bytes")
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
    from shim.runtime import bootstrap, legacy
    from shim.runtime.start import StartOpts

    told = bootstrap.read_bootstrap(_read_in(), flags.namespace, flags.id)
    if not flags.id:
        raise InvalidArgumentError("shim id cannot be empty")
    shim.config.check()  # the daemon could tell nobody but its log
    opts = StartOpts(
        id=flags.id,
        namespace=flags.namespace,
        address=flags.address,
        publish_binary=flags.publish_binary,
        ttrpc_address=os.environ.get("TTRPC_ADDRESS", ""),
        debug=flags.debug or told.is_debug,
        bundle=os.getcwd(),
        options=told.options,
        socket_dir=told.socket_dir,
        containerd_version=told.containerd_version,
    )
    try:
        text = shim.start_shim(opts)
        answer = bootstrap.write_answer(text, told, os.environ.get(bootstrap.JSON_VARIABLE, ""))
        if told.is_legacy:
            legacy.write_address_file(opts.bundle, text)
        if opts.planned is not None:
            # Last: what fails after it would leave a daemon that nobody knows.
            _spawn(shim, opts, opts.planned)
    except BaseException:
        if opts.planned is not None:
            opts.planned.bound.remove()
        raise
    finally:
        if opts.planned is not None:
            opts.planned.bound.listener.close()  # the daemon has its own
    return answer


def _spawn(shim: Shim, opts: StartOpts, planned: Planned) -> None:
    """Leave a daemon behind.  What it shall inherit is set on this process first, so that it never runs without."""
    from shim.host import process
    from shim.runtime import daemon

    bound = planned.bound
    is_forked = daemon.should_fork()
    if is_forked and process.is_frozen():
        folder = process.unpacked_folder()
        if folder:
            daemon.load_extensions()
            daemon.sweep_unpacked_folders(folder)
    if opts.debug and not shim.flags.debug:
        shim.flags = shim.flags.with_debug()
    os.environ.update(planned.environment)
    if os.environ.get("SCHED_CORE"):
        from shim.host import libc

        libc.sched_core_create()
    path = shim.shim_cgroup(opts.options)
    if path:
        from shim.host import cgroup

        cgroup.join(path, os.getpid())
    process.raise_oom_score()
    if not is_forked:
        daemon.reexec(shim.flags, bound)
        return
    daemon.fork(shim.flags, bound, lambda: _be_daemon(shim, bound))


def _be_daemon(shim: Shim, bound: Bound, *, is_alone: bool = False) -> None:
    """Serve; `is_alone` says that the unpacked folder and the bootloader belong to this process, not to a `start`."""
    from shim.runtime import daemon

    daemon.send_errors_to_log()
    try:
        shim.preload()
        serve = shim.daemon_runner()
        if is_alone:
            daemon.disown_unpacked_folder()
        serve(shim, bound)
    finally:
        bound.remove()
        bound.listener.close()


def _delete(shim: Shim, flags: Flags) -> bytes:
    import time

    from shim.runtime import bootstrap

    if not flags.id:
        raise InvalidArgumentError("shim id cannot be empty")
    deleted = shim.delete_shim()
    _remove_dead_socket()
    at = deleted.exited_at
    # Each part by itself: all of today's nanoseconds are more than a float holds.
    at_ns = time.time_ns() if at is None else int(at // 1) * 1_000_000_000 + int(at % 1 * 1e9)
    return bootstrap.write_deleted(deleted.pid, deleted.exit_status, at_ns)


def _remove_dead_socket() -> None:
    """Remove what a killed daemon has left besides its container: its socket, by what stands in the bundle.

    A daemon that lives on, with other containers of its group, keeps its own.
    """
    from shim.runtime import legacy

    text = legacy.read_address(os.getcwd())
    if text.startswith("unix://"):
        path = text.removeprefix("unix://")
        if os.path.exists(path):  # nearly never: a daemon that ends in good order takes it along
            from shim.runtime import address

            address.remove_dead(path)


def _serve(shim: Shim, flags: Flags) -> None:
    from shim.runtime import address, daemon

    if flags.socket:
        path = os.path.abspath(flags.socket.removeprefix("unix://"))  # the daemon leaves this folder
        bound = address.bind(path)
        if bound is None:
            raise InvalidArgumentError(f"socket {path} is served by another shim")
    else:
        bound = address.adopt(daemon.LISTEN_FD)
    _be_daemon(shim, bound, is_alone=not flags.socket)
