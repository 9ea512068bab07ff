"""Containers in a user namespace of their own, whose root file systems show their files as theirs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.host import libc, mountinfo
from shim.testing.containerd import Containerd
from tests.integration import byhand
from tests.integration.byhand import Hand

program, spawn, hand = byhand.program, byhand.spawn, byhand.hand

REMAPPED = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536"]
LOOK = "stat -c %u:%g /bin/sh; touch /new; stat -c %u:%g /new; cat /proc/self/uid_map; mount | grep -c /ovl-idmapped/"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests by hand once for each kind of shim, the others as all that use a containerd."""
    if "hand" in metafunc.fixturenames:
        byhand.pytest_generate_tests(metafunc)


@pytest.fixture
def open_folder(containerd: Containerd) -> Iterator[Path]:
    """Let others than root go through the folder of the private containerd, as they can through /run."""
    mode = containerd.folder.stat().st_mode
    containerd.folder.chmod(0o711)
    yield containerd.folder
    containerd.folder.chmod(mode)


def mapped_layers() -> list[str]:
    """Return where layers of overlays are id-mapped now."""
    return [entry.mount_point for entry in mountinfo.read() if "ovl-idmapped" in entry.mount_point]


@pytest.mark.usefixtures("open_folder")
def test_a_container_in_a_user_namespace_owns_its_files(containerd: Containerd, name: str) -> None:
    """From 2.0 on the shim can be told to map the ids of the image's layers; before, clients copy the image."""
    is_mapped = not containerd.release.version.startswith("1.")
    options = [*REMAPPED, *["--remap-labels"] * is_mapped]
    result = containerd.run(name, "sh", "-c", LOOK, options=options, check=False)
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]

    assert ["0:0", "0:0", "0 100000 65536", "1" if is_mapped else "0"] == lines, result.stderr
    assert [] == mapped_layers()


def test_delete_action_unmounts_mapped_layers(hand: Hand) -> None:
    """They stay where a shim is killed in the moment in which it mounts an overlay."""
    folder = hand.bundle("c1") / "ovl-idmapped"
    folder.mkdir()
    libc.mount("tmpfs", str(folder), "tmpfs", 0, "")
    before = mapped_layers()
    hand.delete("c1")

    assert [str(folder)] == before
    assert [] == mapped_layers()


def test_a_create_maps_the_ids_of_the_root(hand: Hand) -> None:
    """Whatever the container's own namespaces are, that is what the options of the mount say."""
    (hand.image / "tmp/owned").touch()
    os.chown(hand.image / "tmp/owned", 1, 1)
    root = hand.rootfs()
    root.options.extend(["uidmap=0:0:1,1:5000:10", "gidmap=0:0:1,1:6000:10"])
    client = hand.serve("c1")
    client.create(hand.create_request("c1", mounts=[root]))
    found = os.stat(f"{hand.bundle('c1')}/rootfs/tmp/owned")
    mounted = [entry for entry in mountinfo.read() if entry.mount_point == f"{hand.bundle('c1')}/rootfs"]
    client.delete()

    assert (5000, 6000) == (found.st_uid, found.st_gid)
    assert 1 == len(mounted)
    assert [] == mapped_layers()
