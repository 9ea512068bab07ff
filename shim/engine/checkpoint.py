"""Checkpoints: what a container comes from or is written to, and what is kept of CRIU's work.

Rule: CRIU's working folder goes whatever happens, unless the client named it; its log stays when it fails.
Spec: contract 6.15 and 7.4; containerd cmd/containerd-shim-runc-v2/process/init.go.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from shim.errors import EngineError

if TYPE_CHECKING:
    from shim.engine.bundle import Bundle
    from shim.engine.options import Checkpointing
    from shim.engine.runc import Runc
    from shim.runtime.logger import Logger


class Checkpoint(NamedTuple):
    """Where a container was written to by CRIU; without a path it is no checkpoint."""

    path: str = ""
    parent: str = ""


def write_checkpoint(runc: Runc, bundle: Bundle, path: str, options: Checkpointing, logger: Logger) -> None:
    """Have the runtime write its container to the folder `path`.

    Raises:
        EngineError: The first line of what the runtime said, and where CRIU's log is.
    """
    work = options.work_path or bundle.file("work/criu-work")
    try:
        if not options.work_path:
            _make_parent(work)
        runc.checkpoint(path, work, options)
    except EngineError as error:
        kept = bundle.file("criu-dump.log")
        try:
            _copy(os.path.join(work, "dump.log"), kept)
        except OSError as problem:
            logger.error("failed to copy dump.log to criu-dump.log", id=runc.container_id, error=problem)
        first = str(error).partition("\n")[0]
        raise EngineError(f"{first} path= {kept}") from None
    finally:
        if not options.work_path:
            _remove_tree(work)


def _make_parent(work: str) -> None:
    """Make what runc expects; containerd has made it already, as a link, for bundles of its own."""
    folder = os.path.dirname(work)
    try:
        os.makedirs(folder, 0o711, exist_ok=True)
    except OSError as error:
        raise EngineError(f"failed to make {folder}: {(error.strerror or str(error)).lower()}") from None


def _copy(source: str, target: str) -> None:
    with open(source, "rb") as log:
        text = log.read()
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644), "wb") as file:
        file.write(text)


def _remove_tree(folder: str) -> None:
    """Remove a folder; by hand, since `shutil` is heavy.  What cannot be removed goes with the bundle's work folder."""
    for path, folders, files in os.walk(folder, topdown=False):
        try:
            for name in files:
                os.unlink(os.path.join(path, name))
            for name in folders:
                inner = os.path.join(path, name)
                os.unlink(inner) if os.path.islink(inner) else os.rmdir(inner)
        except OSError:
            continue
    try:
        os.rmdir(folder)
    except OSError:
        return
