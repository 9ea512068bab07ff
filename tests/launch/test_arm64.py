"""The shim for arm64, run by an emulator of that processor: what it says, and a container's life from start to delete.

Not part of the ordinary run, since its build takes minutes: `./just arm64` does, then runs this file.
"""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest
from google.protobuf.any_pb2 import Any

from shim.api.runc_options_pb2 import Options
from shim.api.types_pb2 import RuntimeInfo
from shim.testing import FakeContainerd, FakeRunc, RunningShim, wait_until
from shim.ttrpc import RpcError
from tests.fakes import ROOT
from tests.launch.field import Program
from tests.launch.frozen import language, processes, surroundings
from tests.launch.frozen.registry import CHECKS

NAME: Final = "containerd-shim-pyrunc-v1"
SPEC: Final = {
    "process": {"args": ["sleep", "1000"], "env": [f"PATH={os.environ['PATH']}"], "cwd": "/"},
    "linux": {"namespaces": [{"type": "pid"}]},
}
# The fake runtime, but what it starts is its parent's child from the beginning.
RUNTIME: Final = """\
#!{python} -ISE
import ctypes, os, runpy, signal
NUMBER = {{"x86_64": 56, "aarch64": 220}}[os.uname().machine]
CLONE_PARENT = 0x8000
clone = ctypes.CDLL(None).syscall
os.fork = lambda: clone(NUMBER, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
runpy.run_path({runc!r}, run_name="__main__")
"""
_MODULES = (language, processes, surroundings)  # which fill CHECKS
# What the emulator does otherwise than a kernel.
OF_THE_EMULATOR: Final = {
    "memory_errors_come_of_a_limit": "a limit of memory would be the emulator's own, and is not set",
    "the_command_line_is_known": "stat of /proc/self/exe finds the emulator",
}
pytestmark = [pytest.mark.arm64, pytest.mark.timeout(120)]


def starting(name: str) -> list[str]:
    """Return what starts a shim; fails where it is not built or there is no emulator."""
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    program = ROOT / "dist" / "arm64" / name
    if emulator is None or not program.is_file():
        pytest.fail(f"there is no qemu-aarch64 or no {program}: ./just arm64 brings both", pytrace=False)
    return [emulator, str(program)]


@pytest.fixture(scope="session")
def command() -> list[str]:
    """Return what starts pyrunc."""
    return starting(NAME)


@pytest.fixture
def containerd() -> Iterator[FakeContainerd]:
    """Return a containerd that starts the shim whose daemon an emulator can run."""
    with FakeContainerd(starting("containerd-shim-emulated-v1"), style="2.1") as containerd:
        yield containerd
        assert [] == containerd.events.faults


@pytest.fixture
def runc(tmp_path: Path) -> Iterator[FakeRunc]:
    """Return a runtime, whose `path` is that of RUNTIME."""
    with FakeRunc(tmp_path / "bin") as runc:
        wrapper = tmp_path / "bin" / "leaving"
        wrapper.write_text(RUNTIME.format(python=os.path.realpath(sys.executable), runc=runc.path))
        wrapper.chmod(0o755)
        runc.path = str(wrapper)
        yield runc


def create(shim: RunningShim, runc: FakeRunc) -> int:
    """Create the container, and return its pid."""
    options = Options(binary_name=runc.path, root=str(runc.folder / "root"))
    wrapped = Any(type_url=options.DESCRIPTOR.full_name, value=options.SerializeToString())
    pid: int = shim.call("Create", options=wrapped).pid
    return pid


def test_the_program_is_for_arm64_and_static(command: list[str]) -> None:
    """So says its header."""
    header = subprocess.run(["readelf", "-hlW", command[1]], capture_output=True, text=True, check=True).stdout

    assert "AArch64" in header
    assert "EXEC (Executable file)" in header
    assert "INTERP" not in header


def test_version_is_told(command: list[str]) -> None:
    """And nothing is said on stderr."""
    done = subprocess.run([*command, "-v"], capture_output=True, text=True, check=True)

    assert done.stdout.startswith(f"{NAME}:\n  Version:")
    assert "" == done.stderr


def test_info_is_told(command: list[str]) -> None:
    """In protobuf, whose C library is part of the image."""
    done = subprocess.run([*command, "-info"], stdin=subprocess.DEVNULL, capture_output=True, check=True)

    assert "io.containerd.pyrunc.v1" == RuntimeInfo.FromString(done.stdout).name


def test_start_answers_and_its_daemon_ends_when_told(containerd: FakeContainerd) -> None:
    """Connect says which process it is."""
    shim = containerd.start("c1", spec=SPEC)
    connected = shim.call("Connect")

    assert [connected.shim_pid] == [process.pid for process in containerd.processes()]
    shim.call("Shutdown")
    assert wait_until(lambda: not containerd.processes())


def test_a_whole_life_is_told_in_order(containerd: FakeContainerd, runc: FakeRunc) -> None:
    """The runtime is started without a pidfd, which the emulator refuses."""
    shim = containerd.start("c1", spec=SPEC)
    pid = create(shim, runc)
    shim.call("Start")
    shim.call("Kill", signal=9)
    ended = shim.call("Wait")
    deleted = shim.call("Delete")
    shim.call("Shutdown")
    topics = [f"/tasks/{name}" for name in ("create", "start", "exit", "delete")]
    containerd.events.wait_for_topics("c1", topics)

    assert (137, 137, pid) == (ended.exit_status, deleted.exit_status, deleted.pid)
    assert ["create", "start", "kill", "delete"] == runc.commands()
    assert wait_until(lambda: not containerd.processes())
    assert 137 == containerd.delete("c1").exit_status
    assert [] == containerd.warnings


def test_a_runtime_that_is_not_there_is_told(containerd: FakeContainerd, runc: FakeRunc) -> None:
    """The emulator gives a child that shares our memory one of its own, so the error cannot come by memory."""
    shim = containerd.start("c1", spec=SPEC)
    Path(runc.path).unlink()

    with pytest.raises(RpcError, match="leaving"):
        create(shim, runc)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xfail(reason=OF_THE_EMULATOR[name])) if name in OF_THE_EMULATOR else name
        for name in CHECKS
    ],
)
def test_the_interpreter_passes_the_check(name: str) -> None:
    """As test_checks.py has it on this machine's processor."""
    emulator, program = starting("containerd-shim-checks-v1")
    answer = Program(Path(program)).ask(name, wrapper=[emulator], environment={**os.environ, "CHECK_REMOVED": "x"})

    assert (name, None) == (answer["name"], answer["error"])


# Writes an image as build/launch/image.c does: the name of its thread, no places, then one part, in which is a word.
RECORDED: Final = """
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>
static int data;
int main(void) {{
    int stack = 0;
    void *mapped = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uintptr_t words[] = {{1, 0, 0, 0x10000000, 8, (uintptr_t){place}}};
    (void)mapped, (void)&stack, (void)&data;
    return write(1, words, sizeof words) != sizeof words;
}}
"""


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return build/spec/image.py."""
    monkeypatch.syspath_prepend(str(ROOT / "build/spec"))
    return importlib.import_module("image")


@pytest.mark.parametrize("place", ["&data", "&stack", "mapped"])
def test_an_image_that_points_elsewhere_is_found_out(
    place: str, spec: ModuleType, command: list[str], tmp_path: Path
) -> None:
    """The emulator has its stack and its mappings where the first image had them, unless it is told otherwise."""
    source, program = tmp_path / "made.c", tmp_path / "made"
    source.write_text(RECORDED.format(place=place))
    cross = importlib.import_module("cpython").Compiler("aarch64")
    compiler = [str(cross.wrappers() / "cc"), "-O1", "-static", "-o", str(program), str(source)]
    subprocess.run(compiler, env=cross.environment(), check=True)
    alike = [spec._record(program, command[:1]) for _ in range(2)]

    assert alike[0] == alike[1]
    if place == "&data":
        assert alike[0] == spec._record(program, [*command[:1], *spec._OTHER_LAYOUT])
    else:
        with pytest.raises(spec.BuildFailedError, match="two runs of it differ, first at 0x1000000"):
            spec.make(program, tmp_path / "image", command[:1])
