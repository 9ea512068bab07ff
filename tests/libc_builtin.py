"""build/launch/libc.c for tests: what a frozen shim has built in, compiled for this Python and loaded as a file.

`python -m tests.libc_builtin FILE MODULE [ARGUMENT ...]` runs a module whose shim.host.libc takes it for built in.
"""

import importlib.machinery
import importlib.util
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

SOURCE: Final = Path(__file__).parent.parent / "build/launch/libc.c"
NAME: Final = "_shim_libc"
FLAGS: Final = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


def compile_builtin(folder: Path) -> Path:
    """Compile with warnings as errors; fails the test where there is no compiler, or no header of Python."""
    compiler = shutil.which("cc")
    if compiler is None or not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.fail("there is no C compiler or no Python.h: install gcc, libc6-dev and python3-dev", pytrace=False)
    target = folder / f"{NAME}.so"
    command = [compiler, *FLAGS, f"-I{sysconfig.get_path('include')}", str(SOURCE), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (0, "") == (done.returncode, done.stderr)
    return target


def load(path: Path) -> ModuleType:
    """Return the module; nothing else gets to see it."""
    spec = importlib.util.spec_from_file_location(
        NAME, path, loader=importlib.machinery.ExtensionFileLoader(NAME, str(path))
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install(path: Path) -> None:
    """Let shim.host.libc, which must not be loaded yet, take the module for built in."""
    assert "shim.host.libc" not in sys.modules
    sys.modules[NAME] = load(path)
    sys.builtin_module_names = (*sys.builtin_module_names, NAME)


if __name__ == "__main__":
    install(Path(sys.argv[1]))
    sys.argv[:2] = []
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
