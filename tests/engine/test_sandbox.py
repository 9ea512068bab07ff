"""What a container of a sandbox gets from it."""

from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.api.sandbox_pb2 import CreateSandboxRequest
from shim.api.types_pb2 import Mount
from shim.engine.bundle import Bundle
from shim.engine.options import RuncOptions
from shim.engine.sandbox import POD_ANNOTATION, PodSandboxes
from shim.ttrpc.wire import bytes_field


@pytest.mark.parametrize(
    ("parent", "pod", "expected"),
    [
        ("/kubepods.slice/kubepods-pod1.slice", "s", True),
        ("/kubepods/pod1", "s", False),
        ("/kubepods.slice/kubepods-pod1.slice", "another", False),
    ],
)
def test_containers_of_a_pod_in_a_slice_are_systemds(tmp_path: Any, parent: str, pod: str, expected: bool) -> None:
    """Else the runtime would take the slice for a folder; containerd may have no options to say so with."""
    engine: Any = SimpleNamespace(namespace="ns")
    sandboxes = PodSandboxes(engine)
    value = bytes_field(b"\x42", bytes_field(b"\x0a", parent.encode()))
    request = CreateSandboxRequest(
        sandbox_id="s",
        bundle_path=str(tmp_path),
        rootfs=[Mount(type="bind", source="/")],
        options=AnyMessage(type_url="runtime.v1.PodSandboxConfig", value=value),
    )
    context: Any = None
    sandboxes.create_sandbox(context, request)
    spec: dict[str, Any] = {"annotations": {POD_ANNOTATION: pod}}

    options = sandboxes.adopt(Bundle(str(tmp_path / "c")), spec, RuncOptions())
    assert expected is options.systemd_cgroup
    assert sandboxes.adopt(Bundle(str(tmp_path / "c")), {}, RuncOptions(systemd_cgroup=True)).systemd_cgroup
