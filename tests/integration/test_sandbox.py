"""The sandbox service of pyrunc, as containerd's shim sandboxer drives it: by hand, without CRI."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim import ttrpc
from shim.api import task_v2_pb2
from shim.api.sandbox_pb2 import (
    CreateSandboxRequest,
    PingRequest,
    PlatformRequest,
    SandboxMetricsRequest,
    SandboxStatusRequest,
    ShutdownSandboxRequest,
    StartSandboxRequest,
    StopSandboxRequest,
    WaitSandboxRequest,
    WaitSandboxResponse,
)
from shim.api.sandbox_ttrpc import SandboxClient
from shim.engine.shim import SANDBOX_CONTROLLER
from shim.host.mount import unmount_recursive
from shim.testing.leftovers import read_process
from shim.ttrpc import Code
from shim.ttrpc.wire import bytes_field, number_field
from tests.integration import byhand
from tests.integration.byhand import Hand, finish, refusal, wait_gone
from tests.integration.client import wait_until

pytest_generate_tests = byhand.pytest_generate_tests
program, spawn, hand = byhand.program, byhand.spawn, byhand.hand

POD: Final = "pod1"
LIMIT_S: Final = 30.0


def pod_config(hostname: str, *, host_ipc: bool = False) -> AnyMessage:
    """Return CRI's PodSandboxConfig: hostname 2, linux 8 with security context 2, namespace options 1, sysctls 3."""
    options = number_field(b"\x18", 2) if host_ipc else b""
    context = bytes_field(b"\x12", bytes_field(b"\x0a", options))
    sysctl = bytes_field(b"\x0a", b"kernel.shm_rmid_forced") + bytes_field(b"\x12", b"1")
    linux = context + (b"" if host_ipc else bytes_field(b"\x1a", sysctl))
    value = bytes_field(b"\x12", hostname.encode()) + bytes_field(b"\x42", linux)
    return AnyMessage(type_url="runtime.v1.PodSandboxConfig", value=value)


class Pod:
    """A sandbox's bundle, its shim, and a client of both services."""

    def __init__(self, hand: Hand) -> None:
        self.hand = hand
        self.bundle = hand.folder / SANDBOX_CONTROLLER / hand.namespace / POD
        hand.bundle(POD)  # for its log, which `close` looks at
        self.bundle.mkdir(parents=True)
        done = finish(hand.popen(*hand.arguments(POD, "start"), cwd=self.bundle))
        assert (0, b"") == (done.returncode, done.stderr)
        self.address = done.stdout.decode()
        self.client = ttrpc.connect(self.address, timeout_s=LIMIT_S)
        self.sandbox = SandboxClient(self.client)

    def create(self, **fields: object) -> None:
        """Prepare the sandbox."""
        request = CreateSandboxRequest(sandbox_id=POD, bundle_path=str(self.bundle), **fields)  # type: ignore[arg-type]
        self.sandbox.create_sandbox(request, timeout_s=LIMIT_S)

    def start(self) -> int:
        """Run it, and return its pid."""
        return self.sandbox.start_sandbox(StartSandboxRequest(sandbox_id=POD), timeout_s=LIMIT_S).pid

    def status(self) -> tuple[str, int]:
        """Return its state and pid."""
        status = self.sandbox.sandbox_status(SandboxStatusRequest(sandbox_id=POD), timeout_s=LIMIT_S)
        return status.state, status.pid

    def stop(self) -> None:
        """End it."""
        self.sandbox.stop_sandbox(StopSandboxRequest(sandbox_id=POD), timeout_s=LIMIT_S)

    def shut_down(self) -> None:
        """End its shim."""
        self.sandbox.shutdown_sandbox(ShutdownSandboxRequest(sandbox_id=POD), timeout_s=LIMIT_S)


@pytest.fixture
def pod(hand: Hand) -> Iterator[Pod]:
    """A shim that was started for a sandbox, and nothing yet in it; it ends by ShutdownSandbox."""
    pod = Pod(hand)
    daemons = [process.pid for process in hand.processes() if "-id" in process.arguments]
    yield pod
    try:
        pod.shut_down()
    except (ttrpc.TtrpcError, OSError):
        pass  # the test has ended it
    pod.client.close()
    for pid in daemons:
        wait_gone(pid)


@pytest.fixture
def network() -> Iterator[Path]:
    """A network namespace, as CNI would have made it."""
    with subprocess.Popen(["unshare", "--net", "sleep", "1000"]) as holder:
        own = os.readlink("/proc/self/ns/net")
        path = Path(f"/proc/{holder.pid}/ns/net")
        wait_until(lambda: os.readlink(path) != own, "a network namespace")
        yield path
        holder.kill()


def namespaces(pid: int) -> dict[str, str]:
    """Return the namespaces of a process."""
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("ipc", "mnt", "net", "pid", "uts")}


def test_a_sandbox_holds_the_pods_namespaces(pod: Pod, network: Path) -> None:
    """The network is the one that it was given; name and kernel settings are the pod's."""
    pod.create(netns_path=str(network), options=pod_config("pod-name"))
    assert ("SANDBOX_NOTREADY", 0) == pod.status()
    pid = pod.start()
    own, theirs = namespaces(os.getpid()), namespaces(pid)

    assert ("SANDBOX_READY", pid) == pod.status()
    assert os.readlink(network) == theirs["net"]
    assert not set(own.values()) & set(theirs.values())
    inside = ["nsenter", "--target", str(pid), "--uts", "--ipc", "cat", "/proc/sys/kernel/hostname"]
    inside.append("/proc/sys/kernel/shm_rmid_forced")
    assert "pod-name\n1\n" == subprocess.run(inside, capture_output=True, text=True, check=True).stdout

    pod.stop()
    assert ("SANDBOX_NOTREADY", pid) == pod.status()
    assert read_process(pid) is None


def test_a_sandbox_on_the_hosts_network_has_its_name(pod: Pod) -> None:
    """Without a network of its own it has no name of its own either; CRI may leave it the host's ipc too."""
    pod.create(options=pod_config("unused", host_ipc=True))
    theirs, own = namespaces(pod.start()), namespaces(os.getpid())

    assert [own[kind] for kind in ("ipc", "net", "uts")] == [theirs[kind] for kind in ("ipc", "net", "uts")]
    assert own["pid"] != theirs["pid"]


def test_what_is_left_of_a_sandbox_is_an_empty_folder(pod: Pod) -> None:
    """containerd removes the root by rmdir, and a bundle with a mount in it not at all."""
    rootfs = pod.bundle / "rootfs"
    pod.create(options=pod_config("pod-name"))
    pod.start()
    shared = sorted(path.name for path in rootfs.iterdir() if path.is_file() and path.stat().st_size)
    assert ["hostname", "hosts", "resolv.conf"] == shared
    assert (rootfs / "shm").is_mount()

    pod.stop()
    assert [] == list(rootfs.iterdir())
    rootfs.rmdir()


def test_a_sandbox_that_never_starts_leaves_nothing_either(pod: Pod) -> None:
    """containerd shuts it down and removes its bundle."""
    pod.create()
    assert (pod.bundle / "rootfs").is_mount()

    pod.shut_down()
    assert [] == list((pod.bundle / "rootfs").iterdir())


def test_a_container_joins_the_pod(hand: Hand, pod: Pod) -> None:
    """Its start meets the sandbox's shim, which lives until both are gone; the end of the sandbox is told once."""
    pod.create(options=pod_config("unused"))
    pid = pod.start()
    spec = hand.spec("c1", "sleep", "1000")
    spec["linux"] = {
        "cgroupsPath": f"/{hand.namespace}/c1",
        "namespaces": [{"type": "mount"}, {"type": "ipc", "path": f"/proc/{pid}/ns/ipc"}, {"type": "pid"}],
    }
    hand.bundle("c1", spec=spec, group=POD)
    started = hand.start("c1")
    assert pod.address == started.stdout.decode()
    task = hand.client("c1", pod.address)
    inner = task.create(hand.create_request("c1"))
    task.start()
    assert namespaces(pid)["ipc"] == namespaces(inner)["ipc"] != namespaces(os.getpid())["ipc"]

    pod.stop()
    ended: WaitSandboxResponse = pod.sandbox.wait_sandbox(WaitSandboxRequest(sandbox_id=POD), timeout_s=LIMIT_S)
    assert 137 == ended.exit_status
    assert ended.exited_at.seconds > 0
    pod.shut_down()
    assert 0 != task.connect().shim_pid  # a container is left
    task.kill(9)
    task.wait()
    task.delete()
    task.shutdown()


def test_waiting_holds_until_the_sandbox_ends(pod: Pod) -> None:
    """containerd waits all the time; a sandbox that is killed from outside is not ready any more."""
    pod.create()
    pid = pod.start()
    with pytest.raises(ttrpc.RpcError) as caught:
        pod.sandbox.wait_sandbox(WaitSandboxRequest(sandbox_id=POD), timeout_s=0.2)
    assert Code.DEADLINE_EXCEEDED == caught.value.code

    os.kill(pid, signal.SIGKILL)
    assert 137 == pod.sandbox.wait_sandbox(WaitSandboxRequest(sandbox_id=POD), timeout_s=LIMIT_S).exit_status
    assert ("SANDBOX_NOTREADY", pid) == pod.status()
    pod.stop()
    pod.stop()  # repeating it is fine


def test_a_sandbox_tells_of_itself(pod: Pod) -> None:
    """Platform, liveness, the bundle if asked for, and the numbers of its cgroup."""
    pod.create()
    pod.start()
    platform = pod.sandbox.platform(PlatformRequest(sandbox_id=POD), timeout_s=LIMIT_S).platform
    pod.sandbox.ping_sandbox(PingRequest(sandbox_id=POD), timeout_s=LIMIT_S)
    status = pod.sandbox.sandbox_status(SandboxStatusRequest(sandbox_id=POD, verbose=True), timeout_s=LIMIT_S)
    metrics = pod.sandbox.sandbox_metrics(SandboxMetricsRequest(sandbox_id=POD), timeout_s=LIMIT_S).metrics

    assert ("linux", {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine)) == (
        platform.os,
        platform.architecture,
    )
    assert str(pod.bundle) == status.info["bundle"]
    assert status.created_at.seconds > 0
    assert (POD, True) == (metrics.id, metrics.data.type_url.startswith("io.containerd.cgroups.v"))


def test_what_cannot_be_has_a_code(pod: Pod) -> None:
    """Unknown ones, second ones, and what needs a start first."""
    sandbox = pod.sandbox
    unknown = PingRequest(sandbox_id="nope")
    assert (Code.NOT_FOUND, "sandbox nope: not found") == refusal(lambda: sandbox.ping_sandbox(unknown))
    pod.create()
    assert Code.ALREADY_EXISTS == refusal(pod.create)[0]
    waiting = WaitSandboxRequest(sandbox_id=POD)
    assert Code.FAILED_PRECONDITION == refusal(lambda: sandbox.wait_sandbox(waiting, timeout_s=LIMIT_S))[0]
    pod.start()
    assert Code.FAILED_PRECONDITION == refusal(pod.start)[0]
    sandbox.shutdown_sandbox(ShutdownSandboxRequest(sandbox_id="nope"), timeout_s=LIMIT_S)
    assert "SANDBOX_READY" == pod.status()[0]  # the other one's shutdown is not this one's


def test_a_failed_start_leaves_nothing(pod: Pod) -> None:
    """The runtime's words reach containerd, which removes the bundle."""
    (pod.bundle / "config.json").write_text(json.dumps({"ociVersion": "1.0.2", "linux": {}}))
    pod.create()

    assert "OCI runtime create failed" in refusal(pod.start)[1]
    assert "SANDBOX_NOTREADY" == pod.status()[0]


def test_delete_of_a_sandbox_removes_the_containers_of_its_killed_shim(hand: Hand, pod: Pod) -> None:
    """containerd has deleted their bundles by then, and calls nobody for them."""
    pod.create()
    pod.start()
    bundle = hand.bundle("c1", group=POD)
    task = hand.client("c1", pod.address)
    pid = task.create(hand.create_request("c1"))
    task.start()
    (daemon,) = [process.pid for process in hand.processes() if "-id" in process.arguments]
    os.kill(daemon, signal.SIGKILL)
    wait_gone(daemon)
    unmount_recursive(str(bundle / "rootfs"))
    for name in ("config.json", "options.json", "runtime", "init.pid"):
        (bundle / name).unlink()
    done = hand.run(*hand.arguments(POD, "delete"), cwd=pod.bundle)

    assert (0, b"") == (done.returncode, done.stderr)
    wait_gone(pid)
    assert not Path("/run/containerd/runc", hand.namespace, "c1").exists()


def test_delete_removes_the_sandbox_of_a_killed_shim(hand: Hand, pod: Pod) -> None:
    """By its bundle alone, as a container's."""
    pod.create()
    pid = pod.start()
    (daemon,) = [process.pid for process in hand.processes() if "-id" in process.arguments]
    os.kill(daemon, signal.SIGKILL)
    wait_gone(daemon)
    done = hand.run(*hand.arguments(POD, "delete"), cwd=pod.bundle)

    assert (0, b"") == (done.returncode, done.stderr)
    assert pid == task_v2_pb2.DeleteResponse.FromString(done.stdout).pid
    wait_gone(pid)
    assert not hand.socket_path(POD).exists()
