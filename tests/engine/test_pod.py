"""What becomes of CRI's description of a pod."""

from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.engine.pod import PodConfig, read_pod_config, sandbox_spec
from shim.errors import InvalidArgumentError
from shim.ttrpc.wire import bytes_field, number_field


def pod(linux: bytes = b"", hostname: str = "") -> AnyMessage:
    """Return a PodSandboxConfig."""
    value = bytes_field(b"\x12", hostname.encode()) + bytes_field(b"\x42", linux)
    return AnyMessage(type_url="types.googleapis.com/runtime.v1.PodSandboxConfig", value=value)


def security(options: bytes) -> bytes:
    """Return a linux config with these namespace options."""
    return bytes_field(b"\x12", bytes_field(b"\x0a", options))


def sysctl(key: bytes, value: bytes) -> bytes:
    """Return one entry of the map of sysctls."""
    return bytes_field(b"\x1a", bytes_field(b"\x0a", key) + bytes_field(b"\x12", value))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (AnyMessage(), PodConfig()),
        (AnyMessage(type_url="containerd.runc.v1.Options", value=b"\xff"), PodConfig()),
        (pod(), PodConfig()),
        (pod(hostname="h"), PodConfig(hostname="h")),
        (pod(bytes_field(b"\x0a", b"/kubepods/pod1")), PodConfig(cgroup_parent="/kubepods/pod1")),
        (pod(sysctl(b"a.b", b"1") + sysctl(b"c", b"")), PodConfig(sysctls=(("a.b", "1"), ("c", "")))),
        (pod(security(number_field(b"\x08", 2))), PodConfig(shares_network=True)),
        (pod(security(number_field(b"\x10", 2))), PodConfig(shares_pids=True)),
        (pod(security(number_field(b"\x18", 2))), PodConfig(shares_ipc=True)),
        (pod(security(number_field(b"\x08", 1) + number_field(b"\x10", 1))), PodConfig()),
    ],
)
def test_a_pods_description_is_read(options: AnyMessage, expected: PodConfig) -> None:
    """Other options, and none, mean a pod that says nothing."""
    assert expected == read_pod_config(options)


@pytest.mark.parametrize("value", [b"\x12", b"\x12\x05ab", b"\x12\x01\xff"])
def test_a_garbled_description_is_refused(value: bytes) -> None:
    """By the name of its type."""
    with pytest.raises(InvalidArgumentError, match=r"cannot decode runtime\.v1\.PodSandboxConfig"):
        read_pod_config(AnyMessage(type_url="runtime.v1.PodSandboxConfig", value=value))


@pytest.mark.parametrize(
    ("config", "netns", "expected"),
    [
        (PodConfig(), "", ["mount", "ipc", "pid"]),
        (PodConfig(), "/n", ["mount", "ipc", "pid", "network", "uts"]),
        (PodConfig(shares_network=True), "/n", ["mount", "ipc", "pid"]),
        (PodConfig(shares_pids=True, shares_ipc=True), "/n", ["mount", "network", "uts"]),
    ],
)
def test_namespaces_are_those_that_the_pod_does_not_share(config: PodConfig, netns: str, expected: list[str]) -> None:
    """A name of its own goes with a network of its own."""
    spec: Any = sandbox_spec("s", netns, config._replace(hostname="h"), "k8s.io")

    assert expected == [namespace["type"] for namespace in spec["linux"]["namespaces"]]
    assert ("h" if "uts" in expected else None) == spec.get("hostname")


@pytest.mark.parametrize(
    ("parent", "expected"),
    [
        ("", "/k8s.io/s"),
        ("/kubepods/pod1", "/kubepods/pod1/s"),
        ("/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice:cri-containerd:s"),
    ],
)
def test_the_cgroup_is_below_the_pods(parent: str, expected: str) -> None:
    """A slice is systemd's, and named as runc wants it."""
    spec: Any = sandbox_spec("s", "", PodConfig(cgroup_parent=parent), "k8s.io")

    assert expected == spec["linux"]["cgroupsPath"]
