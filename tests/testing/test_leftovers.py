"""What counts as left behind by a containerd, and what is somebody else's."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.testing.leftovers import Scope, processes_of


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Return a process with the arguments of a shim in a namespace that several containerds have."""
    words = ["-namespace", "k8s.io", "-address", f"{tmp_path}/c.sock"]
    with subprocess.Popen(["sh", "-c", "read -r line", *words], stdin=subprocess.PIPE) as running:
        yield running
        running.kill()


def is_in(scope: Scope, process: subprocess.Popen[bytes]) -> bool:
    """Say whether the process belongs to the scope."""
    return process.pid in [each.pid for each in processes_of(scope)]


def test_process_belongs_by_its_namespace(process: subprocess.Popen[bytes]) -> None:
    """Where the namespace's name is ours alone."""
    assert is_in(Scope(namespaces=("k8s.io",)), process)


def test_process_belongs_by_more_than_a_shared_namespace(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """Another containerd's shims have that name on their command lines too, and live on; ours have our address."""
    shared = ("k8s.io",)

    assert not is_in(Scope(shared_namespaces=shared), process)
    assert not is_in(Scope(shared_namespaces=shared, addresses=(f"{tmp_path}/other.sock",)), process)
    assert is_in(Scope(shared_namespaces=shared, addresses=(f"{tmp_path}/c.sock",)), process)
