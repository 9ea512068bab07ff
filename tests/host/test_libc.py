"""libc, in both of its makings: failures carry errno, text and path; a system without the call says so."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shim.errors import UnsupportedSystemError
from shim.host import libc, libc_ctypes
from tests.fakes import ROOT
from tests.libc_calls import Calls

PRIVILEGED = errno.EPERM


def test_both_makings_have_every_call(calls: Calls) -> None:
    """And libc offers each of them."""
    found = {name for name in vars(calls.module) if callable(getattr(calls.module, name))} & {*libc.__all__}

    assert {*libc.__all__} == found
    if calls.is_builtin:
        assert found == {name for name in vars(calls.module) if not name.startswith("__")}


@pytest.mark.parametrize("is_built_in", [True, False])
def test_a_built_in_module_spares_ctypes(builtin_libc: Path, *, is_built_in: bool) -> None:
    """A frozen daemon, all of whose modules are imported, never loads it; others do."""
    program = (
        "import sys; from pathlib import Path; from tests import libc_builtin\n"
        "if len(sys.argv) > 1: libc_builtin.install(Path(sys.argv[1]))\n"
        "before = {*sys.modules}\n"
        "import shim.host.libc as libc, shim.runtime.serve, shim.engine.service\n"
        "libc.inotify_open(); print(*{*sys.modules} - before)"
    )
    # -S and no pytest: what these load is no business of the daemon's.
    stub = "import sys, types; sys.modules['pytest'] = types.ModuleType('pytest')\n"
    paths = "import sys; sys.path[:0] = {!r}\n".format(
        [str(ROOT), *(path for path in sys.path if "site-packages" in path)]
    )
    command = [sys.executable, "-I", "-S", "-c", paths + stub + program, *([str(builtin_libc)] if is_built_in else [])]
    loaded = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()

    assert "shim.host.libc" in loaded
    assert ("shim.host.libc_ctypes" not in loaded) is is_built_in
    assert ("ctypes" not in loaded) is is_built_in


def test_umount_tells_errno_and_path(calls: Calls, tmp_path: Path) -> None:
    """Unmounting what is not mounted fails with the path as file name."""
    with pytest.raises(OSError, match=str(tmp_path)) as caught:
        calls.module.umount(str(tmp_path))

    assert caught.value.errno in (errno.EINVAL, PRIVILEGED)
    assert os.strerror(caught.value.errno or 0) == caught.value.strerror
    assert str(tmp_path) == caught.value.filename


def test_mount_of_a_missing_target_tells_errno_and_path(calls: Calls, tmp_path: Path) -> None:
    """The target is the file name of the error, not the source."""
    target = str(tmp_path / "missing")

    with pytest.raises(OSError, match="missing") as caught:
        calls.module.mount("tmpfs", target, "tmpfs", 0, "")

    assert caught.value.errno in (errno.ENOENT, PRIVILEGED)
    assert target == caught.value.filename


@pytest.mark.parametrize(
    "call",
    [
        lambda module, path: module.umount(path, flags=libc.MNT_DETACH),
        lambda module, path: module.clone_mount(path, is_recursive=False),
        lambda module, path: module.clone_mount(path, is_recursive=True),
        lambda module, path: module.attach_mount(0, path),
        lambda module, path: module.inotify_watch(0, path, libc.IN_MODIFY),
    ],
)
def test_calls_with_a_path_tell_it(calls: Calls, tmp_path: Path, call: Callable[..., object]) -> None:
    """Also one that is no UTF-8."""
    path = os.fsdecode(bytes(tmp_path / "missing") + b"\xff")

    with pytest.raises(OSError, match=str(tmp_path)) as caught:
        call(calls.module, path)

    assert caught.value.errno in (errno.ENOENT, errno.EINVAL, PRIVILEGED)
    assert path == caught.value.filename


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("unshare", lambda module: module.unshare(1 << 6)),
        ("mount_setattr", lambda module: module.map_ids(-1, -1, is_recursive=False)),
        ("mount_setattr", lambda module: module.map_ids(-1, -1, attributes=libc.MOUNT_ATTR_RDONLY, is_recursive=True)),
    ],
)
def test_calls_without_a_path_tell_their_name(calls: Calls, name: str, call: Callable[..., object]) -> None:
    """In the text, and with the class that belongs to the errno."""
    with pytest.raises(OSError, match=f"{name}: ") as caught:
        call(calls.module)

    code = caught.value.errno or 0
    assert code in (errno.EINVAL, errno.EBADF, PRIVILEGED)
    assert f"{name}: {os.strerror(code)}" == caught.value.strerror
    assert type(OSError(code, "")) is type(caught.value)
    assert caught.value.filename is None


@pytest.mark.parametrize(
    "call",
    [
        lambda module: module.mount("a\0", "b", "c", 0, ""),
        lambda module: module.mount("a", "b", "c", 0, "\0"),
        lambda module: module.umount("\0"),
        lambda module: module.clone_mount("a\0", is_recursive=False),
        lambda module: module.attach_mount(0, "a\0"),
        lambda module: module.inotify_watch(0, "a\0", 0),
    ],
)
def test_a_null_byte_is_no_end_of_a_word(calls: Calls, call: Callable[..., object]) -> None:
    """What follows would be lost, and another path meant."""
    with pytest.raises(ValueError, match="embedded null byte"):
        call(calls.module)


@pytest.mark.parametrize(
    "call",
    [
        lambda module: module.clone_mount("/"),
        lambda module: module.clone_mount("/", True),
        lambda module: module.map_ids(-1, -1),
        lambda module: module.mount("a", "b", "c"),
        lambda module: module.umount(7),
    ],
)
def test_wrong_arguments_are_refused(calls: Calls, call: Callable[..., object]) -> None:
    """The same by both makings."""
    with pytest.raises(TypeError):
        call(calls.module)


def test_set_child_subreaper_adopts_grandchildren(calls: Calls) -> None:
    """The orphan of a child that has ended gets this process as its parent."""
    found = calls.run(
        "calls.set_child_subreaper(); child = os.fork(); orphan = 0 if child else os.fork()\n"
        "if orphan: os._exit(0)\n"
        "if child: os.waitpid(child, 0); print(os.waitstatus_to_exitcode(os.wait()[1]))\n"
        "else: os._exit(7)"
    )

    assert "7" == found


def test_sched_core_create_works_or_says_that_the_kernel_cannot(calls: Calls) -> None:
    """A kernel or machine without core scheduling gives a clear errno."""
    found = calls.run(
        "os.setpgid(0, 0)\ntry: calls.sched_core_create(); print(0)\nexcept OSError as error: print(error.errno)"
    )

    assert int(found) in (0, errno.EINVAL, errno.ENODEV, errno.ENOSYS)


def test_inotify_tells_of_a_change(calls: Calls, tmp_path: Path) -> None:
    """The descriptor is non-blocking, close-on-exec, and readable after a write."""
    path = tmp_path / "file"
    path.write_text("1")
    fd = calls.module.inotify_open()
    try:
        calls.module.inotify_watch(fd, str(path), libc.IN_MODIFY)
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
        libc_ctypes.mount("a", "b", "c", 0, "")

    assert "this system has no mount call" == str(caught.value)
