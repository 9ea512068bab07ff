"""`./just freeze NAME SCRIPT`: what becomes of an author's script, and what is said where no image can be made of it.

What tests freeze is removed from dist; most of what is told needs no freezing, since an image is made of one binary.
"""

from __future__ import annotations

import importlib
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
    """With modules beside the script, installed ones, and any of Python's own that need no foreign library.

    No compiler and no network are needed: what is in the cache is enough.
    """
    installed = tmp_path / "installed"
    (installed / "pure").mkdir(parents=True)
    (installed / "pure/__init__.py").write_text("answer = 'pure'\n")
    (tmp_path / "beside.py").write_text(
        "import iniconfig, pure, random\nword = f'{pure.answer} {iniconfig.__name__}'\n"
    )
    imports = (
        "import argparse, asyncio, csv, dataclasses, decimal, hashlib, json, logging, math, pickle, random, socket\n"
    )
    imports += "import statistics, struct, subprocess, tempfile, threading, unicodedata, uuid, zlib\nimport beside\n"
    answer = "def answer(): return f'{beside.word} {random.random()}'\n"
    run = f"def main(word):\n    shim.run('io.containerd.{NAME}.v1', Tested)\n\nmain('in a function')\n"
    places = os.pathsep.join([str(installed), str(PROJECT)])
    done = freeze(
        f"{HEAD}\n{imports}{answer}{run}", PYTHONPATH=places, PATH=str(tmp_path), SHIM_BUILD_SOURCES=str(tmp_path)
    )

    assert (0, "") == (done.returncode, done.stderr)
    assert is_static(BINARY.read_bytes())
    answers = {serve(), serve()}
    assert all(answer.startswith("pure iniconfig 0.") for answer in answers)
    assert 2 == len(answers)  # random numbers are those of the start, not of the image


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


@pytest.mark.parametrize("modules", [["ctypes"], ["ssl", "sqlite3"]], ids=str)
def test_module_that_needs_a_library_decides_for_a_onefile(
    freeze: Freeze, serve: Callable[[], str], modules: list[str]
) -> None:
    """Python has it, the static bootloader has not."""
    names = ", ".join(modules)
    done = freeze(f"{HEAD}\nimport {names}\ndef answer(): return ' '.join(each.__name__ for each in ({names},))\n{RUN}")

    assert 0 == done.returncode, done.stderr
    assert [name for name in modules if f"since the script imports {name}\n" in done.stderr]
    assert " ".join(modules) == serve()


# What is told.


def told(done: subprocess.CompletedProcess[str]) -> str:
    """Return the line in which a build ends that fails."""
    assert 1 == done.returncode
    assert not BINARY.exists()
    return done.stderr.splitlines()[-1].removeprefix("build: ")


def test_script_that_raises_is_told_the_error(freeze: Freeze) -> None:
    """After the traceback."""
    done = freeze("import shim\nraise RuntimeError('no such luck')\n")

    assert f"no image of {BINARY.name}: RuntimeError: no such luck" == told(done)
    assert '  File "script.py", line 2, in <module>\n' in done.stderr


class Becoming:
    """A static shim, of which an image can be made, that runs what a file says before it calls shim.run."""

    def __init__(self, binary: Path, file: Path) -> None:
        self.binary = binary
        self._file = file
        sys.path.insert(0, str(PROJECT / "build/spec"))
        self._make = importlib.import_module("image").make
        self.error: type[Exception] = importlib.import_module("cpython").BuildFailedError
        sys.path.pop(0)

    def does(self, text: str) -> Becoming:
        """Change what it does."""
        self._file.write_text(text)
        return self

    def make(self, target: Path) -> None:
        """Make the image of it, as the build does."""
        self._make(self.binary, target, [])


@pytest.fixture(scope="module")
def becoming(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Becoming]:
    """Return the shim, frozen once."""
    folder = tmp_path_factory.mktemp("becoming")
    (folder / "does").touch()
    imports = "import _thread, os, socket, subprocess, sys, threading, time"
    reads = f"with open({str(folder / 'does')!r}) as file:\n    text = file.read()\nexec(text)\n"
    (folder / "script.py").write_text(f"{HEAD}\n{imports}\n{reads}\n{RUN}")
    name = f"{NAME}-to-be"
    build = [sys.executable, str(PROJECT / "build/spec/build.py"), name, "--form=static"]
    subprocess.run([*build, "--script", str(folder / "script.py")], check=True, stdout=subprocess.DEVNULL)
    binary = PROJECT / f"dist/containerd-shim-{name}-v1"
    yield Becoming(binary, folder / "does")
    binary.unlink()


def test_static_form_does_all_of_it_at_each_start(becoming: Becoming) -> None:
    """It has no image, which is the way for what must not run once."""
    becoming.does("BEGAN = str(time.time_ns())\ndef answer(): return BEGAN\n")
    answers = set()
    for _ in range(2):
        hand = Hand(becoming.binary)
        client = hand.serve("c1")
        answers.add(client.connect().version)
        client.shutdown()
        assert [] == hand.close()

    assert is_static(becoming.binary.read_bytes())
    assert 2 == len(answers)


@pytest.mark.parametrize(
    ("does", "what"),
    [
        ("threading.Thread(target=time.sleep, args=(99,), name='t1', daemon=True).start()", "the thread 't1'"),
        ("_thread.start_new_thread(time.sleep, (99,))", "a thread"),
        ("child = subprocess.Popen(['sleep', '1'], stdin=-3, stdout=-3, stderr=-3)", "the child '"),
        ("opened = socket.socket()", "(socket:["),
        ("opened = open('/proc/self/status')", "(/proc/"),
        ("opened = os.pipe()", "(pipe:["),
    ],
)
def test_what_an_image_cannot_hold_is_named(becoming: Becoming, does: str, what: str, tmp_path: Path) -> None:
    """It would be missing at each start."""
    with pytest.raises(becoming.error) as caught:
        becoming.does(does).make(tmp_path / "image")
    (line,) = str(caught.value).splitlines()

    expected = f"no image of {becoming.binary.name}: before shim.run it has made what an image cannot hold: "
    assert line.startswith(expected)
    assert what in line
    assert not (tmp_path / "image").exists()


def test_what_is_over_is_no_matter(becoming: Becoming, tmp_path: Path) -> None:
    """Threads, children and files that have been."""
    does = "subprocess.run(['true'])\nthread = threading.Thread(target=id, args=(1,))\nthread.start()\nthread.join()\n"
    becoming.does(f"{does}del thread\nopen('/proc/self/status').close()\n").make(tmp_path / "image")

    assert is_static((tmp_path / "image").read_bytes())


@pytest.mark.parametrize("does", ["BEGAN = time.time_ns()", "TOKEN = os.urandom(16)", "PID = os.getpid() << 20"])
def test_what_each_run_leaves_differently_is_told(becoming: Becoming, does: str, tmp_path: Path) -> None:
    """All starts would have what the process of the build had."""
    with pytest.raises(becoming.error, match=r"two runs of it differ.*keeps a time, a random number or the like"):
        becoming.does(does).make(tmp_path / "image")


def test_script_without_a_shim_is_told(becoming: Becoming, tmp_path: Path) -> None:
    """Its end is no image."""
    with pytest.raises(becoming.error, match=r"^no image of .*: it ends without a call of shim\.run$"):
        becoming.does("sys.exit()").make(tmp_path / "image")


def test_name_and_script_are_checked() -> None:
    """Before anything is built."""
    for arguments, expected in (
        (["a_b", "--script", __file__], "'a_b' cannot be part of a runtime's name: letters, digits and - can"),
        (["pyrunc", "--script", __file__], "pyrunc is the name of a shim of this project"),
        (["mine", "--script", "/no/such"], "there is no script /no/such"),
    ):
        command = [sys.executable, str(PROJECT / "build/spec/build.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)

        assert (1, f"build: {expected}\n") == (done.returncode, done.stderr)
