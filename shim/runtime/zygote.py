"""The zygote: a warm process that forks the next daemons, so that a launch need not start an interpreter.

Rule: a cache.  Losing it at any moment, by any signal, costs time and nothing else, so it tells nobody of trouble: it
ends, and the plain path serves.  One thread, no state of any container, nothing open but what it names.
One for each binary, user, set of namespaces and parent (containerd): founded by a plain `start`, ended when it is idle,
when containerd is, or when its binary or its socket is no longer there.  CONTAINERD_SHIM_FASTPATH=off does without.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from shim.host import process
from shim.runtime import zygote_protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.runtime.shim import Shim

    Perform = Callable[[list[str]], int]

# How long the first `start`, and then its daemon, have the machine for themselves.
_HEAD_START_S: Final = 0.05


def leave(shim: Shim, perform: Perform) -> None:
    """Leave a zygote behind, unless there is one or cannot be one; called by a `start` that has still its own identity.

    `perform` does what a command line says and returns the exit code.  containerd waits for this process: so it only
    forks, and the fork finds out the rest.
    """
    if os.environ.get(zygote_protocol.SWITCH_VARIABLE) == "off" or not _has_fastpath():
        return
    parent = process.invoker_pid()
    if parent <= 0:
        return  # outside our pid namespace
    founder = os.pidfd_open(parent)
    if process.invoker_pid() == parent and os.fork() == 0:
        try:
            _be_zygote(shim, perform, parent, founder)
        finally:
            os._exit(0)
    os.close(founder)


def _has_fastpath() -> bool:
    """Say whether callers of this binary would look for a zygote."""
    from shim_revision import HAS_FASTPATH  # type: ignore[import-not-found]  # written by build/spec

    return bool(HAS_FASTPATH)


def _be_zygote(shim: Shim, perform: Perform, parent: int, founder: int) -> None:
    import select
    import signal

    from shim.host import appearance, heap, identity
    from shim.runtime import address, daemon

    start = os.pidfd_open(os.getppid())
    os.setpgid(0, 0)
    daemon.detach_stdio()
    low, high = sorted((founder, start))
    for first, last in ((3, low), (low + 1, high), (high + 1, 1 << 30)):
        os.closerange(first, last)  # whatever `start` had open: its socket, above all
    for number in (signal.SIGTERM, signal.SIGINT):  # `start` ignores them
        signal.signal(number, signal.SIG_DFL)
    folder = zygote_protocol.folder(os.geteuid(), os.environ)
    path = os.path.join(folder, zygote_protocol.socket_name(identity.numbers(parent)))
    if address.is_alive(path):
        return
    select.select([start], [], [], _HEAD_START_S)
    os.close(start)
    time.sleep(_HEAD_START_S)
    sys.argv[:] = [process.own_command()[-1], "zygote", path]
    idle_s = zygote_protocol.idle_s(os.environ)
    # Fails where the kernel does not do it: there daemons could not show whose they are.
    appearance.show(sys.argv, {})
    os.environ.clear()
    os.chdir("/")
    shim.preload()
    from shim.runtime import rehearsal, warmth, worker, zygote_spares

    process.forget_unpacked_folder()
    if not zygote_spares.has_own_folder(folder):
        return  # somebody else made it
    with warmth.only_one(folder) as is_first:
        if not is_first or address.is_alive(path):
            return
        try:
            warmth.warm_up(shim, path)
        except rehearsal.RehearsalError:
            return  # the next `start` leaves another one
    if len(os.listdir("/proc/self/task")) != 1:
        return  # an import has started a thread
    heap.settle()
    if not os.path.isdir(folder):
        return  # somebody wants no zygotes any more, and `bind` would make it again
    bound = address.bind(path)  # last: who listens without a spare keeps callers waiting
    if bound is None:
        return
    serve_one = partial(worker.serve, bound, founder=founder, parent=parent, perform=perform)
    try:
        zygote_spares.Zygote(bound, founder, idle_s, serve_one).run()
    finally:
        bound.remove()
