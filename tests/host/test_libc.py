"""libc: failures carry errno, text and path; a system without the call says so."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shim.errors import UnsupportedSystemError
from shim.host import libc


def test_umount_tells_errno_and_path(tmp_path: Path) -> None:
    """Unmounting what is not mounted fails with the path as file name."""
    with pytest.raises(OSError, match=str(tmp_path)) as caught:
        libc.umount(str(tmp_path))

    assert caught.value.errno in (errno.EINVAL, errno.EPERM)
    assert str(tmp_path) == caught.value.filename


def test_mount_of_a_missing_target_tells_errno_and_path(tmp_path: Path) -> None:
    """The target is the file name of the error, not the source."""
    target = str(tmp_path / "missing")

    with pytest.raises(OSError, match="missing") as caught:
        libc.mount("tmpfs", target, "tmpfs", 0, "")

    assert caught.value.errno in (errno.ENOENT, errno.EPERM)
    assert target == caught.value.filename


def test_unshare_without_a_path_names_the_call() -> None:
    """A failure without a path names the call instead."""
    with pytest.raises(OSError, match="unshare: Invalid argument") as caught:
        libc.unshare(1 << 6)

    assert errno.EINVAL == caught.value.errno


def _run(program: str) -> str:
    """Run a program in a process of its own: what it sets must not stick to the tests."""
    command = [sys.executable, "-c", f"import os; from shim.host import libc; {program}"]
    root = Path(__file__).parents[2]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=root).stdout.strip()


def test_set_child_subreaper_adopts_grandchildren() -> None:
    """The orphan of a child that has ended gets this process as its parent."""
    found = _run(
        "libc.set_child_subreaper(); child = os.fork(); orphan = 0 if child else os.fork()\n"
        "if orphan: os._exit(0)\n"
        "if child: os.waitpid(child, 0); print(os.waitstatus_to_exitcode(os.wait()[1]))\n"
        "else: os._exit(7)"
    )

    assert "7" == found


def test_sched_core_create_works_or_says_that_the_kernel_cannot() -> None:
    """A kernel or machine without core scheduling gives a clear errno."""
    found = _run(
        "os.setpgid(0, 0)\ntry: libc.sched_core_create(); print(0)\nexcept OSError as error: print(error.errno)"
    )

    assert int(found) in (0, errno.EINVAL, errno.ENODEV, errno.ENOSYS)


def test_inotify_tells_of_a_change(tmp_path: Path) -> None:
    """The descriptor is non-blocking, close-on-exec, and readable after a write."""
    path = tmp_path / "file"
    path.write_text("1")
    fd = libc.inotify_open()
    try:
        libc.inotify_watch(fd, str(path), libc.IN_MODIFY)
        with pytest.raises(BlockingIOError):
            os.read(fd, 4096)
        path.write_text("2")

        assert not os.get_inheritable(fd)
        assert os.read(fd, 4096)
    finally:
        os.close(fd)


def test_a_system_without_the_call_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS nothing is called by mistake, although it has a mount call."""
    monkeypatch.setattr(sys, "platform", "darwin")

    with pytest.raises(UnsupportedSystemError) as caught:
        libc.mount("a", "b", "c", 0, "")

    assert "this system has no mount call" == str(caught.value)
