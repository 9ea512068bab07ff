"""Writes build/order/functions.txt anew:  python build/spec/order.py  (as root, with containerd, runc, nm and cc)."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import cpython
import image
import static

from shim.testing import releases
from shim.testing.containerd import Containerd

ROOT: Final = Path(__file__).resolve().parents[2]
ORDER: Final = ROOT / "build" / "order"
LIST: Final = ORDER / "functions.txt"
SHIM: Final = "containerd-shim-pyrunc-v1"
_HEAD: Final = (
    "# The C functions that a shim calls, in the order in which it first calls them; README.md says how it is made.\n"
)
# Where the program begins: the linker places these.
_FIXED: Final = frozenset({"_start", "_start_c", "_init", "_fini", "__fini_array_end"})


def main() -> int:
    """Record the calls of a shim's processes in the life of some containers, and write their names down."""
    subprocess.run([sys.executable, str(ROOT / "build/spec/build.py"), "pyrunc", "--force"], check=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = _make_image(folder)
        names = _record(folder, program)
    if len(names) < 500:
        raise SystemExit(f"only {len(names)} functions were called: something is wrong")
    LIST.write_text(_HEAD + "".join(f"{name}\n" for name in names))
    print(f"{len(names)} functions in {LIST.relative_to(ROOT)}")
    return 0


def _make_image(folder: Path) -> Path:
    """Make an image at whose addresses the symbols are those of the program beside it."""
    bootloader = static.find(cpython.machine()).program.with_name("bootloader.debug")
    (archive,) = (ROOT / ".work/build").glob(f"image-{cpython.machine()}-pyrunc/work/{SHIM}.pkg")
    frozen, program = folder / "frozen", folder / "image"
    frozen.write_bytes(bootloader.read_bytes() + archive.read_bytes())
    frozen.chmod(0o755)
    image.make(frozen, program, [])
    symbols = subprocess.run(["nm", "-n", str(bootloader)], capture_output=True, text=True, check=True).stdout
    functions = [line for line in symbols.splitlines() if re.match(r"[0-9a-f]+ [tT] ", line)]
    (folder / "functions").write_text("\n".join(functions) + "\n")
    return program


def _record(folder: Path, program: Path) -> list[str]:
    called, output, shims = folder / "called", folder / "output", folder / "shims"
    subprocess.run(["cc", "-O2", "-o", str(called), str(ORDER / "called.c")], check=True)
    shims.mkdir()
    wrapper = shims / SHIM
    wrapper.write_text(f'#!/bin/sh\nexec {called} {folder / "functions"} {output} {program} "$@"\n')
    wrapper.chmod(0o755)
    with Containerd(releases.find("1.6"), [shims]) as containerd:
        containerd.run("one", "sleep", "1000", detach=True, options=["--null-io"])
        for command in (["true"], ["sh", "-c", "echo a; exit 3"]):
            containerd.ctr("tasks", "exec", "--exec-id", f"exec-{command[0]}", "one", *command, check=False)
        for command in (["ls"], ["metrics", "one"], ["ps", "one"]):
            containerd.ctr("tasks", *command)
        containerd.run("two", "sh", "-c", "head -c 3000000 /dev/zero; echo done >&2")
        containerd.ctr("tasks", "rm", "--force", "one")
        containerd.ctr("containers", "rm", "one")
    return [name for name in dict.fromkeys(output.read_text().split()) if name not in _FIXED]


if __name__ == "__main__":
    sys.exit(main())
