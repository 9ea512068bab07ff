"""Builds the peers in go/ and rust/ from the published module and crate, into .work/interop/.

The code for messages and service is generated here from tests/protos/conformance.proto, by the versions that go.mod and
Cargo.toml pin: for Go by protoc (of grpcio-tools) with two plugins, for Rust by the crate's own generator in build.rs.
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
WORK: Final = _HERE.parents[1] / ".work" / "interop"

_GO_PLUGINS: Final = (
    "google.golang.org/protobuf/cmd/protoc-gen-go",
    "github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc",
)
_TIMEOUT_S: Final = 900  # the first build fetches what it needs and compiles it


class BuildError(Exception):
    """A peer could not be built, though its toolchain is there."""


def go_program(source: Path, work: Path, name: str) -> Path:
    """Return the program of a Go module that speaks the conformance service, built in `work` if need be.

    Raises:
        BuildError: It cannot be built; the text says why.
    """
    tools, module = work / "bin", work / "go"
    tools.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(module, ignore_errors=True)  # what an older generator left would be compiled
    shutil.copytree(source, module)
    environment = {"GOTOOLCHAIN": "local", "GOBIN": str(tools)}  # a newer compiler is not fetched behind one's back
    _run(["go", "install", *_GO_PLUGINS], module, environment)
    _run(_protoc(tools, module), module)
    _run(["go", "build", "-o", str(tools / name), "."], module, environment)
    return tools / name


def go_peer() -> Path:
    """Return the peer in Go, built if need be."""
    return go_program(_HERE / "go", WORK, "go-peer")


def rust_peer() -> Path:
    """Return the peer in Rust, built if need be."""
    target = WORK / "rust"
    _run(["cargo", "build", "--jobs", "1", "--target-dir", str(target)], _HERE / "rust")
    return target / "debug" / "rust-peer"


def _protoc(tools: Path, module: Path) -> list[str]:
    spec = importlib.util.find_spec("grpc_tools")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("grpcio-tools is not installed: run through ./just")
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
        raise BuildError(f"{' '.join(command[:3])} ... took more than {_TIMEOUT_S} s") from None
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command[:3])} ... failed in {folder}:\n{done.stdout}")
