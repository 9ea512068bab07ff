"""What becomes of CRI's description of a pod."""

from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.engine.pod import Dns, PodConfig, read_pod_config, sandbox_spec
from shim.errors import InvalidArgumentError, UnimplementedError
from shim.ttrpc.wire import bytes_field, number_field


def pod(linux: bytes = b"", hostname: str = "") -> AnyMessage:
    """Return a PodSandboxConfig."""
    value = bytes_field(b"\x12", hostname.encode()) + bytes_field(b"\x42", linux)
    return AnyMessage(type_url="types.googleapis.com/runtime.v1.PodSandboxConfig", value=value)


def security(options: bytes) -> bytes:
    """Return a linux config with these namespace options."""
    return bytes_field(b"\x12", bytes_field(b"\x0a", options))


DNS = b"".join(
    bytes_field(tag, text)
    for tag, text in [(b"\x0a", b"192.0.2.1"), (b"\x12", b"a.b"), (b"\x0a", b"192.0.2.2"), (b"\x1a", b"ndots:5")]
)


def dns(value: bytes) -> AnyMessage:
    """Return a PodSandboxConfig with this DNSConfig."""
    return AnyMessage(type_url="runtime.v1.PodSandboxConfig", value=b"\x22" + bytes([len(value)]) + value)


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
        (pod(security(bytes_field(b"\x2a", number_field(b"\x08", 2)))), PodConfig()),
        (dns(b""), PodConfig(dns=Dns())),
        (dns(DNS), PodConfig(dns=Dns(("192.0.2.1", "192.0.2.2"), ("a.b",), ("ndots:5",)))),
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


@pytest.mark.parametrize("users", [b"\x2a\x00", b"\x2a\x02\x08\x00", bytes_field(b"\x2a", number_field(b"\x10", 1))])
def test_a_user_namespace_is_refused(users: bytes) -> None:
    """A pod that asks for one must not run without; its mode is the pod's own unless it says otherwise."""
    with pytest.raises(UnimplementedError, match="user namespaces of pods are not supported"):
        read_pod_config(pod(security(users)))


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


@pytest.mark.parametrize(
    ("config", "netns", "expected"),
    [
        (PodConfig(), "", {}),
        (PodConfig(shares_network=True), "/n", {}),
        (PodConfig(), "/n", {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}),
        (
            PodConfig(sysctls=(("net.ipv4.ip_unprivileged_port_start", "80"), ("a", "b"))),
            "/n",
            {"net.ipv4.ip_unprivileged_port_start": "80", "net.ipv4.ping_group_range": "0 2147483647", "a": "b"},
        ),
    ],
)
def test_a_network_of_its_own_has_the_settings_of_containerds(
    config: PodConfig, netns: str, expected: dict[str, str]
) -> None:
    """Ports and pings are for everybody there; what the pod says comes first."""
    spec: Any = sandbox_spec("s", netns, config, "k8s.io")

    assert expected == spec["linux"]["sysctl"]
