"""When the kernel is told that processes are about to be moved between cgroups."""

from contextlib import suppress
from pathlib import Path

import pytest

from shim.engine.call import ChildFds
from shim.engine.runc import Runc
from shim.errors import EngineError
from shim.host import cgroup
from shim.runtime.reaper import ForegroundReaper
from shim.testing import FakeRunc


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle, and a folder for terminals' sockets."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("is_unified", "binary", "expected"),
    [
        pytest.param(False, "runc", ["create", "exec", "restore"], id="version 1"),
        pytest.param(False, "crun", ["create", "exec", "restore"], id="version 1, crun"),
        pytest.param(False, "runsc", [], id="version 1, runsc, which moves itself"),
        pytest.param(True, "runc", ["create", "restore"], id="version 2"),
        pytest.param(True, "crun", [], id="version 2, crun, whose processes are born where they belong"),
    ],
)
def test_the_kernel_is_told_of_moves_to_come(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, is_unified: bool, binary: str, expected: list[str]
) -> None:
    """By the runtime's own process."""
    told: list[int] = []
    monkeypatch.setattr(cgroup, "is_unified", lambda: is_unified)
    monkeypatch.setattr(cgroup, "announce_move", told.append)
    pid_file = str(bundle / "init.pid")

    with FakeRunc(bundle.parent / "bin", binary) as fake:
        runc = Runc(ForegroundReaper(), "c1", str(bundle), "ns", fake.path, str(bundle.parent / "root"))
        runc.create(pid_file, ChildFds(), None)
        runc.start()
        runc.exec(b'{"args":["true"]}', str(bundle / "exec.pid"), ChildFds(), None)
        runc.delete(is_forced=True)
        with suppress(EngineError):  # there is no checkpoint
            runc.restore(str(bundle), "", pid_file, ChildFds(), None)
        commands = {call.pid: command for call, command in zip(fake.calls(), fake.commands(), strict=True)}

    assert ["create", "start", "exec", "delete", "restore"] == list(commands.values())
    assert expected == [commands[pid] for pid in told]
