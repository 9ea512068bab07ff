"""What CRI says of a pod, and the OCI spec of its sandbox that follows from it.

Rule: words to values, no file is touched here; what containerd's own sandboxer gives a pod is given here too.
Spec: kubernetes cri-api runtime/v1, PodSandboxConfig.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from shim.errors import InvalidArgumentError, UnimplementedError
from shim.ttrpc.wire import fields

# Looked for by the runtime before its gate, and never run.
PAUSE: Final = "pause"

_POD_CONFIG: Final = "runtime.v1.PodSandboxConfig"
_POD: Final = 0  # NamespaceMode: the pod's own
_NODE: Final = 2  # the host's
# What containerd 2 sets by default in a pod with a network of its own, unless the pod says otherwise.
_NETWORK_SYSCTLS: Final[Mapping[str, str]] = MappingProxyType(
    {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
)


class Dns(NamedTuple):
    """What shall stand in the pod's resolv.conf."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class PodConfig(NamedTuple):
    """What CRI says of a pod, as far as its sandbox goes; the defaults are those of a pod that says nothing."""

    hostname: str = ""
    cgroup_parent: str = ""
    sysctls: tuple[tuple[str, str], ...] = ()
    shares_network: bool = False
    shares_pids: bool = False
    shares_ipc: bool = False
    dns: Dns | None = None  # None: the host's

    @property
    def is_in_slice(self) -> bool:
        """True when systemd makes the pod's cgroup."""
        return os.path.basename(self.cgroup_parent).endswith(".slice")


def read_pod_config(options: Any) -> PodConfig:
    """Return what CRI's PodSandboxConfig says, by its field numbers; other options, and none, say nothing.

    Raises:
        InvalidArgumentError: It cannot be decoded; the text names its type.
        UnimplementedError: It wants a user namespace.
    """
    if options.type_url.rpartition("/")[2] != _POD_CONFIG:
        return PodConfig()
    try:
        pod = _Fields(options.value)
        linux = pod.message(8)
        namespaces = linux.message(2).message(1)
        users = namespaces.messages(5)
        config = PodConfig(
            hostname=pod.text(2),
            cgroup_parent=linux.text(1),
            sysctls=tuple((entry.text(1), entry.text(2)) for entry in linux.messages(3)),
            shares_network=namespaces.number(1) == _NODE,
            shares_pids=namespaces.number(2) == _NODE,
            shares_ipc=namespaces.number(3) == _NODE,
            dns=_read_dns(pod.messages(4)),
        )
    except ValueError as error:
        raise InvalidArgumentError(f"cannot decode {options.type_url}: {error}: invalid argument") from None
    if users and users[-1].number(1) == _POD:
        # containerd's folder for sandboxes has mode 0700: root of a user namespace does not get to its root.
        raise UnimplementedError("user namespaces of pods are not supported by this sandbox service: not implemented")
    return config


def _read_dns(configs: list[_Fields]) -> Dns | None:
    return Dns(*(tuple(configs[-1].texts(number)) for number in (1, 2, 3))) if configs else None


class _Fields:
    """The fields of a message that is known by its numbers only; the last of each number counts."""

    def __init__(self, data: bytes) -> None:
        self._values = [(number, value) for number, _, value in fields(data)]

    def _bytes(self, number: int) -> list[bytes]:
        return [value for found, value in self._values if found == number and isinstance(value, bytes)]

    def messages(self, number: int) -> list[_Fields]:
        return [_Fields(value) for value in self._bytes(number)]

    def message(self, number: int) -> _Fields:
        return (self.messages(number) or [_Fields(b"")])[-1]

    def texts(self, number: int) -> list[str]:
        return [value.decode() for value in self._bytes(number)]

    def text(self, number: int) -> str:
        return (self.texts(number) or [""])[-1]

    def number(self, number: int) -> int:
        values = [value for found, value in self._values if found == number and isinstance(value, int)]
        return values[-1] if values else 0


def sandbox_spec(sandbox_id: str, netns_path: str, config: PodConfig, namespace: str) -> dict[str, object]:
    """Return the OCI spec of a pod's sandbox, as containerd's own pause container has it."""
    kinds: list[dict[str, str]] = [{"type": "mount"}]
    if not config.shares_ipc:
        kinds.append({"type": "ipc"})
    if not config.shares_pids:
        kinds.append({"type": "pid"})
    has_network = bool(netns_path) and not config.shares_network
    if has_network:  # a name of its own goes with a network of its own
        kinds += [{"type": "network", "path": netns_path}, {"type": "uts"}]
    parent = config.cgroup_parent or f"/{namespace}"
    linux = {
        "namespaces": kinds,
        "cgroupsPath": f"{os.path.basename(parent)}:cri-containerd:{sandbox_id}"
        if config.is_in_slice
        else os.path.join(parent, sandbox_id),
        "sysctl": {**(_NETWORK_SYSCTLS if has_network else {}), **dict(config.sysctls)},
        "resources": {"cpu": {"shares": 2}},
    }
    spec: dict[str, object] = {
        "ociVersion": "1.0.2",
        "process": {
            "args": [f"/{PAUSE}"],
            "cwd": "/",
            "env": ["PATH=/"],
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=64k"]},
        ],
        "linux": linux,
    }
    if config.hostname and has_network:
        spec["hostname"] = config.hostname
    return spec
