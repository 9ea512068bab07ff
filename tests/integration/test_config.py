"""The configuration file under a real containerd: grouping, limits, and mistakes in it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from shim import ttrpc
from shim.testing.containerd import Containerd
from shim.testing.leftovers import ENGINE_STATE
from shim.testing.releases import Release
from tests.integration.client import Guests, TaskClient, shim_address, wait_until

Configured = Callable[[str], Containerd]
IN_POD: Final = ["--annotation", "io.kubernetes.cri.sandbox-id=pod"]


@pytest.fixture
def configured(release: Release, shim_folder: Path, tmp_path: Path) -> Iterator[Configured]:
    """Return a starter of a containerd whose shims have a configuration; it must leave nothing behind."""
    file = tmp_path / "shim.toml"
    with ExitStack() as stack:
        started: list[Containerd] = []

        def start(text: str) -> Containerd:
            file.write_text(text)
            environment = {"CONTAINERD_SHIM_CONFIG": str(file)}
            containerd = Containerd(release, [shim_folder], environment=environment)
            started.append(stack.enter_context(containerd))
            containerd.import_image()
            return containerd

        yield start
    for containerd in started:
        assert [] == containerd.left_behind


def sleeper(containerd: Containerd, name: str, *options: str) -> str:
    """Run a container that sleeps."""
    containerd.run(name, "sleep", "1000", detach=True, options=["--null-io", *options])
    return name


def remove(containerd: Containerd, *names: str) -> None:
    """Kill and delete containers."""
    for name in names:
        containerd.ctr("tasks", "rm", "--force", name, check=False)
        containerd.ctr("containers", "rm", name)


def test_one_daemon_for_a_namespace(configured: Configured, name: str) -> None:
    """Deleting one container, the first one too, leaves the others as they are; the last one ends the daemon."""
    containerd = configured('grouping = "namespace"')
    names = [sleeper(containerd, f"{name}-{number}") for number in range(3)]
    pids = {containerd.shim_pid(each) for each in names}
    tasks = {each: containerd.task_pid(each) for each in names[1:]}
    remove(containerd, names[0])
    left = {each: containerd.task_pid(each) for each in names[1:]}
    statuses = [containerd.tasks()[each].status for each in names[1:]]

    assert 1 == len(pids)
    assert tasks == left
    assert ["RUNNING"] * 2 == statuses

    remove(containerd, *names[1:])
    wait_until(lambda: not containerd.shims(), "the daemon has ended")


def test_the_log_outlives_the_first_bundle(configured: Configured, name: str) -> None:
    """containerd reads the log of a bundle until that goes: by then the daemon writes into another one."""
    containerd = configured('grouping = "namespace"')
    names = [sleeper(containerd, f"{name}-{number}") for number in range(2)]
    pid = containerd.shim_pid(names[0])
    remove(containerd, names[0])
    os.kill(pid, signal.SIGUSR1)

    wait_until(lambda: f"container {names[1]}: running" in containerd.log, "the dump in containerd's log")
    remove(containerd, names[1])


def test_the_death_of_a_namespaces_daemon_is_cleaned_up(configured: Configured, name: str) -> None:
    """Each of its containers by a `delete` of its own."""
    containerd = configured('grouping = "namespace"')
    names = [sleeper(containerd, f"{name}-{number}") for number in range(3)]
    pid = containerd.shim_pid(names[0])
    inits = [containerd.task_pid(each) for each in names]
    os.kill(pid, 9)

    wait_until(lambda: not any(Path(f"/proc/{init}").exists() for init in inits), "all inits have gone")
    wait_until(lambda: not containerd.tasks(), "containerd has forgotten the tasks")
    for each in names:
        containerd.ctr("containers", "rm", each)


def test_a_daemon_for_each_container_of_a_pod(configured: Configured, name: str) -> None:
    """Where the default would be one for all of them."""
    containerd = configured('grouping = "container"')
    names = [sleeper(containerd, f"{name}-{number}", *IN_POD) for number in range(2)]

    assert 2 == len({containerd.shim_pid(each) for each in names})

    remove(containerd, *names)


@pytest.mark.parametrize(
    ("text", "expected"), [("groping = 'pod'", "unknown key groping"), ("[limits]\nstart = true", "limits.start wants")]
)
def test_a_mistake_fails_the_start_by_its_name(
    configured: Configured, name: str, tmp_path: Path, text: str, expected: str
) -> None:
    """ctr shows file and key."""
    containerd = configured(text)
    result = containerd.run(name, "true", check=False)
    containerd.ctr("containers", "rm", name, check=False)

    assert 0 != result.returncode
    assert f"{tmp_path}/shim.toml: {expected}" in result.stderr


def test_a_runtime_and_its_root_for_all_containers(configured: Configured, name: str, tmp_path: Path) -> None:
    """Unless their own options say otherwise; `delete` of a dead daemon finds them in the bundle."""
    root = tmp_path / "root"
    containerd = configured(f'root = "{root}"')
    sleeper(containerd, name)
    left = json.loads((containerd.bundle(name) / "options.json").read_text())

    assert {"root": str(root)} == left
    assert (root / containerd.namespace / name).is_dir()

    remove(containerd, name)

    assert not (root / containerd.namespace / name).exists()


def test_a_create_that_hangs_leaves_nothing(configured: Configured, name: str) -> None:
    """No process of the runtime or its hooks, no state, mount or cgroup; another container never feels it."""
    containerd = configured("[limits]\ncreate = 2\n")
    host = sleeper(containerd, f"{name}-host")
    guests = Guests(containerd, host)

    def hang(spec: dict[str, Any]) -> None:
        spec["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1234.5"]}]}

    with pytest.raises(ttrpc.RpcError, match=f"runc create of container {name} was not done after 2 s") as caught:
        guests.create(name, "true", edit=hang)
    hooks = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"1234.5" in path.read_bytes()]
    cgroups = [path for path in Path("/sys/fs/cgroup").rglob(name) if path.is_dir()]
    with TaskClient(shim_address(containerd.bundle(host)), host) as client:
        alive = client.run("e", "true")
    again = guests.client(name)
    request = guests.request(name, containerd.folder / "guests" / name)
    spec = json.loads((containerd.folder / "guests" / name / "config.json").read_text())
    del spec["hooks"]
    (containerd.folder / "guests" / name / "config.json").write_text(json.dumps(spec))
    pid = again.create(request)

    assert ttrpc.Code.DEADLINE_EXCEEDED == caught.value.code
    assert [] == hooks
    assert [] == cgroups
    assert 0 == alive
    assert pid > 0
    assert (ENGINE_STATE / containerd.namespace / name).is_dir()

    guests.close()
    remove(containerd, host)
