"""What a reaper does while it spawns, as reaping.py runs it: no lock is held then, so exits may come at any moment."""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from shim.host import process
from shim.runtime.reaper import Child, Exit, Reaper
from tests import libc_builtin
from tests.fakes import PATIENCE_S, wait_until
from tests.runtime.reaping import end_of, reap_until
from tests.slow_exec import SlowProgram

IS_BUILT_IN: Final = libc_builtin.NAME in sys.builtin_module_names


def an_exit_before_the_spawn_returns_is_the_childs() -> None:
    """It is told of in the loop, and until then the pid, which may be another's, gets no signal."""
    others: list[Exit] = []
    seen: list[Exit] = []
    sent: list[tuple[int, int]] = []
    reaper = Reaper(others.append)
    reaper.on_exit = seen.append
    window = reaper.open_window()
    real_spawn, real_kill = process.spawn, os.kill

    def spawn_late(*arguments: Any, **rest: Any) -> process.Spawned:
        spawned = real_spawn(*arguments, **rest)
        os.waitid(os.P_PID, spawned.pid, os.WEXITED | os.WNOWAIT)
        reaper.reap()
        assert not os.path.exists(f"/proc/{spawned.pid}")
        return spawned

    process.spawn, os.kill = spawn_late, lambda pid, signum: sent.append((pid, signum))
    try:
        child = reaper.spawn(["sh", "-c", "exit 7"])
        child.kill(signal.SIGKILL)
    finally:
        process.spawn, os.kill = real_spawn, real_kill
    assert (None, []) == (child.wait(0.0), seen)
    reaper.reap()

    assert [(os.getpid(), signal.SIGCHLD)] == sent  # so that the loop looks
    assert [(child.pid, 7)] == [exit_[:2] for exit_ in seen]
    assert 7 == end_of(child).status
    assert ([], {}) == (others, window.exits)


def a_slow_exec_holds_nobody_up() -> None:
    """Other children's exits are told, and strangers' if the slow one's pid is known; it gets its own in the end."""
    others: list[int] = []
    reaper = Reaper(lambda exit_: others.append(exit_.pid))
    mate = reaper.spawn(["sleep", "60"])
    children: list[Child] = []
    with tempfile.TemporaryDirectory() as folder:
        slow = SlowProgram(Path(folder))
        thread = threading.Thread(target=lambda: children.append(reaper.spawn([str(slow.path)])))
        thread.start()
        assert wait_until(slow.is_waiting)
        mate.kill(signal.SIGKILL)
        stranger = os.posix_spawn("/bin/true", ["true"], {})
        reap_until(reaper, lambda: mate.wait(0.0) and not os.path.exists(f"/proc/{stranger}"))
        told = [*others]
        slow.let_go()
        thread.join(PATIENCE_S)
    reap_until(reaper, lambda: children[0].wait(0.0))

    assert ([stranger] if IS_BUILT_IN else []) == told
    assert [stranger] == others
    assert 0 == end_of(children[0]).status


def what_cannot_be_started_is_no_stranger() -> None:
    """Although it has been a process, which the loop may have reaped."""
    others: list[Exit] = []
    reaper = Reaper(others.append)
    stop = threading.Event()

    def reap() -> None:
        while not stop.is_set():
            reaper.reap()

    reaping = threading.Thread(target=reap)
    reaping.start()
    failures = 0
    for _ in range(200):
        try:
            reaper.spawn(["/no/such/program"])
        except FileNotFoundError:
            failures += 1
    stop.set()
    reaping.join()

    assert 200 == failures
    assert [] == others or not IS_BUILT_IN  # ctypes cannot know whose they were


SCENARIOS: Final[list[Callable[[], None]]] = [
    an_exit_before_the_spawn_returns_is_the_childs,
    a_slow_exec_holds_nobody_up,
    what_cannot_be_started_is_no_stranger,
]
