"""Builds the contender in go/ from the published module, into .work/bench-ttrpc/.

The code for messages and service is generated from tests/protos/conformance.proto by protoc (of grpcio-tools) with the
versions of the two plugins that go.mod pins.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).resolve().parent
_PROTOS: Final = _HERE.parent / "protos"
_WORK: Final = _HERE.parents[1] / ".work" / "bench-ttrpc"
_PLUGINS: Final = (
    "google.golang.org/protobuf/cmd/protoc-gen-go",
    "github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc",
)
_TIMEOUT_S: Final = 600  # the first build fetches the modules and compiles them


class BuildError(Exception):
    """The program in Go could not be built; the text says why."""


def go_program() -> Path:
    """Return the program in Go, built if need be.

    Raises:
        BuildError: There is no Go here, or it fails.
    """
    if shutil.which("go") is None:
        raise BuildError("no go on this machine")
    tools, module = _WORK / "bin", _WORK / "go"
    tools.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(module, ignore_errors=True)  # what an older generator left would be compiled
    shutil.copytree(_HERE / "go", module)
    environment = {"GOTOOLCHAIN": "local", "GOBIN": str(tools)}  # a newer compiler is not fetched behind one's back
    _run(["go", "install", *_PLUGINS], module, environment)
    _run(_protoc(tools, module), module)
    _run(["go", "build", "-o", str(tools / "go-bench"), "."], module, environment)
    return tools / "go-bench"


def _protoc(tools: Path, module: Path) -> list[str]:
    spec = importlib.util.find_spec("grpc_tools")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("no grpcio-tools in this environment")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{_PROTOS}"]
    command.append(f"-I{Path(spec.submodule_search_locations[0]) / '_proto'}")
    for name in ("go", "go-ttrpc"):
        command.append(f"--plugin=protoc-gen-{name}={tools / f'protoc-gen-{name}'}")
        command += [f"--{name}_out={module}", f"--{name}_opt=module=conformance"]
    return [*command, "conformance.proto"]


def _run(command: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"{' '.join(command[:2])} took more than {_TIMEOUT_S} s") from None
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command[:2])} failed: {done.stdout.strip().splitlines()[-1]}")
