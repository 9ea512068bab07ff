"""Pods that the shim makes itself, under the kubelet's interface: handlers with `sandboxer = "shim"`.

A containerd before 2.0 does not know the word and makes the pod as ever: the kubelet cannot tell one from the other.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.testing.leftovers import read_process
from shim.testing.releases import Release
from tests.integration.client import wait_until
from tests.integration.kubelet import BOXED, NAMESPACE, CriContainerd, Kubelet
from tests.protos import cri_pb2 as cri

MIB = 1 << 20
SHM = "/dev/shm"  # noqa: S108  (a path inside containers)
DNS = cri.DNSConfig(servers=["192.0.2.53", "192.0.2.54"], searches=["svc.test", "test"], options=["ndots:5"])


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
    """Return the id of a pod with a network of its own."""
    return kubelet.run_pod(name, BOXED, network=cri.POD, dns=DNS)


def shims_of(containerd: CriContainerd, *containers: str) -> set[int]:
    """Return the process ids of the shims that serve containers."""
    return {containerd.shim_pid(each, NAMESPACE) for each in containers}


def namespaces_of(containerd: CriContainerd, container: str) -> dict[str, str]:
    """Return the namespaces of a container's init."""
    pid = containerd.task_pid(container, NAMESPACE)
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("ipc", "mnt", "net", "pid", "uts")}


def read(kubelet: Kubelet, container: str, *paths: str) -> str:
    """Return files of a container."""
    return kubelet.exec(container, "cat", *paths).stdout.decode()


def test_pod_of_the_shims_own_lives_and_goes(
    release: Release, containerd: CriContainerd, kubelet: Kubelet, pod: str
) -> None:
    """From the start to the removal, with all that a kubelet asks of a pod; there is no pause container."""
    containers = [kubelet.run(pod, each, "sh", "-c", f"echo I am {each}; exec sleep 1000") for each in ("a", "b")]
    (shim,) = shims_of(containerd, pod, *containers)
    known = set(containerd.ctr("containers", "ls", "-q", namespace=NAMESPACE).stdout.split())
    said = kubelet.exec(containers[0], "sh", "-c", "echo out; echo err >&2; exit 3")
    wait_until(lambda: "I am b\n" == kubelet.logs(pod, "b")["stdout"], "the log is written")
    status = kubelet.pod_status(pod)

    assert ({*containers} if release.major >= 2 else {pod, *containers}) == known
    assert (cri.SANDBOX_READY, BOXED) == (status.state, status.runtime_handler)
    assert (b"out\n", b"err\n", 3) == (said.stdout, said.stderr, said.exit_code)
    kubelet.stop(containers[0])
    kubelet.remove(containers[0])
    again = kubelet.run(pod, "a", "sleep", "1000")
    assert {shim} == shims_of(containerd, again)
    kubelet.stop_pod(pod)
    assert cri.SANDBOX_NOTREADY == kubelet.pod_status(pod).state
    assert [137, 137] == [kubelet.status(each).exit_code for each in (again, containers[1])]
    kubelet.remove_pod(pod)
    wait_until(lambda: read_process(shim) is None, f"shim {shim} ends")
    assert [] == containerd.leftovers()


def test_containers_of_the_shims_own_pod_share_what_a_pod_shares(
    containerd: CriContainerd, kubelet: Kubelet, pod: str
) -> None:
    """Network, name and System V objects, and no more than that; the network is not the host's."""
    first, second = (namespaces_of(containerd, kubelet.run(pod, each, "sleep", "1000")) for each in ("a", "b"))
    host = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in first}

    assert {"ipc", "net", "uts", "pid"} == {kind for kind in first if first[kind] == second[kind]}
    assert not set(first.values()) & set(host.values())


def test_containers_of_the_shims_own_pod_find_its_files(kubelet: Kubelet, pod: str, name: str) -> None:
    """Its name, the host's hosts, the resolvers that the kubelet chose, and shared memory of one size."""
    first, second = (kubelet.run(pod, each, "sleep", "1000") for each in ("a", "b"))
    kubelet.exec(first, "sh", "-c", f"echo shared > {SHM}/file")
    shm = kubelet.exec(first, "sh", "-c", f"stat -f -c '%b %s' {SHM}; stat -c %a {SHM}; grep {SHM} /proc/mounts")
    blocks, mode, mount = shm.stdout.decode().splitlines()

    assert f"{name}\n" * 2 == read(kubelet, first, "/etc/hostname", "/proc/sys/kernel/hostname")
    assert Path("/etc/hosts").read_text() == read(kubelet, first, "/etc/hosts")
    resolvers = "search svc.test test\nnameserver 192.0.2.53\nnameserver 192.0.2.54\noptions ndots:5\n"
    assert resolvers == read(kubelet, second, "/etc/resolv.conf")
    assert "shared\n" == read(kubelet, second, f"{SHM}/file")
    count, size = map(int, blocks.split())
    assert (64 * MIB, "1777") == (count * size, mode)
    assert {"noexec", "nosuid", "nodev"} <= set(mount.split()[3].split(","))


def test_unprivileged_ports_are_open_in_the_shims_own_pod(release: Release, kubelet: Kubelet, pod: str) -> None:
    """As containerd 2 has it by default for its own."""
    container = kubelet.run(pod, "c", "sleep", "1000")
    ports = read(kubelet, container, "/proc/sys/net/ipv4/ip_unprivileged_port_start")

    assert ("0\n" if release.major >= 2 else "1024\n") == ports


def test_pods_of_the_shims_own_outlive_containerd(containerd: CriContainerd, kubelet: Kubelet, pod: str) -> None:
    """The next one finds pod and containers, and more can be done with them."""
    container = kubelet.run(pod, "c", "sleep", "1000")
    before = namespaces_of(containerd, container)
    containerd.kill()
    containerd.start()

    wait_until(lambda: is_in(kubelet, pod, cri.SANDBOX_READY), "CRI has recovered")
    assert cri.CONTAINER_RUNNING == kubelet.status(container).state
    assert b"alive\n" == kubelet.exec(container, "echo", "alive").stdout
    another = kubelet.run(pod, "another", "sleep", "1000")
    assert before["net"] == namespaces_of(containerd, another)["net"]
    assert shims_of(containerd, container) == shims_of(containerd, another)


def is_in(kubelet: Kubelet, pod: str, state: cri.PodSandboxState) -> bool:
    """Say whether CRI answers that; while it recovers, or clears away a dead shim, it has no answer."""
    try:
        return kubelet.pod_status(pod).state == state
    except Exception:
        return False


def test_pod_of_a_killed_shim_is_not_ready_and_can_be_removed(
    containerd: CriContainerd, kubelet: Kubelet, pod: str
) -> None:
    """The kubelet then makes another; nothing of the old one stays."""
    container = kubelet.run(pod, "c", "sleep", "1000")
    (shim,) = shims_of(containerd, container)
    os.kill(shim, signal.SIGKILL)

    wait_until(lambda: is_in(kubelet, pod, cri.SANDBOX_NOTREADY), "the pod is not ready")
    wait_until(lambda: kubelet.status(container).state == cri.CONTAINER_EXITED, "the container has ended")
    kubelet.stop_pod(pod)
    kubelet.remove_pod(pod)
    assert [] == containerd.leftovers()
