"""containerd's NRI, the one peer that multiplexes ttrpc connections: a plugin is client and server on one socket.

Only under containerd 2.1, whatever `--containerd` says: earlier ones leave NRI off, and the peer is the same.  The pods
have the host's network and an image of our own, so nothing is pulled; Go's shim runs them.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import queue
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

import pytest

from shim.testing import image, releases
from shim.testing.containerd import GO_RUNTIME, Containerd
from shim.ttrpc import CallContext, Client, Server, aio
from shim.ttrpc.mux import PLUGIN_SERVICE, RUNTIME_SERVICE, Mux
from shim.ttrpc.wire import varint
from tests.protos import nri_pb2
from tests.protos.nri_ttrpc import (
    AsyncPluginService,
    AsyncRuntimeClient,
    PluginService,
    RuntimeClient,
    plugin_service,
)

RELEASE: Final = "2.1"
CRI: Final = "/runtime.v1.RuntimeService/"
CRI_NAMESPACE: Final = "k8s.io"
PAUSE: Final = "docker.io/library/pause:test"
LIMIT_S: Final = 30.0
# Only what nri.proto knows: containerd would call methods that no handler here has.
EVENTS: Final = sum(1 << (number - 1) for number in nri_pb2.Event.values() if number)
LIFE: Final = [
    nri_pb2.RUN_POD_SANDBOX,
    nri_pb2.POST_CREATE_CONTAINER,
    nri_pb2.STOP_POD_SANDBOX,
    nri_pb2.REMOVE_POD_SANDBOX,
]


class NriContainerd(Containerd):
    """A containerd whose CRI runs pods from an image of our own."""

    def dial(self) -> socket.socket:
        """Return a connection to NRI."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"{self.address}.nri")
        return sock

    def settings(self) -> str:
        """Return what CRI needs to run pods of our image without a network; NRI is as ever."""
        return f"""
            [plugins.'io.containerd.cri.v1.images']
            snapshotter = '{self.snapshotter}'
            [plugins.'io.containerd.cri.v1.images'.pinned_images]
            sandbox = '{PAUSE}'
            [plugins.'io.containerd.cri.v1.runtime']
            restrict_oom_score_adj = true # not every test machine may lower it
            [plugins.'io.containerd.cri.v1.runtime'.cni]
            conf_dir = '{self.folder}/cni'
            bin_dirs = ['{self.folder}/cni/bin']
        """


class Plugin(PluginService):
    """A plugin that notes what it is told and gives every container an environment variable; a context manager."""

    def __init__(self, containerd: NriContainerd, index: int = 10) -> None:
        self.configured: queue.Queue[nri_pb2.ConfigureRequest] = queue.Queue()
        self.synchronized: queue.Queue[nri_pb2.SynchronizeRequest] = queue.Queue()
        self.created: queue.Queue[nri_pb2.CreateContainerRequest] = queue.Queue()
        self.events: queue.Queue[nri_pb2.StateChangeEvent] = queue.Queue()
        self.faults: list[BaseException] = []
        self.registration = nri_pb2.RegisterPluginRequest(plugin_name="test", plugin_idx=str(index))
        self.mux = Mux(containerd.dial())
        self._server = Server([plugin_service(self)], on_fault=lambda _method, error: self.faults.append(error))
        self._server.add_connection(self.mux.channel(PLUGIN_SERVICE))
        self._client = Client(self.mux.channel(RUNTIME_SERVICE))
        self.runtime = RuntimeClient(self._client)

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._server.__exit__(kind, error, trace)
        self.mux.close()

    def register(self) -> nri_pb2.SynchronizeRequest:
        """Register, and return what the runtime tells of its pods and containers then."""
        self.runtime.register_plugin(self.registration, timeout_s=LIMIT_S)
        return self.synchronized.get(timeout=LIMIT_S)

    def configure(self, _context: CallContext, request: nri_pb2.ConfigureRequest, /) -> nri_pb2.ConfigureResponse:
        self.configured.put(request)
        return nri_pb2.ConfigureResponse(events=EVENTS)

    def synchronize(self, _context: CallContext, request: nri_pb2.SynchronizeRequest, /) -> nri_pb2.SynchronizeResponse:
        self.synchronized.put(request)
        return nri_pb2.SynchronizeResponse(more=request.more)

    def create_container(
        self, _context: CallContext, request: nri_pb2.CreateContainerRequest, /
    ) -> nri_pb2.CreateContainerResponse:
        self.created.put(request)
        response = nri_pb2.CreateContainerResponse()
        response.adjust.env.add(key="GIVEN", value="by the plugin")
        return response

    def state_change(self, _context: CallContext, request: nri_pb2.StateChangeEvent, /) -> nri_pb2.Empty:
        self.events.put(request)
        return nri_pb2.Empty()


class AsyncPlugin(AsyncPluginService):
    """A plugin of coroutines that answers what every plugin has to."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[object] = asyncio.Queue()

    async def configure(self, _context: CallContext, request: nri_pb2.ConfigureRequest, /) -> nri_pb2.ConfigureResponse:
        await self.calls.put(request.runtime_name)
        return nri_pb2.ConfigureResponse(events=EVENTS)

    async def synchronize(
        self, _context: CallContext, request: nri_pb2.SynchronizeRequest, /
    ) -> nri_pb2.SynchronizeResponse:
        await self.calls.put(request)
        return nri_pb2.SynchronizeResponse(more=request.more)


class Kubelet:
    """Calls CRI; a context manager that closes the connection."""

    def __init__(self, containerd: Containerd) -> None:
        # The generator of our modules brings it along, without types.
        self._channel = importlib.import_module("grpc").insecure_channel(f"unix://{containerd.address}")
        host_network = field(1, field(1, 2))
        self._pod = field(1, field(1, "pod") + field(2, "uid") + field(3, "default")) + field(8, field(2, host_network))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def run_pod(self) -> str:
        """Start a pod and return its id."""
        return self._call("RunPodSandbox", field(1, self._pod))

    def create_container(self, pod: str, *args: str, env: str) -> str:
        """Create a container in a pod and return its id; ENV is in its environment."""
        container = field(1, field(1, "container")) + field(2, field(1, PAUSE))
        container += b"".join(field(3, arg) for arg in args) + field(6, field(1, "ENV") + field(2, env))
        return self._call("CreateContainer", field(1, pod) + field(2, container) + field(3, self._pod))

    def remove_pod(self, pod: str) -> None:
        """Stop a pod and remove it with its containers."""
        self._call("StopPodSandbox", field(1, pod))
        self._call("RemovePodSandbox", field(1, pod))

    def _call(self, method: str, request: bytes) -> str:
        response: bytes = self._channel.unary_unary(CRI + method)(request, timeout=LIMIT_S)
        return response[2:].decode()  # at most one field, an id


def field(number: int, value: bytes | str | int) -> bytes:
    """Return a field of a protobuf message: CRI's are large, and few of their fields are needed here."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


@pytest.fixture(scope="module")
def containerd() -> Iterator[NriContainerd]:
    """Return a containerd with NRI; in the end nothing may be left of its pods."""
    with NriContainerd(releases.find(RELEASE), runtime=GO_RUNTIME) as running:
        archive = image.write_image(running.folder / "pause.tar", name=PAUSE, command=("sleep", "600"))
        running.import_image(PAUSE, CRI_NAMESPACE, archive)
        yield running
    assert [] == running.left_behind


@pytest.fixture
def plugin(containerd: NriContainerd) -> Iterator[Plugin]:
    """Return a plugin that has not registered yet; it may have met no fault by the end."""
    with Plugin(containerd) as plugin:
        yield plugin
    assert [] == plugin.faults
    assert plugin.mux.error is None


def test_a_plugin_serves_and_calls_on_one_socket(plugin: Plugin) -> None:
    """It registers by a call, and is then called itself: Configure, which may come before the answer, Synchronize."""
    found = plugin.register()

    assert nri_pb2.SynchronizeRequest() == found
    assert "containerd" == plugin.configured.get(timeout=LIMIT_S).runtime_name
    assert plugin.configured.empty()


def test_a_plugin_on_asyncio(containerd: NriContainerd) -> None:
    """The same with coroutines: the channels are sockets."""
    plugin = AsyncPlugin()

    async def scenario(mux: Mux) -> list[object]:
        server = aio.Server([plugin_service(plugin)])
        server.add_connection(mux.channel(PLUGIN_SERVICE))
        async with server, aio.Client(mux.channel(RUNTIME_SERVICE)) as client:
            registration = nri_pb2.RegisterPluginRequest(plugin_name="asyncio", plugin_idx="20")
            await AsyncRuntimeClient(client).register_plugin(registration, timeout_s=LIMIT_S)
            return [await asyncio.wait_for(plugin.calls.get(), LIMIT_S) for _ in range(2)]

    with Mux(containerd.dial()) as mux:
        assert ["containerd", nri_pb2.SynchronizeRequest()] == asyncio.run(scenario(mux))


@pytest.mark.parametrize("size", [1, 3000, 4000, 4086, 4096, 6000, 8192, 100_000, 3_900_000])
def test_messages_of_any_size_reach_containerd(plugin: Plugin, size: int) -> None:
    """Its reader fails on mux frames that are cut otherwise."""
    plugin.register()
    request = nri_pb2.UpdateContainersRequest()
    request.update.add(container_id="x" * size, ignore_failure=True)
    for _ in range(3):
        plugin.runtime.update_containers(request, timeout_s=LIMIT_S)

    assert not plugin.mux.is_closed


def test_many_calls_at_once(containerd: NriContainerd) -> None:
    """Small requests that leave together share mux frames: of single ones containerd's reader holds 256."""

    async def scenario(mux: Mux) -> int:
        async with aio.Client(mux.channel(RUNTIME_SERVICE)) as client:
            runtime = AsyncRuntimeClient(client)
            request = nri_pb2.UpdateContainersRequest()
            calls = [runtime.update_containers(request, timeout_s=LIMIT_S) for _ in range(1000)]
            return len(await asyncio.gather(*calls))

    with Mux(containerd.dial()) as mux:
        assert 1000 == asyncio.run(scenario(mux))


def test_a_plugin_hears_of_pods_and_changes_containers(containerd: NriContainerd, plugin: Plugin) -> None:
    """Events and hooks come on one connection, what is large among them too; a later plugin is told what there is."""
    plugin.register()
    with Kubelet(containerd) as kubelet:
        pod = kubelet.run_pod()
        try:
            container = kubelet.create_container(pod, "sleep", "600", env="x" * 1_000_000)
            request = plugin.created.get(timeout=LIMIT_S)
            spec = json.loads(containerd.ctr("containers", "info", container, namespace=CRI_NAMESPACE).stdout)["Spec"]
            with Plugin(containerd, 30) as later:
                found = later.register()
        finally:
            kubelet.remove_pod(pod)
    events = [plugin.events.get(timeout=LIMIT_S) for _ in LIFE]

    assert (pod, container) == (request.pod.id, request.container.id)
    assert "ENV=" + "x" * 1_000_000 in request.container.env
    assert "GIVEN=by the plugin" in spec["process"]["env"]
    assert ([pod], [container]) == ([pod.id for pod in found.pods], [each.id for each in found.containers])
    assert LIFE == [event.event for event in events]
    assert {pod} == {event.pod.id for event in events}


def test_the_end_of_containerd_ends_the_connections(containerd: NriContainerd, plugin: Plugin) -> None:
    """In the ordinary way, and the next containerd takes the plugin again."""
    plugin.register()
    containerd.stop()

    assert plugin.mux.wait(LIMIT_S)
    containerd.start()
    with Plugin(containerd) as again:
        assert nri_pb2.SynchronizeRequest() == again.register()
