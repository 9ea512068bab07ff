"""The shim works wherever a host lets it: in an empty root folder, beside other libcs, with little of everything.

What cannot work ends with one clear line and an exit code that is not 0.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from shim.testing import image, releases
from tests.launch import denying
from tests.launch.field import Program, in_mounts
from tests.launch.lives import Tree, live, tree

_DENYING: Final = str(Path(denying.__file__))
_DOCKER: Final = (
    *("acct", "add_key", "bpf", "fsopen", "keyctl", "mount", "move_mount", "open_by_handle_at", "perf_event_open"),
    *("personality", "pidfd_getfd", "pivot_root", "process_vm_readv", "ptrace", "quotactl", "setns", "syslog"),
    *("umount2", "unshare", "userfaultfd"),
)
# What came with Linux 5.3 or later, and some calls that a sandbox has not.
_NEW: Final = (
    *("clone3", "close_range", "epoll_pwait2", "faccessat2", "openat2", "pidfd_getfd", "pidfd_open"),
    *("pidfd_send_signal", "rseq", "statx"),
)
_PERSONALITIES: Final = {
    "no random addresses": 0x0040000,
    "legacy layout": 0x0200000,
    "three gigabytes": 0x8000000,
    "32 bits": 0x0800000,
    "all can be executed": 0x0400000,
    "page zero": 0x0100000,
}
_INTERPRETER, _DYNAMIC = 3, 2


@pytest.fixture
def inside(shim_program: Program, tmp_path: Path) -> Iterator[Tree]:
    """Return a root folder with nothing but the shim and what the kernel has."""
    with tree(tmp_path, shim_program.path) as made:
        made.mount("-t", "proc", "proc", at="/proc")
        made.mount("--bind", "/dev", at="/dev")
        yield made


# What is on the host.


def test_shim_needs_no_loader_and_no_library(shim_program: Program) -> None:
    """It is linked statically."""
    content = shim_program.path.read_bytes()
    (table,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    kinds = {struct.unpack_from("<I", content, table + number * size)[0] for number in range(count)}

    assert not kinds & {_INTERPRETER, _DYNAMIC}


def test_shim_answers_in_a_folder_with_nothing_but_itself(shim_program: Program, tmp_path: Path) -> None:
    """Not even /proc or /dev is there."""
    with tree(tmp_path, shim_program.path) as inside:
        done = subprocess.run([*inside.command, "-v"], capture_output=True, check=False, cwd="/")
        help_text = subprocess.run([*inside.command, "-h"], capture_output=True, check=False, cwd="/")

    assert (0, b"") == (done.returncode, done.stderr)
    assert done.stdout.startswith(b"containerd-shim-pyrunc-v1:\n  Version:")
    assert b"-namespace" in help_text.stderr


def test_shim_lives_in_a_folder_with_nothing_but_itself(inside: Tree, runtime_program: Path) -> None:
    """No library, no shell, no configuration: what the kernel has is all that it is given."""
    live(inside.command, runtime_program, inside=inside)


def test_shim_lives_with_busybox_alone(inside: Tree, runtime_program: Path) -> None:
    """Its shell runs the OCI runtime."""
    (inside.root / "bin").mkdir()
    shutil.copy(image.find_busybox(), inside.root / "bin/busybox")
    (inside.root / "bin/sh").symlink_to("busybox")

    live(inside.command, runtime_program, inside=inside, stub='#!/bin/sh\nexec "${0%/*}/behind" "$@"\n')


@pytest.mark.parametrize("suite", ["bullseye", "trixie"])
def test_shim_lives_beside_another_libc(inside: Tree, runtime_program: Path, suite: str) -> None:
    """Of a Debian release, by which its shell runs the OCI runtime."""
    found = releases.packages(suite, ("libc6", "dash"))
    shutil.copytree(found, inside.root, symlinks=True, dirs_exist_ok=True)
    for name in ("bin", "lib", "lib64"):  # what the package base-files makes
        if not (inside.root / name).exists():
            (inside.root / name).symlink_to(f"usr/{name}")
    (shell := inside.root / "bin/sh").exists() or shell.symlink_to("dash")
    said = subprocess.run(["chroot", inside.root, "/bin/sh", "-c", "echo works"], capture_output=True, check=True)
    assert b"works\n" == said.stdout

    live(inside.command, runtime_program, inside=inside, stub='#!/bin/sh\nexec "${0%/*}/behind" "$@"\n')


# What the host's environment is.


@pytest.mark.parametrize(
    "commands",
    [
        ["mount -t tmpfs -o size=4k shim-test /mnt", "cp /bin/sh /mnt/ 2>/dev/null || true"],
        ["mount -t tmpfs -o noexec shim-test /mnt"],
        ["mount -t tmpfs -o ro shim-test /mnt"],
        [],
    ],
    ids=["full", "noexec", "read-only", "missing"],
)
def test_shim_needs_no_temporary_folder(shim_program: Program, runtime_program: Path, commands: list[str]) -> None:
    """Nothing is unpacked, so it does not matter what TMPDIR is."""
    folder = "/mnt" if commands else "/nonexistent"
    live(in_mounts(*commands) + [str(shim_program.path)], runtime_program, environment={"TMPDIR": folder})


def test_shim_lives_on_a_read_only_root(shim_program: Program, runtime_program: Path) -> None:
    """But for the bundle and what containerd has it write to."""
    tmp = tempfile.gettempdir()
    wrapper = in_mounts(
        f"mount --bind {tmp} {tmp}", "mount -o remount,bind,ro /", 'cd "$PWD"', "! touch /shim-test 2>&-"
    )
    live([*wrapper, str(shim_program.path)], runtime_program)


_HOSTILE: Final = {
    "loader": {"LD_PRELOAD": "/nonexistent.so", "LD_LIBRARY_PATH": "/nonexistent", "LD_BIND_NOW": "1"},
    "python": {
        "PYTHONHOME": "/nonexistent",
        "PYTHONPATH": "/nonexistent",
        "PYTHONHASHSEED": "7",
        "PYTHONMALLOC": "debug",
        "PYTHONINSPECT": "1",
        "PYTHONDEVMODE": "1",
        "PYTHONVERBOSE": "1",
        "PYTHONWARNINGS": "error",
    },
    "malloc": {"MALLOC_PERTURB_": "7", "MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": "glibc.malloc.check=3"},
    "build": {"SHIM_BUILD_IMAGE": "stdout", "SHIM_BUILD_STATIC": "/nonexistent"},
    "bootloader": {
        "_PYI_ARCHIVE_FILE": "/nonexistent",
        "_PYI_PARENT_PROCESS_LEVEL": "2",
        "_PYI_APPLICATION_HOME_DIR": "/nonexistent",
        "_PYI_LINUX_PROCESS_NAME": "another",
        "PYINSTALLER_RESET_ENVIRONMENT": "1",
        "_MEIPASS2": "/nonexistent",
    },
}


@pytest.mark.parametrize("environment", _HOSTILE.values(), ids=_HOSTILE)
def test_shim_lives_with_variables_that_are_not_for_it(
    shim_program: Program, runtime_program: Path, environment: dict[str, str]
) -> None:
    """They change nothing."""
    if "LD_PRELOAD" in environment:  # nor the programs of this machine, which would complain
        environment = {name: value for name, value in environment.items() if name != "LD_PRELOAD"}
    live(shim_program.path, runtime_program, environment=environment)


@pytest.mark.parametrize("environment", [{}, *_HOSTILE.values()], ids=["empty", *_HOSTILE])
def test_version_is_the_same_in_every_environment(shim_program: Program, environment: dict[str, str]) -> None:
    """Also in none at all."""
    expected = shim_program.run("-v").stdout
    done = shim_program.run("-v", environment=environment)

    assert (0, expected, b"") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("closed", [[*each] for size in range(1, 4) for each in itertools.combinations(range(3), size)])
def test_version_with_closed_descriptors(shim_program: Program, closed: list[int]) -> None:
    """No crash; what can be written is."""
    redirections = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in closed)
    done = shim_program.run("-v", wrapper=["sh", "-c", f'exec "$@" {redirections}', "sh"])

    assert (1 if 1 in closed else 0) == done.returncode
    assert (1 in closed) == (done.stdout == b"")


# What the kernel is.


@pytest.mark.parametrize("bits", [*range(1 << len(_PERSONALITIES))])
def test_version_in_every_layout_of_addresses(shim_program: Program, bits: int) -> None:
    """What `setarch` can set, in every combination: the image has a place of its own in each."""
    chosen = [value for number, value in enumerate(_PERSONALITIES.values()) if bits >> number & 1]
    done = shim_program.run("-v", preexec_fn=lambda: ctypes.CDLL(None).personality(sum(chosen)))

    assert (0, b"") == (done.returncode, done.stderr)


@pytest.mark.parametrize("name", _PERSONALITIES)
def test_shim_lives_in_layouts_of_addresses(shim_program: Program, runtime_program: Path, name: str) -> None:
    """And its children inherit them."""
    text = (
        "import ctypes, os, sys; ctypes.CDLL(None).personality(int(sys.argv[1])); os.execv(sys.argv[2], sys.argv[2:])"
    )
    command = [sys.executable, "-ISc", text, str(_PERSONALITIES[name]), str(shim_program.path)]

    live(command, runtime_program)


@pytest.mark.parametrize(
    ("error", "names"), [("EPERM", _DOCKER), ("ENOSYS", _DOCKER), ("ENOSYS", _NEW)], ids=["docker", "podman", "old"]
)
def test_shim_lives_without_some_system_calls(
    shim_program: Program, runtime_program: Path, error: str, names: tuple[str, ...]
) -> None:
    """Those that Docker's default profile denies, and those of newer kernels."""
    command = [sys.executable, "-IS", _DENYING, error, ",".join(names), str(shim_program.path)]

    live(command, runtime_program)


# What the limits are.


def limited(kind: int, value: int, program: Program, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run it with a limit."""
    return program.run(*words, preexec_fn=lambda: resource.setrlimit(kind, (value, value)))


_LIMITS: Final = {
    "address space": (resource.RLIMIT_AS, [size << 16 for size in range(160, 640, 8)]),
    "data": (resource.RLIMIT_DATA, [size << 16 for size in range(0, 480, 8)]),
    "stack": (resource.RLIMIT_STACK, [size << 12 for size in (0, 1, 2, 3, 4, 8, 16, 64, 256, 2048)]),
    "descriptors": (resource.RLIMIT_NOFILE, [*range(12)]),
    "processes": (resource.RLIMIT_NPROC, [0, 1]),
    "file size": (resource.RLIMIT_FSIZE, [0]),
    "locked memory": (resource.RLIMIT_MEMLOCK, [0]),
}


@pytest.mark.parametrize("name", _LIMITS)
def test_version_within_limits(shim_program: Program, name: str) -> None:
    """It works, or says in one line why not, or is killed by the kernel while it is mapped: it never crashes.

    The kernel kills with SIGSEGV (before 5.10 with SIGKILL) what it cannot map, below the smallest limit at which the
    program says anything; from the smallest limit at which it works, it works with every larger one.
    """
    kind, values = _LIMITS[name]
    ends = []
    for value in values:
        done = limited(kind, value, shim_program, "-v")
        if done.returncode == 0:
            assert b"Version" in done.stdout
            ends.append("works")
        elif done.returncode in (-signal.SIGSEGV, -signal.SIGKILL):
            assert (b"", b"") == (done.stdout, done.stderr)
            ends.append("kernel")
        else:
            assert (1, b"") == (done.returncode, done.stdout)
            assert re.fullmatch(r"[^\n]{10,200}\n?", done.stderr.decode()), done.stderr
            ends.append("says why")

    assert ["kernel", "says why", "works"] == sorted({"kernel", "says why", *ends})
    assert sorted(ends, key=["kernel", "says why", "works"].index) == ends
    assert "works" == ends[-1]
