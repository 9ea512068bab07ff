"""malloc for the whole process, in the build and in a process that starts from an image: heap_test.c drives it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.conftest import ROOT

_LAUNCH = ROOT / "build" / "launch"
_TOOLCHAIN = """\
import json, sys
sys.path.insert(0, sys.argv[1])
import cpython, sources, static
compiler = cpython.Compiler(cpython.machine())
malloc = static._unpacked(sources.DLMALLOC) / "src"
flags = [*cpython.FLAGS, *static._OWN_MALLOC]
print(json.dumps({"environment": compiler.environment(), "malloc": str(malloc), "flags": flags}))
"""


@pytest.fixture(scope="session")
def heap_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program, made by the compiler, the libc and the linker script of the shims."""
    folder = tmp_path_factory.mktemp("heap")
    command = [sys.executable, "-c", _TOOLCHAIN, str(ROOT / "build/spec")]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    flags = [*found["flags"], f"-I{found['malloc']}", f"-I{_LAUNCH}", "-std=gnu11", "-Wall", "-Wextra", "-Werror"]

    def run(*words: str) -> None:
        done = subprocess.run(words, cwd=folder, env=found["environment"], capture_output=True, text=True, check=False)
        if done.returncode or done.stderr:
            pytest.fail(f"{' '.join(words)}:\n{done.stderr}", pytrace=False)

    run("cc", *flags, "-c", str(_LAUNCH / "heap.c"), "-o", "python.o")
    run("cc", *flags, "-c", str(Path(__file__).with_name("heap_test.c")), "-o", "test.o")
    script = f"-Wl,-T,{_LAUNCH / 'image.ld'}"
    run("cc", "-static", "-no-pie", "test.o", "python.o", script, "-Wl,-z,norelro", "-o", "heap_test")
    return folder / "heap_test"


@pytest.mark.parametrize("start", ["ordinary", "restored"])
@pytest.mark.parametrize("what", ["threads", "forks", "errors", "memory"])
def test_malloc_keeps_its_promises(heap_program: Path, what: str, start: str) -> None:
    """Contents, alignment, zeros, errors, errno, locks, children of a fork, memory that goes back to the kernel."""
    words = [str(heap_program), what, *(["restored"] if start == "restored" else [])]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)

    assert (0, "ok\n", "") == (done.returncode, done.stdout, done.stderr)
