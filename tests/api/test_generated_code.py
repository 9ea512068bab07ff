"""The generated modules agree with the distribution's metadata, and those of services with the descriptors."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor

import shim.api
from shim.ttrpc import Rpc

API = Path(shim.api.__path__[0])
STEMS = sorted(path.name.removesuffix("_ttrpc.py") for path in API.glob("*_ttrpc.py"))


def test_oldest_allowed_protobuf_is_the_one_that_generated_code_needs() -> None:
    """Generated code refuses a protobuf older than its generator's, so no older one may be installed with it."""
    project = tomllib.loads((API.parent.parent / "pyproject.toml").read_text())["project"]
    bounds = {bound for line in project["dependencies"] for bound in re.findall(r"^protobuf>=([\d.]+)", line)}
    versions = re.compile(r"^# Protobuf Python Version: ([\d.]+)$", re.MULTILINE)
    needed = {version for path in API.glob("*_pb2.py") for version in versions.findall(path.read_text())}

    assert needed == bounds


def describe_method(method: MethodDescriptor) -> tuple[object, ...]:
    """Return a method's names, messages and kind."""
    messages = method.input_type.full_name, method.output_type.full_name
    return (
        method.containing_service.full_name,
        method.name,
        *messages,
        method.client_streaming,
        method.server_streaming,
    )


def describe_rpc(rpc: Rpc[Any, Any]) -> tuple[object, ...]:
    """Return the same of one method as its service's module has it."""
    messages = rpc.request.DESCRIPTOR.full_name, rpc.response.DESCRIPTOR.full_name
    return (rpc.service, rpc.name, *messages, rpc.kind.has_client_stream, rpc.kind.has_server_stream)


@pytest.mark.parametrize("stem", sorted(path.name.removesuffix("_pb2.py") for path in API.glob("*_pb2.py")))
def test_modules_of_services_hold_what_the_descriptors_say(stem: str) -> None:
    """Every rpc of every service, and no module where there is no service."""
    services = importlib.import_module(f"shim.api.{stem}_pb2").DESCRIPTOR.services_by_name
    expected = {name: [describe_method(method) for method in service.methods] for name, service in services.items()}
    module = importlib.import_module(f"shim.api.{stem}_ttrpc") if stem in STEMS else None
    found = {name: [describe_rpc(rpc) for rpc in getattr(module, f"{name.upper()}_RPCS")] for name in services}

    assert expected == found
    assert (stem in STEMS) == bool(services)


def test_modules_of_services_load_no_asyncio() -> None:
    """They are on the daemon's import path, and their asyncio half is for who has it already."""
    imports = ", ".join(f"shim.api.{stem}_ttrpc" for stem in STEMS)
    program = f"import sys, {imports}; print(*{{'asyncio', 'shim.ttrpc.aio', 'shim.ttrpc.sync'}} & set(sys.modules))"
    child = subprocess.run([sys.executable, "-I", "-c", program], stdout=subprocess.PIPE, text=True, check=True)

    assert "\n" == child.stdout
