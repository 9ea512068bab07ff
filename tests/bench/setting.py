"""What our shim is told by its environment, and the sides that are compared.

Rule: the one place that says how ours groups containers; containerds and starts by hand use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from shim.testing.containerd import GO_RUNTIME, RUNTIME
from shim.testing.releases import Release
from tests.bench.rows import GO, OURS, RUST

CONFIG_VARIABLE: Final = "CONTAINERD_SHIM_CONFIG"
RUST_RUNTIME: Final = "io.containerd.runc.v2-rs"
RUST_PROGRAM: Final = "containerd-shim-runc-v2-rs"


class Mode(Enum):
    """How ours groups containers."""

    SPLIT = "a daemon for each container"
    DENSE = "one daemon for the namespace"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the shims; `service` is what answers its State calls."""

    name: str
    runtime: str
    shim: Path
    service: str


def sides(release: Release, ours: Path, rust: Path | None) -> Sequence[Side]:
    """Return Go's shim of the release, the Rust one if there is one, and ours."""
    # Go's serves only the version of its time; ours serves both, and is asked for the same.
    service = f"containerd.task.{'v2' if release.major < 2 else 'v3'}.Task"
    found = [Side(GO, GO_RUNTIME, release.go_shim, service)]
    if rust is not None:
        found.append(Side(RUST, RUST_RUNTIME, rust, "containerd.task.v2.Task"))  # which 2.x speaks too
    return [*found, Side(OURS, RUNTIME, ours, service)]


def environment(mode: Mode, folder: Path) -> dict[str, str]:
    """Return the variables of a mode; a configuration file of its own is put into `folder`."""
    config = ""  # the host's own is not ours to measure
    if mode is Mode.DENSE:
        config = str(folder / "dense.toml")
        Path(config).write_text('grouping = "namespace"\n')
    return {CONFIG_VARIABLE: config}
