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

from tests.integration.archive import is_static
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
        f'static struct PyModuleDef module = {{PyModuleDef_HEAD_INIT, "{name}"'
        ", NULL, -1, NULL, NULL, NULL, NULL, NULL};\n"
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
    (tmp_path / "beside.py").write_text("import random\ndef answer(): return f'from beside {random.random()}'\n")
    imports = (
        "import argparse, asyncio, csv, dataclasses, decimal, hashlib, json, logging, math, pickle, random, socket\n"
    )
    imports += "import statistics, struct, subprocess, tempfile, threading, unicodedata, uuid, zlib\n"
    done = freeze(f"{HEAD}\nfrom beside import answer\n{imports}{RUN}")

    assert (0, "") == (done.returncode, done.stderr)
    assert is_static(BINARY.read_bytes())
    answers = {serve(), serve()}
    assert all(answer.startswith("from beside 0.") for answer in answers)
    assert 2 == len(answers)  # random numbers are those of this start, not of the image


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
    """Those of .venv, and wherever else the Python that builds looks for modules."""
    installed = tmp_path / "installed"
    (installed / "pure").mkdir(parents=True)
    (installed / "pure/__init__.py").write_text("answer = 'pure'\n")
    text = (
        f"{HEAD}\nimport iniconfig\nimport pure\ndef answer(): return f'{{pure.answer}} {{iniconfig.__name__}}'\n{RUN}"
    )
    done = freeze(text, PYTHONPATH=os.pathsep.join([str(installed), str(PROJECT)]))

    assert (0, "") == (done.returncode, done.stderr)
    assert is_static(BINARY.read_bytes())
    assert "pure iniconfig" == serve()


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


def test_what_cannot_be_held_fails_the_build(freeze: Freeze) -> None:
    """With the line that says so."""
    line = told(freeze(f"{HEAD}\nimport socket\nopened = socket.socket()\n{RUN}"))

    assert line.startswith(
        f"no image of {BINARY.name}: before shim.run it has made what an image cannot hold: descriptor "
    )


def test_script_that_raises_is_told_the_error(freeze: Freeze) -> None:
    """After the traceback."""
    done = freeze("import shim\nraise RuntimeError('no such luck')\n")

    assert f"no image of {BINARY.name}: RuntimeError: no such luck" == told(done)
    assert '  File "script.py", line 2, in <module>\n' in done.stderr


@pytest.fixture(scope="module")
def becoming(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a shim without image that does, before shim.run, what the environment says."""
    script = tmp_path_factory.mktemp("becoming") / "script.py"
    script.write_text(f"{HEAD}\nimport os, socket, subprocess, threading, time\nexec(os.environ['DOES'])\n{RUN}")
    name = f"{NAME}-to-be"
    build = [sys.executable, str(PROJECT / "build/spec/build.py"), name, "--script", str(script), "--form=static"]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    binary = PROJECT / f"dist/containerd-shim-{name}-v1"
    yield binary
    binary.unlink()


@pytest.mark.parametrize(
    ("does", "what"),
    [
        ("threading.Thread(target=time.sleep, args=(99,), name='t1', daemon=True).start()", "the thread 't1'"),
        ("threading._start_new_thread(time.sleep, (99,))", "a thread"),
        ("child = subprocess.Popen(['sleep', '1'], stdin=-3, stdout=-3, stderr=-3)", "the child '"),
        ("opened = socket.socket()", "(socket:["),
        ("opened = open('/proc/self/status')", "(/proc/"),
        ("opened = os.pipe()", "(pipe:["),
    ],
)
def test_what_an_image_cannot_hold_is_named(becoming: Path, does: str, what: str) -> None:
    """It would be missing at each start."""
    environment = {"SHIM_BUILD_IMAGE": "stdout", "DOES": does}
    done = subprocess.run([becoming], env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    line = done.stderr.decode().rstrip("\n")

    assert (1, b"") == (done.returncode, done.stdout)
    assert line.startswith("before shim.run it has made what an image cannot hold: ")
    assert what in line
    assert "\n" not in line


def test_what_can_be_held_is_an_image(becoming: Path) -> None:
    """Threads, children and files that are over."""
    does = "subprocess.run(['true']); threading.Thread(target=id, args=(1,)).start(); open('/proc/self/status').close()"
    environment = {"SHIM_BUILD_IMAGE": "stdout", "DOES": f"{does}; time.sleep(0.2)"}
    done = subprocess.run([becoming], env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)

    assert (0, b"") == (done.returncode, done.stderr)
    assert len(done.stdout) > 1_000_000


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
