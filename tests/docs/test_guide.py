"""What docs/guide.md shows and says, as far as it needs no root; the rest is in tests/integration/test_guide.py."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import shim
from shim import api
from shim.ttrpc import CallContext, Code, Deferred
from shim.ttrpc.status import status_of
from tests.docs.blocks import blocks, texts, write_files
from tests.fakes import ROOT

PAGE = "docs/guide.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the guide's files."""
    write_files(PAGE, tmp_path)
    return tmp_path


def load(folder: Path, name: str, kind: str) -> type[Any]:
    """Return a class of one of the guide's files."""
    found: type[Any] = runpy.run_path(str(folder / name))[kind]
    return found


def make(kind: type[Any]) -> Any:
    """Return a shim, as in a process that has no daemon."""
    return kind("io.containerd.test.v1", shim.Flags(namespace="default", id="c1"), shim.Config())


def test_the_whole_shim_is_as_short_as_it_says() -> None:
    """It has 40 lines."""
    (text,) = texts(PAGE, "A whole shim", "python")

    assert 40 == len([line for line in text.splitlines() if line.strip()])


def test_pods_are_grouped_by_their_annotation(folder: Path) -> None:
    """A container without one is a group of its own."""
    shim_ = make(load(folder, "pods.py", "Pods"))
    opts = shim.StartOpts(id="c1", namespace="default", bundle=str(folder))
    (folder / "config.json").write_text("{}")

    assert "c1" == shim_.group(opts)
    (folder / "config.json").write_text(json.dumps({"annotations": {"io.kubernetes.cri.sandbox-id": "pod1"}}))
    assert "pod1" == shim_.group(opts)


def test_a_pod_lives_until_it_is_stopped(folder: Path) -> None:
    """The sandbox service is served beside task v2 and v3, and Wait is answered by Stop."""
    pod = make(load(folder, "pod.py", "Pod"))
    services = {service.name: service for service in pod.services(SimpleNamespace(publisher=None))}

    def call(rpc: str, request: Any) -> Any:
        method = services["containerd.runtime.sandbox.v1.Sandbox"].methods[rpc]
        return method.handler(CallContext(rpc), request)

    assert {"containerd.task.v2.Task", "containerd.task.v3.Task"} < set(services)
    call("CreateSandbox", api.CreateSandboxRequest(sandbox_id="p1"))
    assert "SANDBOX_NOTREADY" == call("SandboxStatus", api.SandboxStatusRequest(sandbox_id="p1")).state
    call("StartSandbox", api.StartSandboxRequest(sandbox_id="p1"))
    assert "SANDBOX_READY" == call("SandboxStatus", api.SandboxStatusRequest(sandbox_id="p1")).state
    assert "linux" == call("Platform", api.PlatformRequest()).platform.os
    waiting = call("WaitSandbox", api.WaitSandboxRequest(sandbox_id="p1"))
    assert isinstance(waiting, Deferred)
    before = waiting.is_done
    call("StopSandbox", api.StopSandboxRequest(sandbox_id="p1"))
    assert (False, True) == (before, waiting.is_done)
    assert "SANDBOX_NOTREADY" == call("SandboxStatus", api.SandboxStatusRequest(sandbox_id="p1")).state
    call("ShutdownSandbox", api.ShutdownSandboxRequest(sandbox_id="p1"))
    assert pod.exit.is_set


def test_the_table_of_errors_is_right() -> None:
    """Each class is answered with the code beside it."""
    page = (ROOT / PAGE).read_text()
    rows = re.findall(r"^\| `shim\.(\w+)`[^|]* \| `(\w+)` \|$", page, re.MULTILINE)
    public = {
        name
        for name in shim.__all__
        if isinstance(getattr(shim, name), type) and issubclass(getattr(shim, name), shim.ShimError)
    }

    assert public == {name for name, _ in rows}
    for name, code in rows:
        assert Code[code] == status_of(getattr(shim, name)("it"))[0]


@pytest.mark.parametrize("block", [block for block in blocks(PAGE) if block.language == "python"], ids=lambda b: b.name)
def test_files_can_be_loaded_without_being_run(block: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing one starts no shim; so tests can."""
    monkeypatch.syspath_prepend(str(folder))

    assert runpy.run_path(str(folder / block.name))["shim" if "import shim" in block.text else "api"]


def test_links_of_pages_lead_somewhere() -> None:
    """Those to files of this repository."""
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert (page.parent / target).exists() or target.startswith("http"), f"{page.name}: {target}"
