"""pyrunc under the fakes of both its sides: as containerd 2.3 and later start it, on a runtime that does as told.

tests/integration/test_daemonize.py asks the frozen one, under every version.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any

from shim.api.runc_options_pb2 import Options
from shim.testing import FakeContainerd, FakeRunc, RunningShim, wait_until
from shim.ttrpc import RpcError
from tests.fakes import python_path

SHIM = [sys.executable, "-m", "shim.engine"]
SPEC = {
    "process": {"args": ["sleep", "1000"], "env": [f"PATH={os.environ['PATH']}"], "cwd": "/"},
    "linux": {"namespaces": [{"type": "pid"}]},
}


class Scene:
    """A containerd, a runtime, and what goes from one to the other."""

    def __init__(self, containerd: FakeContainerd, runc: FakeRunc, root: Path) -> None:
        self.containerd = containerd
        self.runc = runc
        self.options = Options(binary_name=runc.path, root=str(root))

    def start(self, container: str = "c1") -> RunningShim:
        """Do `start` as a client's first step does."""
        return self.containerd.start(container, spec=SPEC, options=self.options)

    def create(self, shim: RunningShim) -> int:
        """Create the container, and return its pid."""
        options = Any(type_url=self.options.DESCRIPTOR.full_name, value=self.options.SerializeToString())
        pid: int = shim.call("Create", options=options).pid
        return pid


@pytest.fixture(params=["2.3", "2.4"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """Both fakes."""
    environment = {"PYTHONPATH": python_path()}
    with (
        FakeRunc(tmp_path / "bin") as runc,
        FakeContainerd(SHIM, style=request.param, environment=environment) as containerd,
    ):
        yield Scene(containerd, runc, tmp_path / "root")
        assert [] == containerd.events.faults


def test_start_answers_a_bootstrap_result_to_the_byte(scene: Scene) -> None:
    """Version 3, the socket where containerd wants it, ttrpc; and not one byte more on either output."""
    containerd = scene.containerd
    answer = containerd.run_start("c1", options=scene.options)
    (socket,) = Path(containerd.socket_dir).iterdir()
    address = f"unix://{socket}".encode()

    assert b"\x08\x03\x12" + bytes([len(address)]) + address + b"\x1a\x05ttrpc" == answer
    assert not (containerd.bundle("c1").path / "address").exists()


def test_a_whole_life_is_told_in_order(scene: Scene) -> None:
    """And asks the runtime for no more than it has to."""
    shim = scene.start()
    pid = scene.create(shim)
    shim.call("Start")
    shim.call("Kill", signal=9)
    ended = shim.call("Wait")
    deleted = shim.call("Delete")
    shim.call("Shutdown")
    topics = [f"/tasks/{name}" for name in ("create", "start", "exit", "delete")]
    scene.containerd.events.wait_for_topics("c1", topics)

    assert (137, 137, pid) == (ended.exit_status, deleted.exit_status, deleted.pid)
    assert ["create", "start", "kill", "delete"] == scene.runc.commands()
    assert wait_until(lambda: not scene.containerd.processes())
    assert 137 == scene.containerd.delete("c1").exit_status
    assert [] == scene.containerd.warnings


def test_a_runtime_that_is_killed_in_create_leaves_nothing(scene: Scene) -> None:
    """Whenever it was: the caller hears of it, and the id is free again."""
    shim = scene.start()
    for moment in ("at first", "before the pid file", "after the pid file", "before the answer"):
        scene.runc.dies("create", at=moment, once=True)
        with pytest.raises(RpcError, match=r"OCI runtime create failed: .*exit status 137"):
            scene.create(shim)
        assert wait_until(lambda: not scene.runc.processes())

    assert [] == scene.containerd.events.of("c1")
    assert scene.create(shim) > 0


def test_an_init_that_ends_before_its_create_does_is_told_once(scene: Scene) -> None:
    """With its own status."""
    shim = scene.start()
    scene.runc.exits_early("create", 3)
    pid = scene.create(shim)
    exit_ = scene.containerd.events.wait_for("/tasks/exit")
    shim.call("Delete")
    scene.containerd.events.wait_for("/tasks/delete")

    assert (pid, 3) == (exit_.message.pid, exit_.message.exit_status)
    assert ["/tasks/create", "/tasks/exit", "/tasks/delete"] == scene.containerd.events.topics("c1")


def test_an_exit_survives_a_restart_of_containerd(scene: Scene) -> None:
    """It is told to the one that comes back."""
    shim = scene.start()
    scene.create(shim)
    shim.call("Start")
    scene.containerd.stop()
    scene.runc.close()
    scene.containerd.restart()
    again = scene.containerd.reconnect("c1")

    scene.containerd.events.wait_for("/tasks/exit", container="c1")
    assert 137 == again.call("Wait").exit_status


def test_an_answer_that_is_lost_brings_an_event_again(scene: Scene) -> None:
    """At least once is what containerd is promised."""
    scene.containerd.events.drop("/tasks/create")
    shim = scene.start()
    scene.create(shim)
    shim.call("Start")
    scene.containerd.events.wait_for("/tasks/start")

    assert ["/tasks/create", "/tasks/create", "/tasks/start"] == scene.containerd.events.topics("c1")
