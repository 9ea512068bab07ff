"""One call of a program: what goes in and out, and what becomes of one that takes too long."""

import os
from pathlib import Path

import pytest

from shim.engine import call
from shim.engine.call import ChildFds, Ended, exec_failure, run_attached, run_captured
from shim.runtime.reaper import ForegroundReaper
from tests.engine.loggers import OwnReaper
from tests.fakes import open_descriptors, wait_until

# Three generations; the grandchild leaves its pid.
FAMILY = "sh -c 'sleep 1000 & echo $! >{pid}; wait' & wait"


def is_gone(path: Path) -> bool:
    """Say whether the process whose pid is in a file has ended; zombies of no parent of ours count as gone."""
    try:
        stat = Path(f"/proc/{int(path.read_text())}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


@pytest.mark.parametrize("reaper", [OwnReaper, ForegroundReaper])
def test_a_program_that_ends_is_not_late(reaper: type[OwnReaper]) -> None:
    """With its status and what it wrote on both outputs."""
    ended = run_captured(reaper(), ["sh", "-c", "echo out; echo err >&2; exit 3"], limit_s=60)

    assert Ended(3, "out\nerr\n") == ended
    assert Ended(4) == run_attached(reaper(), ["sh", "-c", "exit 4"], ChildFds(), limit_s=60)


@pytest.mark.parametrize("reaper", [OwnReaper, ForegroundReaper])
@pytest.mark.parametrize("program", ["exec sleep 60", "while :; do echo x; sleep 0.01; done"])
def test_run_captured_kills_what_takes_too_long(reaper: type[OwnReaper], program: str) -> None:
    """Whether it is silent or not."""
    ended = run_captured(reaper(), ["sh", "-c", f"exec 2>&1; {program}"], limit_s=0.1)

    assert ended.is_late
    assert ended.status == 137


@pytest.mark.parametrize("is_attached", [False, True])
def test_what_a_late_program_has_started_goes_with_it(tmp_path: Path, is_attached: bool) -> None:
    """To the last generation: nothing goes on behind the caller's back."""
    pid = tmp_path / "pid"
    argv = ["sh", "-c", FAMILY.format(pid=pid)]
    reaper = OwnReaper()
    limit_s = 0.5
    ended = (
        run_attached(reaper, argv, ChildFds(), limit_s=limit_s)
        if is_attached
        else run_captured(reaper, argv, limit_s=limit_s)
    )

    assert ended.is_late
    assert wait_until(lambda: is_gone(pid))


def test_output_that_another_process_keeps_open_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a hook that becomes a daemon would; the call has ended when its program has."""
    monkeypatch.setattr(call, "_GLANCE_S", 0.02)
    ended = run_captured(OwnReaper(), ["sh", "-c", f"echo text; sleep 1000 & echo $! >{tmp_path}/pid"], limit_s=60)
    is_alive = not is_gone(tmp_path / "pid")
    os.kill(int((tmp_path / "pid").read_text()), 9)

    assert Ended(0, "text\n") == ended
    assert is_alive


def test_run_captured_takes_much_in_and_out() -> None:
    """More than a pipe holds."""
    data = os.urandom(1 << 19).hex().encode()
    ended = run_captured(ForegroundReaper(), ["cat"], data)

    assert Ended(0, data.decode()) == ended


def test_a_call_leaves_no_descriptor() -> None:
    """In success and in failure."""
    before = open_descriptors()
    run_captured(ForegroundReaper(), ["true"], b"x")
    run_captured(OwnReaper(), ["sleep", "60"], b"x", limit_s=0.0)
    with pytest.raises(FileNotFoundError):
        run_captured(ForegroundReaper(), ["no-such-program"], b"x")

    assert before == open_descriptors()


def test_exec_failure_of_a_program_that_is_there() -> None:
    """The system's reason, in lower case."""
    assert "fork/exec sh: permission denied" == exec_failure("sh", PermissionError(13, "Permission denied"))
