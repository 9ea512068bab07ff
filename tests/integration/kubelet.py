"""containerd's CRI with pyrunc as its runtime, and what a kubelet says to it.

Rule: pods use the host's network, or one of their own without any interface, a pause image of our own and a cgroup
named after the containerd's own namespace, so no CNI plugins, no network and no other containerd is touched.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from google.protobuf.message import Message

from shim.testing import image
from shim.testing.containerd import Containerd
from tests.protos import cri_pb2 as cri

NAMESPACE: Final = "k8s.io"  # containerd's own for all that CRI makes
PAUSE: Final = "docker.io/library/pause:test"
HANDLER: Final = "pyrunc"
CONFIGURED: Final = "configured"  # the same runtime with options of its own
BOXED: Final = "boxed"  # the same runtime, which makes the pod itself where containerd knows how to ask: from 2.0 on

_SERVICE: Final = "/runtime.v1.RuntimeService/"
_LIMIT_S: Final = 60.0

# Says of every network that it is there, and does nothing: a pod's own network namespace is all it gets.
_CNI_PLUGIN: Final = """#!/bin/sh
cat > /dev/null
case $CNI_COMMAND in
ADD) echo '{"cniVersion": "0.3.1", "interfaces": [{"name": "'"$CNI_IFNAME"'", "sandbox": "'"$CNI_NETNS"'"}],' \
  '"ips": [{"version": "4", "address": "192.0.2.7/24", "interface": 0}]}' ;;
VERSION) echo '{"cniVersion": "0.3.1", "supportedVersions": ["0.3.1"]}' ;;
esac
"""
_CNI_NETWORK: Final = '{"cniVersion": "0.3.1", "name": "test", "plugins": [{"type": "nothing"}]}'

ResponseT = TypeVar("ResponseT", bound=Message)


class CriContainerd(Containerd):
    """A containerd that serves CRI, with the runtime under test as the default handler."""

    @property
    def engine_root(self) -> Path:
        """Where the runtime of the handler with options keeps its state."""
        return self.folder / "engine"

    def import_pause(self) -> None:
        """Import the one image that all pods and containers here are made from."""
        archive = image.write_image(self.folder / "pause.tar", name=PAUSE, command=("sleep", "100000"))
        self.import_image(PAUSE, NAMESPACE, archive)

    def settings(self) -> str:
        """Return the handlers, the pause image and the network."""
        options = self.folder / "options.toml"
        options.write_text(f"Root = '{self.engine_root}'\n")
        plugins = self.folder / "cni" / "bin"
        plugins.mkdir(parents=True, exist_ok=True)
        for name in ("loopback", "nothing"):
            (plugins / name).write_text(_CNI_PLUGIN)
            (plugins / name).chmod(0o755)
        (self.folder / "cni" / "test.conflist").write_text(_CNI_NETWORK)
        tables = self._old_tables() if self.release.major == 1 else self._new_tables()
        return "\n".join([*tables, ""])

    def _old_tables(self) -> list[str]:
        plugin = "plugins.'io.containerd.grpc.v1.cri'"
        return [
            f"[{plugin}]",
            f"sandbox_image = '{PAUSE}'",
            "restrict_oom_score_adj = true",  # not every test machine may lower it
            f"[{plugin}.containerd]",
            f"snapshotter = '{self.snapshotter}'",
            f"default_runtime_name = '{HANDLER}'",
            *self._handlers(plugin),
            f"[{plugin}.cni]",
            f"conf_dir = '{self.folder}/cni'",
            f"bin_dir = '{self.folder}/cni/bin'",
        ]

    def _new_tables(self) -> list[str]:
        plugin, images = "plugins.'io.containerd.cri.v1.runtime'", "plugins.'io.containerd.cri.v1.images'"
        return [
            f"[{images}]",
            f"snapshotter = '{self.snapshotter}'",
            f"[{images}.pinned_images]",
            f"sandbox = '{PAUSE}'",
            f"[{plugin}]",
            "restrict_oom_score_adj = true",
            f"[{plugin}.containerd]",
            f"default_runtime_name = '{HANDLER}'",
            *self._handlers(plugin),
            f"[{plugin}.cni]",
            f"conf_dir = '{self.folder}/cni'",
            f"bin_dirs = ['{self.folder}/cni/bin']",
        ]

    def _handlers(self, plugin: str) -> list[str]:
        return [
            f"[{plugin}.containerd.runtimes.{HANDLER}]",
            f"runtime_type = '{self.runtime}'",
            f"[{plugin}.containerd.runtimes.{CONFIGURED}]",
            f"runtime_type = '{self.runtime}'",
            f"[{plugin}.containerd.runtimes.{CONFIGURED}.options]",
            f"ConfigPath = '{self.folder}/options.toml'",
            f"[{plugin}.containerd.runtimes.{BOXED}]",
            f"runtime_type = '{self.runtime}'",
            "sandboxer = 'shim'",
        ]


class Kubelet:
    """Calls CRI; a context manager that closes the connection.  Each call raises what gRPC does."""

    def __init__(self, containerd: CriContainerd) -> None:
        # The generator of our modules brings grpc along, which has no types.
        self._channel = importlib.import_module("grpc").insecure_channel(f"unix://{containerd.address}")
        self._containerd = containerd
        self._pods: dict[str, cri.PodSandboxConfig] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def pods(self) -> list[str]:
        """Return the ids of the pods that were started here and not removed yet."""
        return list(self._pods)

    def run_pod(
        self, name: str, handler: str = "", *, network: cri.NamespaceMode = cri.NODE, dns: cri.DNSConfig | None = None
    ) -> str:
        """Start a pod, which has its name if it has a network of its own, and return its id."""
        options = cri.NamespaceOption(network=network)
        config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, uid=name, namespace="default"),
            hostname="" if network == cri.NODE else name,
            log_directory=str(self._containerd.folder / "logs" / name),
            dns_config=dns,
            linux=cri.LinuxPodSandboxConfig(
                cgroup_parent=f"/{self._containerd.namespace}",
                security_context=cri.LinuxSandboxSecurityContext(namespace_options=options),
            ),
        )
        request = cri.RunPodSandboxRequest(config=config, runtime_handler=handler)
        pod = self._call("RunPodSandbox", request, cri.RunPodSandboxResponse).pod_sandbox_id
        self._containerd.remember(pod, namespace=NAMESPACE)
        self._pods[pod] = config
        return pod

    def pod_status(self, pod: str) -> cri.PodSandboxStatus:
        """Say how a pod is."""
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod)
        return self._call("PodSandboxStatus", request, cri.PodSandboxStatusResponse).status

    def stop_pod(self, pod: str) -> None:
        """Stop a pod and its containers."""
        self._call("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=pod), cri.StopPodSandboxResponse)

    def remove_pod(self, pod: str) -> None:
        """Remove a pod with its containers."""
        self._call("RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=pod), cri.RemovePodSandboxResponse)
        del self._pods[pod]

    def create(self, pod: str, name: str, *command: str, memory: int = 0) -> str:
        """Create a container in a pod and return its id; it may have `memory` bytes, if that is given."""
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name),
            image=cri.ImageSpec(image=PAUSE),
            command=command,
            log_path=f"{name}.log",
            linux=cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(memory_limit_in_bytes=memory)),
        )
        request = cri.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=self._pods[pod])
        container = self._call("CreateContainer", request, cri.CreateContainerResponse).container_id
        self._containerd.remember(container, namespace=NAMESPACE)
        return container

    def start(self, container: str) -> None:
        """Start a created container."""
        self._call("StartContainer", cri.StartContainerRequest(container_id=container), cri.StartContainerResponse)

    def run(self, pod: str, name: str, *command: str, memory: int = 0) -> str:
        """Create and start a container, and return its id."""
        container = self.create(pod, name, *command, memory=memory)
        self.start(container)
        return container

    def status(self, container: str) -> cri.ContainerStatus:
        """Say how a container is."""
        request = cri.ContainerStatusRequest(container_id=container)
        return self._call("ContainerStatus", request, cri.ContainerStatusResponse).status

    def stop(self, container: str, grace_s: int = 0) -> None:
        """Stop a container: SIGTERM, and SIGKILL after `grace_s`."""
        request = cri.StopContainerRequest(container_id=container, timeout=grace_s)
        self._call("StopContainer", request, cri.StopContainerResponse)

    def remove(self, container: str) -> None:
        """Remove a container."""
        self._call("RemoveContainer", cri.RemoveContainerRequest(container_id=container), cri.RemoveContainerResponse)

    def exec(self, container: str, *command: str, timeout_s: int = 0) -> cri.ExecSyncResponse:
        """Run a command in a container to its end; 0 is no limit."""
        request = cri.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout_s)
        return self._call("ExecSync", request, cri.ExecSyncResponse)

    def update(self, container: str, memory: int) -> None:
        """Give a container another limit of memory."""
        resources = cri.LinuxContainerResources(memory_limit_in_bytes=memory)
        request = cri.UpdateContainerResourcesRequest(container_id=container, linux=resources)
        self._call("UpdateContainerResources", request, cri.UpdateContainerResourcesResponse)

    def stats(self, container: str) -> cri.ContainerStats:
        """Return what a container uses."""
        request = cri.ContainerStatsRequest(container_id=container)
        return self._call("ContainerStats", request, cri.ContainerStatsResponse).stats

    def logs(self, pod: str, name: str) -> Mapping[str, str]:
        """Return what the newest container of that name has written, by stream, out of the file that CRI keeps."""
        streams = {"stdout": "", "stderr": ""}
        path = Path(self._pods[pod].log_directory) / f"{name}.log"
        for line in path.read_text().splitlines():
            _time, stream, tag, text = line.split(" ", 3)
            streams[stream] += text + ("\n" if tag == "F" else "")
        return streams

    def _call(self, method: str, request: Message, response: type[ResponseT]) -> ResponseT:
        call = self._channel.unary_unary(
            _SERVICE + method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        answer: ResponseT = call(request, timeout=_LIMIT_S)
        return answer
