"""A daemon with hundreds of containers does no more for one call than a daemon with one."""

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.api import task_v3_pb2
from shim.host import mountinfo
from shim.ttrpc import loop
from tests.engine.caller import Caller
from tests.engine.world import OWN_PIDS
from tests.fakes import LoopThread

MANY: Final = 300
TIMES: Final = 5


def steps_of(function: Callable[[], object]) -> int:
    """Return how many lines and calls of Python a call takes: its work, whatever the machine's speed."""
    count = 0

    def trace(frame: FrameType, _event: str, _argument: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename == loop.__file__:
            return None  # whether the loop has to be woken is chance
        count += 1
        return trace

    before = sys.gettrace()
    gc.collect()
    gc.disable()  # whatever it would find is not the call's
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def least_steps(function: Callable[[], object]) -> int:
    """Return the least of several counts: a finalizer or a signal may come in between, and only adds to it."""
    return min(steps_of(function) for _ in range(TIMES))


@pytest.fixture(autouse=True)
def no_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is mounted on this machine is chance, too."""
    monkeypatch.setattr(mountinfo, "find_below", lambda _path: [])


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Caller, Caller]]:
    """A daemon with a container and another with hundreds, of which each has run all kinds of calls before."""
    with LoopThread() as thread:
        few, many = (Caller(tmp_path_factory.mktemp("daemon"), thread, task_v3_pb2) for _ in range(2))
        for caller, count in ((few, 2), (many, MANY)):
            for number in range(count):
                caller.run(f"c{number}")
            for act in CALLS.values():
                act(caller, "c0")
        yield few, many


def add_exec(caller: Caller, container: str) -> object:
    """Register, run and delete an exec."""
    caller.call("exec", "ExecProcessRequest", id=container, exec_id="e", spec=AnyMessage(value=b"{}"))
    pid = caller.call("start", id=container, exec_id="e").pid
    caller.daemon.reaper.exit(pid, 3)
    return caller.call("delete", id=container, exec_id="e")


CALLS: Final[dict[str, Callable[[Caller, str], object]]] = {
    "state": lambda caller, name: caller.call("state", id=name),
    "connect": lambda caller, name: caller.call("connect", id=name),
    "wait": lambda caller, name: caller.call("wait", id=name),
    "close_io": lambda caller, name: caller.call("close_io", "CloseIORequest", id=name, stdin=True),
    "resize_pty": lambda caller, name: caller.call("resize_pty", "ResizePtyRequest", id=name, width=1, height=1),
    "kill": lambda caller, name: caller.call("kill", id=name, signal=15),
    "pause and resume": lambda caller, name: [caller.call(each, id=name) for each in ("pause", "resume")],
    "exec": add_exec,
    "shutdown": lambda caller, name: caller.call("shutdown", id=name),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_as_much_work_with_hundreds_of_containers(callers: tuple[Caller, Caller], name: str) -> None:
    """Counted, not timed: nothing looks at containers that it was not asked about."""
    few, many = (least_steps(lambda caller=caller: CALLS[name](caller, "c1")) for caller in callers)  # type: ignore[misc]

    assert few == many
    assert few > 5


def test_an_exit_is_as_much_work_with_hundreds_of_containers(callers: tuple[Caller, Caller], tmp_path: Path) -> None:
    """From the reaper to the event, and then Delete."""
    counts = []
    for number, caller in enumerate(callers):
        steps = []
        for time in range(TIMES):
            name = f"x{number}-{time}"
            folder = tmp_path / name
            folder.mkdir()
            (folder / "config.json").write_text(OWN_PIDS)
            pid = caller.create(name, bundle=str(folder)).pid
            caller.call("start", id=name)
            steps.append((steps_of(end_of(caller, pid)), steps_of(delete_of(caller, name))))
        counts.append([min(each) for each in zip(*steps, strict=True)])

    assert counts[0] == counts[1]


def end_of(caller: Caller, pid: int) -> Callable[[], object]:
    """Return what reaps a process."""
    return lambda: caller.daemon.reaper.exit(pid, 1)


def delete_of(caller: Caller, name: str) -> Callable[[], object]:
    """Return what deletes a container."""
    return lambda: caller.call("delete", id=name)
