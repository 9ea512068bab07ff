"""Pods under the kubelet's interface: containerd's CRI on the one side, this shim on the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.testing.leftovers import read_process
from shim.testing.releases import Release
from tests.integration.client import wait_until
from tests.integration.kubelet import CONFIGURED, HANDLER, NAMESPACE, CriContainerd, Kubelet
from tests.protos import cri_pb2 as cri

MIB = 1 << 20


@pytest.fixture(scope="module")
def containerd(release: Release, shim_folder: Path) -> Iterator[CriContainerd]:
    """Return a containerd with CRI that all tests here share; in the end nothing may be left of its pods."""
    with CriContainerd(release, [shim_folder]) as running:
        running.import_pause()
        yield running
    assert [] == running.left_behind


@pytest.fixture
def kubelet(containerd: CriContainerd) -> Iterator[Kubelet]:
    """Return a connection to CRI; the pods that are started with it are gone afterwards."""
    with Kubelet(containerd) as kubelet:
        yield kubelet
        for pod in kubelet.pods():
            kubelet.stop_pod(pod)
            kubelet.remove_pod(pod)


@pytest.fixture
def pod(kubelet: Kubelet, name: str) -> str:
    """Return the id of a pod."""
    return kubelet.run_pod(name)


def wait_exited(kubelet: Kubelet, container: str) -> cri.ContainerStatus:
    """Wait until CRI knows that a container has ended, and return its status."""
    wait_until(lambda: kubelet.status(container).state == cri.CONTAINER_EXITED, f"{container} exits")
    return kubelet.status(container)


def test_pod_lives_and_goes(containerd: CriContainerd, kubelet: Kubelet, name: str) -> None:
    """It and its containers share one shim, which ends with it; whatever ran is removed with it."""
    pod = kubelet.run_pod(name, HANDLER)
    containers = [kubelet.run(pod, each, "sleep", "1000") for each in ("a", "b")]
    shims = {containerd.shim_pid(each, NAMESPACE) for each in (pod, *containers)}
    status = kubelet.pod_status(pod)
    kubelet.stop_pod(pod)

    assert (cri.SANDBOX_READY, HANDLER) == (status.state, status.runtime_handler)
    assert cri.SANDBOX_NOTREADY == kubelet.pod_status(pod).state
    assert [137, 137] == [kubelet.status(each).exit_code for each in containers]
    (shim,) = shims
    kubelet.remove_pod(pod)
    wait_until(lambda: read_process(shim) is None, f"shim {shim} ends")
    assert [] == containerd.leftovers()


def test_exit_codes_and_logs_reach_the_kubelet(kubelet: Kubelet, pod: str) -> None:
    """Each container's own, whole to the last line."""
    script = 'echo to stdout; echo to stderr >&2; printf unfinished; exit "$0"'
    failed = wait_exited(kubelet, kubelet.run(pod, "failed", "sh", "-c", script, "7"))
    done = wait_exited(kubelet, kubelet.run(pod, "done", "sh", "-c", script, "0"))

    assert [(7, "Error"), (0, "Completed")] == [(each.exit_code, each.reason) for each in (failed, done)]
    assert failed.finished_at < done.finished_at
    for name in ("failed", "done"):
        assert {"stdout": "to stdout\nunfinished", "stderr": "to stderr\n"} == kubelet.logs(pod, name)


def test_exec_sync_returns_all_of_it(kubelet: Kubelet, pod: str) -> None:
    """Both streams, however long, and the exit code; a program that is not there is an error."""
    container = kubelet.run(pod, "c", "sleep", "1000")
    small = kubelet.exec(container, "sh", "-c", "echo out; echo err >&2; exit 3")
    large = kubelet.exec(container, "head", "-c", "3000000", "/dev/zero")

    assert (b"out\n", b"err\n", 3) == (small.stdout, small.stderr, small.exit_code)
    assert (bytes(3_000_000), 0) == (large.stdout, large.exit_code)
    with pytest.raises(Exception, match="no such file or directory"):
        kubelet.exec(container, "/no/such/program")
    assert 0 == kubelet.exec(container, "true").exit_code


def test_exec_sync_ends_at_its_limit(kubelet: Kubelet, pod: str) -> None:
    """The program is killed and the container lives on."""
    container = kubelet.run(pod, "c", "sleep", "1000")

    with pytest.raises(Exception, match="timeout 1s exceeded"):
        kubelet.exec(container, "sleep", "2000", timeout_s=1)
    wait_until(lambda: b"2000" not in kubelet.exec(container, "ps").stdout, "the program is gone")
    assert cri.CONTAINER_RUNNING == kubelet.status(container).state


def test_stop_kills_what_does_not_end_in_time(kubelet: Kubelet, pod: str) -> None:
    """SIGTERM first, which a container may heed or not; its pod and its neighbour stay."""
    traps = {"heeding": "exit 5", "deaf": ""}
    heeding, deaf = (
        kubelet.run(pod, each, "sh", "-c", f"trap '{trap}' TERM; echo ready; while :; do sleep 0.1; done")
        for each, trap in traps.items()
    )
    wait_until(lambda: all("ready" in kubelet.logs(pod, each)["stdout"] for each in traps), "the traps are set")
    kubelet.stop(heeding, 60)
    kubelet.stop(deaf, 1)

    assert [5, 137] == [kubelet.status(each).exit_code for each in (heeding, deaf)]
    kubelet.remove(deaf)
    assert cri.SANDBOX_READY == kubelet.pod_status(pod).state
    again = kubelet.run(pod, "deaf", "sleep", "1000")
    assert cri.CONTAINER_RUNNING == kubelet.status(again).state


def test_stats_are_those_of_the_container(kubelet: Kubelet, pod: str) -> None:
    """Time and memory grow with what the container does."""
    container = kubelet.run(pod, "c", "sh", "-c", "read -r x < /dev/zero & sleep 1000")
    wait_until(lambda: kubelet.stats(container).cpu.usage_core_nano_seconds.value, "it has used time")
    before = kubelet.stats(container)
    kubelet.exec(container, "sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done")
    after = kubelet.stats(container)

    assert container == after.attributes.id
    assert after.cpu.usage_core_nano_seconds.value > before.cpu.usage_core_nano_seconds.value
    assert after.memory.working_set_bytes.value > 0


def test_memory_limit_is_kept_and_changed(kubelet: Kubelet, pod: str) -> None:
    """A container that goes beyond it ends as OOMKilled; it can be changed while the container runs."""
    greedy = wait_exited(kubelet, kubelet.run(pod, "greedy", "tail", "/dev/zero", memory=16 * MIB))
    changed = kubelet.run(pod, "changed", "sleep", "1000", memory=16 * MIB)
    kubelet.update(changed, 32 * MIB)
    files = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2> /dev/null; true"

    assert (137, "OOMKilled") == (greedy.exit_code, greedy.reason)
    assert b"%d\n" % (32 * MIB) == kubelet.exec(changed, "sh", "-c", files).stdout


def test_pods_outlive_containerd(release: Release, containerd: CriContainerd, kubelet: Kubelet, pod: str) -> None:
    """The next one finds what runs, and what ended meanwhile.

    From 1.7 on it takes a shim whose container has no processes for one that was never used, and deletes it, so that
    CRI is left with a code of its own, whatever the shim says.
    """
    running = kubelet.run(pod, "running", "sleep", "1000")
    ending = kubelet.run(pod, "ending", "sh", "-c", "while [ ! -e /end ]; do sleep 0.05; done; exit 9")
    pid = containerd.task_pid(ending, NAMESPACE)
    containerd.kill()
    Path(f"/proc/{pid}/root/end").touch()
    wait_until(lambda: read_process(pid) is None, "the container ends")
    containerd.start()

    wait_until(lambda: kubelet_answers(kubelet, pod), "CRI has recovered")
    assert cri.CONTAINER_RUNNING == kubelet.status(running).state
    assert b"alive\n" == kubelet.exec(running, "echo", "alive").stdout
    assert (9 if release.key == "1.6" else 255) == wait_exited(kubelet, ending).exit_code


def kubelet_answers(kubelet: Kubelet, pod: str) -> bool:
    """Say whether CRI answers, which is some time after containerd does."""
    try:
        return kubelet.pod_status(pod).state == cri.SANDBOX_READY
    except Exception:
        return False


def test_handler_has_its_own_options(containerd: CriContainerd, kubelet: Kubelet, name: str) -> None:
    """The file that its table names is read: here, where the runtime keeps its state."""
    pod = kubelet.run_pod(name, CONFIGURED)
    container = kubelet.run(pod, "c", "sleep", "1000")
    states = containerd.engine_root / NAMESPACE

    assert {pod, container} == {path.name for path in states.iterdir()}
    assert CONFIGURED == kubelet.pod_status(pod).runtime_handler
