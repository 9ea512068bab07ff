"""Id-mapped mounts, as root, each test in a mount namespace of its own: who owns the files, and what is left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from shim.errors import MountError
from shim.host import idmap, libc
from shim.host.mount import Mount, mount_all, unmount_recursive
from shim.host.mount_options import IdMaps
from tests.integration.test_host_mounts import (
    as_root,
    bind,
    catch,
    each_libc,
    find_mounted,
    in_private_namespace,
    make_folders,
)

__all__ = ["as_root", "each_libc"]

MS_SHARED = 1 << 20
MAPS = ("uidmap=0:100000:1000,1000:200000:1000", "gidmap=0:300000:65536")


def owner(path: Path) -> tuple[int, int]:
    """Return uid and gid of a file, as this process sees them."""
    found = path.lstat()
    return found.st_uid, found.st_gid


def nothing_left(tmp_path: Path) -> None:
    """Check that a mount has left no helper of its own behind."""
    assert not (tmp_path / "ovl-idmapped").exists()
    assert [] == [fd for fd in os.listdir("/proc/self/fd") if "user:" in link(f"/proc/self/fd/{fd}")]
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG | 0x40000000)


def link(path: str) -> str:
    """Return what a link says, or nothing where it is gone."""
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""


@in_private_namespace
def test_bind_shows_mapped_owners(tmp_path: Path) -> None:
    """What is uid 0 on the disk is the first uid of the container's on the host; new files are mapped back."""
    make_folders(tmp_path, "source", "rootfs")
    os.chown(tmp_path / "source/file-source", 1001, 5)

    mount_all([bind(tmp_path / "source", "rbind", *MAPS)], str(tmp_path / "rootfs"))

    assert (100000, 300000) == owner(tmp_path / "rootfs")
    assert (200001, 300005) == owner(tmp_path / "rootfs/file-source")
    os.chown(tmp_path / "rootfs/file-source", 100007, 300008)
    assert (7, 8) == owner(tmp_path / "source/file-source")
    nothing_left(tmp_path)
    unmount_recursive(str(tmp_path / "rootfs"))
    assert [] == find_mounted(tmp_path)


@in_private_namespace
def test_read_only_bind_shows_mapped_owners(tmp_path: Path) -> None:
    """A view of a snapshot."""
    make_folders(tmp_path, "source", "rootfs")

    mount_all([bind(tmp_path / "source", "bind", "ro", *MAPS)], str(tmp_path / "rootfs"))

    assert (100000, 300000) == owner(tmp_path / "rootfs/file-source")
    with pytest.raises(OSError, match="Read-only"):
        os.chown(tmp_path / "rootfs/file-source", 100000, 300000)
    unmount_recursive(str(tmp_path / "rootfs"))


@in_private_namespace
def test_recursive_bind_maps_what_is_mounted_below(tmp_path: Path) -> None:
    """And does not hide it."""
    make_folders(tmp_path, "source", "source/below", "rootfs")
    mount_all([Mount("tmpfs", "tmpfs", "/below")], str(tmp_path / "source"))
    (tmp_path / "source/below/x").write_text("")

    mount_all([bind(tmp_path / "source", "rbind", *MAPS)], str(tmp_path / "rootfs"))

    assert (100000, 300000) == owner(tmp_path / "rootfs/below/x")
    unmount_recursive(str(tmp_path / "rootfs"))
    unmount_recursive(str(tmp_path / "source"))


@in_private_namespace
def test_unmounting_a_recursive_bind_leaves_what_it_is_a_copy_of(tmp_path: Path) -> None:
    """Though mounts of the host are shared, as systemd makes them."""
    make_folders(tmp_path, "source", "source/below", "rootfs")
    below = tmp_path / "source/below"
    mount_all([Mount("tmpfs", "tmpfs")], str(below))
    libc.mount("none", str(below), "", MS_SHARED, "")
    make_folders(below, "deeper")
    mount_all([Mount("tmpfs", "tmpfs")], str(below / "deeper"))
    before = find_mounted(tmp_path)
    mount_all([bind(tmp_path / "source", "rbind", *MAPS)], str(tmp_path / "rootfs"))
    assert {"rootfs", "rootfs/below", "rootfs/below/deeper"} == set(find_mounted(tmp_path)) - set(before)

    unmount_recursive(str(tmp_path / "rootfs"))

    assert before == find_mounted(tmp_path)
    unmount_recursive(str(below))


@in_private_namespace
def test_overlay_shows_mapped_owners_of_its_layer(tmp_path: Path) -> None:
    """Of the only one."""
    check_overlay(tmp_path, 1)


@in_private_namespace
def test_overlay_shows_mapped_owners_of_all_layers(tmp_path: Path) -> None:
    """Of each image's layer alike."""
    check_overlay(tmp_path, 3)


@in_private_namespace
def test_overlay_shows_mapped_owners_of_more_layers_than_a_page_has_room_for(tmp_path: Path) -> None:
    """The options of a mount are one page at most."""
    check_overlay(tmp_path, 60)


@in_private_namespace
def test_overlay_shows_a_layer_that_is_a_mount(tmp_path: Path) -> None:
    """As snapshotters have them that fetch an image when it is read."""
    make_folders(tmp_path, "layers/1", "layers/2", "rootfs")
    mount_all([Mount("tmpfs", "tmpfs")], str(tmp_path / "layers/1"))
    (tmp_path / "layers/1/fetched").write_text("")
    options = (f"lowerdir={tmp_path}/layers/1:{tmp_path}/layers/2", *MAPS)

    mount_all([Mount("overlay", "overlay", options=options)], str(tmp_path / "rootfs"))

    assert (100000, 300000) == owner(tmp_path / "rootfs/fetched") == owner(tmp_path / "rootfs/file-2")
    nothing_left(tmp_path)
    unmount_recursive(str(tmp_path / "rootfs"))
    assert ["layers/1"] == find_mounted(tmp_path)
    unmount_recursive(str(tmp_path / "layers/1"))


def check_overlay(tmp_path: Path, count: int) -> None:
    """Mount an overlay with so many layers, look at it, and unmount it."""
    numbers = range(count)
    top = "io.containerd.snapshotter.v1.overlayfs/snapshots/with-a-long-name"
    make_folders(tmp_path, "upper", "work", "rootfs", *(f"{top}/{number}/fs" for number in numbers))
    (tmp_path / "work/file-work").unlink()
    for number in numbers:
        (tmp_path / top / str(number) / "fs" / f"of-{number}").write_text("")
    os.chown(tmp_path / "upper", 100000, 300000)
    lower = ":".join(f"{tmp_path}/{top}/{number}/fs" for number in numbers)
    options = (f"workdir={tmp_path}/work", f"upperdir={tmp_path}/upper", f"lowerdir={lower}", *MAPS)

    mount_all([Mount("overlay", "overlay", options=options)], str(tmp_path / "rootfs"))

    assert {(100000, 300000)} == {owner(tmp_path / "rootfs" / f"of-{number}") for number in numbers}
    nothing_left(tmp_path)
    os.chown(tmp_path / "rootfs/of-0", 200000, 300001)  # copied up
    assert (200000, 300001) == owner(tmp_path / "rootfs/of-0") == owner(tmp_path / "upper/of-0")
    assert (0, 0) == owner(tmp_path / top / "0/fs/of-0")
    assert ["rootfs"] == find_mounted(tmp_path)
    unmount_recursive(str(tmp_path / "rootfs"))


@in_private_namespace
def test_what_cannot_be_mapped_is_named(tmp_path: Path) -> None:
    """proc has no id-mapped mounts; what had been mounted by then is not any more."""
    make_folders(tmp_path, "rootfs")

    text = catch(lambda: mount_all([Mount("proc", "proc", options=MAPS)], str(tmp_path / "rootfs")))

    assert f"cannot map ids of {tmp_path}/rootfs: " in text
    assert "its file system, or this kernel, has no id-mapped mounts" in text
    assert [] == find_mounted(tmp_path)
    nothing_left(tmp_path)


@in_private_namespace
def test_an_overlay_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Neither its id-mapped layers nor the folder for them."""
    make_folders(tmp_path, "1", "2", "rootfs")
    options = (f"lowerdir={tmp_path}/1:{tmp_path}/2", "nonsense=1", *MAPS)

    text = catch(lambda: mount_all([Mount("overlay", "overlay", options=options)], str(tmp_path / "rootfs")))

    assert "failed to mount rootfs component: overlay" in text
    assert [] == find_mounted(tmp_path)
    nothing_left(tmp_path)


@in_private_namespace
def test_maps_that_the_kernel_refuses_are_named(tmp_path: Path) -> None:
    """Ranges that overlap."""
    make_folders(tmp_path, "source", "rootfs")
    maps = ("uidmap=0:1000:10,5:2000:10", "gidmap=0:0:1")

    text = catch(lambda: mount_all([bind(tmp_path / "source", "bind", *maps)], str(tmp_path / "rootfs")))

    assert 'the system takes no uidmap "0:1000:10,5:2000:10": invalid argument' in text
    assert [] == find_mounted(tmp_path)
    nothing_left(tmp_path)


@in_private_namespace
def test_lowerdirs_all_over_the_system_are_refused(tmp_path: Path) -> None:
    """Nothing but / has them all, and that is no folder to be shown in a bundle."""
    make_folders(tmp_path, "rootfs")

    text = catch(
        lambda: mount_all([Mount("overlay", "overlay", options=("lowerdir=/usr:/etc", *MAPS))], f"{tmp_path}/rootfs")
    )

    assert "the lowerdirs of an id-mapped overlay need a folder in common, other than /" in text
    nothing_left(tmp_path)


@in_private_namespace
def test_where_no_user_namespace_may_be_made_it_says_so(tmp_path: Path) -> None:
    """Their number has a limit, which may be none."""
    limit = Path("/proc/sys/user/max_user_namespaces")
    libc.unshare(0x10000000)  # so that the limit is that of a user namespace of the test's own
    Path("/proc/self/uid_map").write_text("0 0 1")
    limit.write_text("0")
    with pytest.raises(MountError) as caught, idmap.user_namespace(IdMaps(((0, 0, 1),), ((0, 0, 1),))):
        pass

    assert f"cannot make a user namespace: {os.strerror(errno.ENOSPC).lower()}" == str(caught.value)
    nothing_left(tmp_path)


@in_private_namespace
def test_children_and_signals_are_as_before(tmp_path: Path) -> None:
    """A reaper that waits for any child sees nothing of the one that holds the namespace, and gets no signal."""
    signals: list[int] = []
    signal.signal(signal.SIGCHLD, lambda number, _frame: signals.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    child = subprocess.Popen(["sleep", "60"])
    with idmap.user_namespace(IdMaps(((0, 100000, 65536),), ((0, 100000, 65536),))) as namespace:
        assert os.readlink(f"/proc/self/fd/{namespace}") != os.readlink("/proc/self/ns/user")
        assert not os.get_inheritable(namespace)
        assert (0, 0) == os.waitpid(-1, os.WNOHANG)
    child.kill()
    child.wait()

    assert [signal.SIGCHLD] == signals
    assert mask == signal.pthread_sigmask(signal.SIG_BLOCK, [])
    nothing_left(tmp_path)
