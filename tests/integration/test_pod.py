"""Containers of one pod share one shim, which outlives each of them but the last; a failure of one is its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from shim.testing.containerd import CommandError, Containerd
from shim.testing.events import EventLog
from shim.testing.leftovers import SOCKET_FOLDER, read_process, socket_name
from tests.integration.client import shim_address, wait_until

SANDBOX = "io.kubernetes.cri.sandbox-id"
GROUP = "io.containerd.runc.v2.group"

Remove = Callable[[str], None]


def labelled(**labels: str) -> list[str]:
    """Return the options of `ctr run` that set annotations: `sandbox` and `group`."""
    names = {"sandbox": SANDBOX, "group": GROUP}
    return [word for label, value in labels.items() for word in ("--annotation", f"{names[label]}={value}")]


def run(containerd: Containerd, container: str, options: Sequence[str]) -> int:
    """Start a container that sleeps and return the pid of its shim."""
    containerd.run(container, "sleep", "1000", detach=True, options=options)
    return containerd.shim_pid(container)


def assert_alive(containerd: Containerd, container: str) -> None:
    """Check that a container runs and takes execs."""
    assert "RUNNING" == containerd.tasks()[container].status
    assert "alive\n" == containerd.exec(container, "echo", "alive").stdout


def assert_gone(containerd: Containerd, shim: int, group: str) -> None:
    """Check that a shim has ended and taken its socket along."""
    wait_until(lambda: read_process(shim) is None, f"shim {shim} ends")

    assert not (SOCKET_FOLDER / socket_name(containerd.address, containerd.namespace, group)).exists()
    assert [] == containerd.leftovers()


@pytest.mark.parametrize("label", ["sandbox", "group"])
@pytest.mark.parametrize("is_leader_first", [True, False], ids=["leader-first", "leader-last"])
def test_pod_shares_one_shim(
    containerd: Containerd, name: str, remove: Remove, label: str, is_leader_first: bool
) -> None:
    """Either annotation groups; each container ends alone, whichever was first; the shim ends with the last."""
    options = labelled(**{label: f"{name}-pod"})
    names = [f"{name}-{letter}" for letter in "abc"]
    shim, *others = [run(containerd, each, options) for each in names]

    assert [shim] * 2 == others
    assert 1 == len({shim_address(containerd.bundle(each)) for each in names})
    for number, each in enumerate(order := names if is_leader_first else names[::-1]):
        remove(each)
        for left in order[number + 1 :]:
            assert_alive(containerd, left)
    assert_gone(containerd, shim, f"{name}-pod")


def test_pod_takes_new_containers_after_its_leader(containerd: Containerd, name: str, remove: Remove) -> None:
    """A shim whose first container, and that one's bundle, are gone still serves new ones of the pod."""
    options = labelled(sandbox=f"{name}-pod")
    shim = run(containerd, f"{name}-a", options)
    run(containerd, f"{name}-b", options)
    remove(f"{name}-a")

    assert shim == run(containerd, f"{name}-c", options)
    assert_alive(containerd, f"{name}-c")
    remove(f"{name}-b")
    assert_alive(containerd, f"{name}-c")
    remove(f"{name}-c")
    assert_gone(containerd, shim, f"{name}-pod")


def test_group_annotation_wins_over_sandbox(containerd: Containerd, name: str, remove: Remove) -> None:
    """With both annotations the group counts; without any a container has a shim of its own."""
    only_sandbox = run(containerd, f"{name}-a", labelled(sandbox=f"{name}-pod"))
    both = run(containerd, f"{name}-b", labelled(sandbox=f"{name}-pod", group=f"{name}-group"))
    only_group = run(containerd, f"{name}-c", labelled(group=f"{name}-group"))
    alone = run(containerd, f"{name}-d", [])
    for letter in "abcd":
        remove(f"{name}-{letter}")

    assert both == only_group
    assert 3 == len({only_sandbox, both, alone})


def test_failing_create_leaves_the_pod_alone(containerd: Containerd, name: str, remove: Remove) -> None:
    """A second container that cannot be made is told of, and neither the first nor their shim notices."""
    options = labelled(sandbox=f"{name}-pod")
    shim = run(containerd, f"{name}-a", options)
    failed = containerd.run(f"{name}-b", "/nosuch", options=options, check=False)

    assert 0 != failed.returncode
    assert "/nosuch" in failed.stderr
    assert [f"{name}-a"] == list(containerd.tasks())
    assert not containerd.bundle(f"{name}-b").exists()
    assert shim == containerd.shim_pid(f"{name}-a")
    assert_alive(containerd, f"{name}-a")
    assert shim == run(containerd, f"{name}-c", options)
    remove(f"{name}-c")
    remove(f"{name}-a")
    assert_gone(containerd, shim, f"{name}-pod")


def test_failing_create_of_the_only_container_ends_the_shim(containerd: Containerd, name: str) -> None:
    """No shim without containers stays behind."""
    failed = containerd.run(name, "/nosuch", options=labelled(sandbox=f"{name}-pod"), check=False)

    assert 0 != failed.returncode
    assert [] == containerd.leftovers()


def test_exit_of_one_is_told_for_it_alone(containerd: Containerd, name: str, remove: Remove, events: EventLog) -> None:
    """A container that is killed stops; the other one of its pod runs on, and no exit is told for it."""
    options = labelled(sandbox=f"{name}-pod")
    run(containerd, f"{name}-a", options)
    run(containerd, f"{name}-b", options)
    containerd.ctr("tasks", "kill", "-s", "SIGKILL", f"{name}-a")
    exited = events.wait("/tasks/exit", f"{name}-a")
    containerd.wait_status(f"{name}-a", "STOPPED")
    remove(f"{name}-a")
    events.wait("/tasks/delete", f"{name}-a")

    assert 137 == exited.body["exit_status"]
    assert ["/tasks/create", "/tasks/start"] == events.topics(f"{name}-b")
    assert_alive(containerd, f"{name}-b")
    remove(f"{name}-b")


def test_containers_started_at_once_share_one_shim(containerd: Containerd, name: str, remove: Remove) -> None:
    """However many come at the same time, the group has exactly one shim and all of them run in it."""
    names = [f"{name}-{number}" for number in range(6)]
    options = labelled(sandbox=f"{name}-pod")
    runs = [
        containerd.popen(*containerd.run_arguments(each, "sleep", "1000", detach=True, options=options))
        for each in names
    ]
    for process in runs:
        stdout, stderr = process.communicate(timeout=90)
        if process.returncode:
            raise CommandError(
                list(map(str, process.args)),  # type: ignore[arg-type]
                process.returncode,
                stdout.decode(),
                stderr.decode(),
                containerd.tail(),
            )
    shim, *others = [containerd.shim_pid(each) for each in names]

    assert [shim] * 5 == others
    assert names == sorted(containerd.tasks())
    for each in names:
        assert_alive(containerd, each)
    for each in names:
        remove(each)
    assert_gone(containerd, shim, f"{name}-pod")
