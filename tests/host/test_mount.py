"""Mounting and unmounting, as far as it goes without mounting; tests/integration/test_host_mounts.py has the rest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import MountError
from shim.host.mount import Mount, mount_all, resolve_inside, unmount_recursive


@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        (Mount("overlay", "overlay", options=("uidmap=0:1:1",)), 'mount option "uidmap=0:1:1" needs gidmap= too'),
        (Mount("fuse3.x", "x"), "nobody runs mount.fuse3 here"),
        (Mount("overlay", "overlay", options=("lowerdir=/" + "x" * 5000,)), "mount options is too long"),
        (
            Mount("bind", "/", options=("X-containerd.x",)),
            'internal mount option "X-containerd.x" was not consumed by the mount manager',
        ),
    ],
)
def test_mount_all_names_the_mount_that_it_refuses(mount: Mount, expected: str, tmp_path: Path) -> None:
    """The error has type, place and reason."""
    with pytest.raises(MountError) as caught:
        mount_all([mount], str(tmp_path))

    assert f"failed to mount rootfs component: {mount.type} on {tmp_path}: {expected}" == str(caught.value)


def test_mount_all_with_nothing_to_mount_succeeds(tmp_path: Path) -> None:
    """Containers without mounts have their root file system in place already."""
    mount_all([], str(tmp_path / "missing"))

    assert [] == list(tmp_path.iterdir())


def test_unmount_recursive_of_a_missing_path_is_success(tmp_path: Path) -> None:
    """So is that of a folder on which nothing is mounted."""
    unmount_recursive(str(tmp_path / "missing"))
    unmount_recursive(str(tmp_path))

    assert tmp_path.is_dir()


def test_unmount_recursive_of_nothing_does_not_load_ctypes(tmp_path: Path) -> None:
    """The short `delete` process does not pay for libc when there is nothing to unmount."""
    program = "import sys; from shim.host.mount import *; unmount_recursive(sys.argv[1]); print(*sys.modules)"
    command = [sys.executable, "-c", program, str(tmp_path)]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[2])
    loaded = set(child.stdout.split())

    assert {"shim.host.mount"} == loaded & {"shim.host.mount", "shim.host.libc", "ctypes", "threading", "subprocess"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", ""),
        ("/", ""),
        ("/a/b", "/a/b"),
        ("a//./b/", "/a/b"),
        ("../../etc", "/etc"),
        ("/a/../../../b", "/b"),
        ("/absolute/x", "/etc/x"),
        ("/up", "/etc"),
        ("/chain/x", "/etc/x"),
        ("/a/relative", "/a/b"),
        ("/a/deep/x", "/etc/x"),
        ("/missing/../a", "/a"),
    ],
)
def test_resolve_inside_stays_inside(path: str, expected: str, tmp_path: Path) -> None:
    """Links are followed as they would be with the folder as root, and dots stop there."""
    (tmp_path / "a").mkdir()
    (tmp_path / "absolute").symlink_to("/etc")
    (tmp_path / "up").symlink_to("../../../../../../etc")
    (tmp_path / "chain").symlink_to("a/../absolute")
    (tmp_path / "a" / "relative").symlink_to("b")
    (tmp_path / "a" / "deep").symlink_to("/etc")

    found = resolve_inside(str(tmp_path), path)

    assert f"{tmp_path}{expected}" == found


def test_resolve_inside_gives_up_on_a_circle(tmp_path: Path) -> None:
    """Two links that point at each other are an error, not a hang."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    with pytest.raises(MountError) as caught:
        resolve_inside(str(tmp_path), "a/x")

    assert "too many symbolic links in a/x" == str(caught.value)


@given(st.lists(st.sampled_from(["..", ".", "", "usr", "no such name"])).map("/".join))
def test_resolve_inside_never_leaves(path: str) -> None:
    """Whatever the path is made of, the answer is the root or below it, and has no dots."""
    found = resolve_inside("/proc/self/root", path)

    assert "/proc/self/root" == found or found.startswith("/proc/self/root/")
    assert os.path.normpath(found) == found
