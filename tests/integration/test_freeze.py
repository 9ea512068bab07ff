"""`./just freeze NAME SCRIPT`: what becomes of an author's script, and what is said where no image can be made of it.

Each test freezes a script of its own, which takes some seconds; what is in dist afterwards is removed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.integration.archive import contents, is_static
from tests.integration.byhand import Hand
from tests.integration.compiled import compile_program
from tests.integration.conftest import PROJECT

NAME: Final = "frozen-in-test"
BINARY: Final = PROJECT / f"dist/containerd-shim-{NAME}-v1"
HEAD: Final = """
import shim


class Tested(shim.Shim, shim.Task):
    def connect(self, context, request, /):
        return shim.api.ConnectResponse(version=answer())

    def shutdown(self, context, request, /):
        self.exit.signal()
        return shim.api.Empty()


def answer():
    return ""


import shim.api
"""
RUN: Final = f"\nif __name__ == '__main__':\n    shim.run('io.containerd.{NAME}.v1', Tested)\n"
pytestmark = pytest.mark.timeout(300)

Freeze = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def freeze(tmp_path: Path) -> Iterator[Freeze]:
    """Return what freezes a script by its text, with arguments of build.py and variables."""

    def run(text: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "script.py"
        script.write_text(text)
        command = [sys.executable, str(PROJECT / "build/spec/build.py"), NAME, "--script", str(script), *arguments]
        env = {**os.environ, **environment}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    BINARY.unlink(missing_ok=True)
    yield run
    BINARY.unlink(missing_ok=True)


@pytest.fixture
def serve() -> Iterator[Callable[[], str]]:
    """Return what starts the frozen script and returns its answer to Connect; in the end nothing may be left of it."""
    hands: list[Hand] = []

    def ask() -> str:
        hands.append(Hand(BINARY))
        client = hands[-1].serve("c1")
        answer = client.connect().version
        client.shutdown()
        return answer

    yield ask
    assert [] == [line for hand in hands for line in hand.close()]


def make_module(folder: Path, name: str = "ofothers") -> None:
    """Compile a small extension module for the Python that runs this."""
    source = folder / f"{name}.c"
    source.write_text(
        "#include <Python.h>\n"
        f'static struct PyModuleDef module = {{PyModuleDef_HEAD_INIT, "{name}", NULL, -1, NULL, NULL, NULL, NULL, NULL}};\n'
        f"PyMODINIT_FUNC PyInit_{name}(void) {{\n"
        "    PyObject *made = PyModule_Create(&module);\n"
        '    if (made != NULL && PyModule_AddIntConstant(made, "answer", 42))\n'
        "        Py_CLEAR(made);\n"
        "    return made;\n"
        "}\n"
    )
    target = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    compile_program(target, source, flags=("-shared", "-fPIC", "-isystem", sysconfig.get_paths()["include"]))


# Which form.


def test_pure_python_becomes_an_image(freeze: Freeze, serve: Callable[[], str], tmp_path: Path) -> None:
    """With modules beside the script, and with any of Python's own that need no foreign library."""
    (tmp_path / "beside.py").write_text("def answer():\n    return 'from beside'\n")
    imports = (
        "import argparse, asyncio, csv, dataclasses, decimal, hashlib, json, logging, math, pickle, random, socket\n"
    )
    imports += "import statistics, struct, subprocess, tempfile, threading, unicodedata, uuid, zlib\n"
    done = freeze(f"{HEAD}\nfrom beside import answer\n{imports}{RUN}")

    assert (0, "") == (done.returncode, done.stderr)
    assert is_static(BINARY.read_bytes())
    assert "from beside" == serve()


def test_image_has_random_numbers_of_its_own_at_each_start(freeze: Freeze, serve: Callable[[], str]) -> None:
    """Though `random` has been imported once, when it was made."""
    done = freeze(f"{HEAD}\nimport random\ndef answer(): return str(random.random())\n{RUN}")

    assert (0, "") == (done.returncode, done.stderr)
    assert serve() != serve()


def test_run_may_be_called_in_a_function(freeze: Freeze, serve: Callable[[], str]) -> None:
    """Its frames are gone in the image."""
    done = freeze(f"{HEAD}\ndef main(secret):\n    shim.run('io.containerd.{NAME}.v1', Tested)\n\nmain('of main')\n")

    assert (0, "") == (done.returncode, done.stderr)
    assert "" == serve()


def test_extension_module_of_others_decides_for_a_onefile(
    freeze: Freeze, serve: Callable[[], str], tmp_path: Path
) -> None:
    """One line names it."""
    make_module(tmp_path)
    done = freeze(f"{HEAD}\nimport ofothers\ndef answer(): return str(ofothers.answer)\n{RUN}")

    said = "build: a onefile with this machine's Python, since the script imports ofothers"
    assert 0 == done.returncode, done.stderr
    assert [said] == [line for line in done.stderr.splitlines() if "bootloader" not in line and "unpacked" not in line]
    assert not is_static(BINARY.read_bytes())
    assert "42" == serve()


def test_extension_module_in_a_package_is_named(freeze: Freeze, tmp_path: Path) -> None:
    """Also where a module of the package imports it, which does without if need be."""
    package = tmp_path / "packed"
    package.mkdir()
    make_module(package, "_fast")
    (package / "__init__.py").write_text(
        "try:\n    from packed._fast import answer\nexcept ImportError:\n    answer = 1\n"
    )
    done = freeze(f"{HEAD}\nimport packed\n{RUN}")

    assert 0 == done.returncode, done.stderr
    assert "since the script imports packed._fast\n" in done.stderr


@pytest.mark.parametrize("module", ["ctypes", "ssl", "sqlite3"])
def test_module_that_needs_a_library_decides_for_a_onefile(
    freeze: Freeze, serve: Callable[[], str], module: str
) -> None:
    """Python has it, the static bootloader has not."""
    done = freeze(f"{HEAD}\nimport {module}\ndef answer(): return {module}.__name__\n{RUN}")

    assert 0 == done.returncode, done.stderr
    assert f"since the script imports {module}\n" in done.stderr
    assert module == serve()


def test_installed_packages_are_found(freeze: Freeze, serve: Callable[[], str], tmp_path: Path) -> None:
    """As those of .venv: pure ones become part of an image, also those that a .pth file names."""
    installed = tmp_path / "installed"
    (installed / "pure").mkdir(parents=True)
    (installed / "pure/__init__.py").write_text("answer = 'pure'\n")
    text = f"{HEAD}\nimport click\nimport pure\ndef answer(): return f'{{pure.answer}} {{click.__name__}}'\n{RUN}"
    done = freeze(text, PYTHONPATH=os.pathsep.join([str(installed), str(PROJECT)]))

    assert (0, "") == (done.returncode, done.stderr)
    assert is_static(BINARY.read_bytes())
    assert "pure click" == serve()


def test_author_needs_neither_compiler_nor_network(freeze: Freeze, tmp_path: Path) -> None:
    """What is in the cache is enough."""
    done = freeze(HEAD + RUN, "--force", PATH=str(tmp_path), SHIM_BUILD_SOURCES=str(tmp_path))

    assert (0, "") == (done.returncode, done.stderr)
    assert is_static(BINARY.read_bytes())


def test_any_form_can_be_chosen(freeze: Freeze, serve: Callable[[], str]) -> None:
    """A static one has no image: what its script does before shim.run is done at each start."""
    done = freeze(
        f"{HEAD}\nimport time\nBEGAN = time.time_ns()\ndef answer(): return str(BEGAN)\n{RUN}", "--form=static"
    )

    assert (0, "") == (done.returncode, done.stderr)
    assert is_static(BINARY.read_bytes())
    assert serve() != serve()


# What is told.


def told(done: subprocess.CompletedProcess[str]) -> str:
    """Return the line in which a build ends that fails."""
    assert 1 == done.returncode
    assert not BINARY.exists()
    return done.stderr.splitlines()[-1].removeprefix("build: ")


def test_script_without_a_shim_is_told(freeze: Freeze) -> None:
    """An import of the library is none."""
    expected = f"no image of {BINARY.name}: it ends without a call of shim.run"

    assert expected == told(freeze("import shim\n"))


def test_script_that_raises_is_told_the_error(freeze: Freeze) -> None:
    """After the traceback."""
    done = freeze("import shim\nraise RuntimeError('no such luck')\n")

    assert f"no image of {BINARY.name}: RuntimeError: no such luck" == told(done)
    assert '  File "script.py", line 2, in <module>\n' in done.stderr


@pytest.mark.parametrize(
    ("does", "what"),
    [
        (
            "import threading, time; threading.Thread(target=time.sleep, args=(99,), name='t1').start()",
            "the thread 't1'",
        ),
        ("import _thread, time; _thread.start_new_thread(time.sleep, (99,))", "a thread"),
        ("import subprocess; child = subprocess.Popen(['sleep', '3'], stderr=-3)", "the child '"),
        ("import socket; opened = socket.socket()", "(socket:["),
        ("opened = open('/proc/self/status')", "(/proc/"),
        ("import os; opened = os.pipe()", "(pipe:["),
    ],
)
def test_what_an_image_cannot_hold_is_named(freeze: Freeze, does: str, what: str) -> None:
    """It would be missing at each start."""
    line = told(freeze(f"{HEAD}\n{does}\n{RUN}"))

    assert line.startswith(f"no image of {BINARY.name}: before shim.run it has made what an image cannot hold: ")
    assert what in line


def test_what_each_run_leaves_differently_is_told(freeze: Freeze) -> None:
    """All starts would have the time at which the image was made."""
    line = told(freeze(f"{HEAD}\nimport time\nBEGAN = time.time_ns()\n{RUN}"))

    assert line.startswith(f"no image of {BINARY.name}: two runs of it differ")
    assert "keeps a time, a random number or the like" in line


def test_name_and_script_are_checked(freeze: Freeze) -> None:
    """Before anything is built."""
    for arguments, expected in (
        (["a_b", "--script", __file__], "'a_b' cannot be part of a runtime's name: letters, digits and - can"),
        (["pyrunc", "--script", __file__], "pyrunc is the name of a shim of this project"),
        (["mine", "--script", "/no/such"], "there is no script /no/such"),
    ):
        command = [sys.executable, str(PROJECT / "build/spec/build.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)

        assert (1, f"build: {expected}\n") == (done.returncode, done.stderr)
