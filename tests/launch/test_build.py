"""What a build promises: the same bytes wherever it runs, and a clear word where no image can be made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.launch.conftest import ROOT, SCRIPT, run_build

_PARTS: Final = ("shim", "build/spec", "build/launch", "build/onefile", "examples", "tests/launch/frozen")
_END: Final = """
from shim.runtime import image
def launch():
    raise SystemExit(0)
if image.is_being_made():
    image.make(launch, lambda: None)
launch()
"""
_NAMED: Final = ("__main__.BEGUN = 1", "__main__.OWN = {'pid': ", "__main__.TOKEN = b")


def test_two_checkouts_give_the_same_bytes(tmp_path: Path) -> None:
    """Their places, umask, time zone, language and ignored signals do not matter."""
    found = []
    for folder, umask in ((tmp_path / "one", "022"), (tmp_path / "a place with a longer name", "077")):
        for part in _PARTS:
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        command = [sys.executable, "build/spec/build.py", "twice", "--script", str(SCRIPT.relative_to(ROOT))]
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        if umask == "077":
            environment |= {"TZ": "Asia/Tokyo", "LANG": "de_DE.UTF-8", "PYTHONHASHSEED": "7", "A": "x" * 5000}
        wrapper = ["sh", "-c", f"umask {umask}; trap '' HUP INT USR1; exec \"$@\"", "sh"]
        done = subprocess.run(
            [*wrapper, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert 0 == done.returncode, done.stderr
        found.append((folder / "dist/containerd-shim-twice-v1").read_bytes())

    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("import os, time\nBEGUN = time.time()\nOWN = {'pid': os.getpid()}\nTOKEN = os.urandom(8)", _NAMED),
        ("import os\nclass Kept:\n    token = os.urandom(8)", ("no module's own value",)),
    ],
    ids=["modules", "class"],
)
def test_what_differs_in_each_start_is_named(tmp_path: Path, text: str, shown: tuple[str, ...]) -> None:
    """The build fails, and says which attribute of which module it was."""
    script = tmp_path / "differs.py"
    script.write_text(text + _END)
    done = run_build("differs", "--script", str(script))

    assert 1 == done.returncode
    assert "two runs of it differ" in done.stderr
    assert "a time, a random number or the like" in done.stderr
    assert [] == [each for each in shown if each not in done.stderr]
    assert not (ROOT / "dist/containerd-shim-differs-v1").exists()


def test_name_of_the_build_host_is_no_part_of_an_image(tmp_path: Path) -> None:
    """The build fails, and says what it found."""
    script = tmp_path / "tells.py"
    script.write_text("import os; HOST = os.uname().nodename" + _END)
    wrapper = ["unshare", "--uts", "sh", "-c", 'hostname built.example && exec "$@"', "sh"]
    command = [sys.executable, str(ROOT / "build/spec/build.py"), "tells", "--script", str(script)]
    done = subprocess.run([*wrapper, *command], capture_output=True, text=True, check=False)

    assert 1 == done.returncode
    assert "the image has 'built.example' of the machine that builds" in done.stderr


def test_script_that_does_not_come_to_its_entry_fails_the_build(tmp_path: Path) -> None:
    """With what it said itself."""
    script = tmp_path / "fails.py"
    script.write_text("raise RuntimeError('no entry is reached')" + _END)
    done = run_build("fails", "--script", str(script))

    assert 1 == done.returncode
    assert "no entry is reached" in done.stderr


_POINTERS: Final = """\
import struct, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import image
from cpython import BuildFailedError
content = Path(sys.argv[2]).read_bytes()
loaded = [each for each in image.elf.segments(content) if each.kind == image.elf.LOAD]
libc, first = [each for each in loaded if each.flags & 2][:2]
thread = libc.address + 8
data = struct.pack("<4Q", 5, thread, first.address, 0x7FFF00000000)
image._check_pointers(content, [image.Part(first.address, data, len(data))], thread)
print("passes")
bad = struct.pack("<2Q", 5, libc.address + libc.memory - 1)
try:
    image._check_pointers(content, [image.Part(first.address, bad, len(bad))], thread)
except BuildFailedError as error:
    print(error)
"""


def test_image_that_points_into_the_data_of_libc_is_refused(image_program: object) -> None:
    """Which each process has anew; the name of the main thread alone is known and repaired."""
    program = ROOT / "dist/containerd-shim-checks-v1"
    command = [sys.executable, "-c", _POINTERS, str(ROOT / "build/spec"), str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    passes, refused = done.stdout.splitlines()

    assert (0, "passes") == (done.returncode, passes)
    assert refused.startswith("the image points into libc's data: 0x")
