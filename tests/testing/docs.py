"""What docs/testing.md shows, as files: the one tiny shim that these tests run, and the page's own tests."""

import os
import re
from pathlib import Path
from typing import Final

from tests.fakes import ROOT

PAGE: Final = (ROOT / "docs/testing.md").read_text()
_BLOCK: Final = re.compile(r"^`([\w.]+)`:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHIM: Final = "remember.py"

# The shim as it is, but one that binds elsewhere where no folder is told, so that no test needs root.
_ROOTLESS: Final = """\
import os
import runpy
from shim.runtime import address
address.SOCKET_DIR = os.environ["TEST_SOCKETS"]
runpy.run_path({shim!r}, run_name="__main__")
"""


def write_files(folder: Path) -> list[str]:
    """Write every file of the page, and return their names."""
    found = _BLOCK.findall(PAGE)
    for name, text in found:
        (folder / name).write_text(text)
    return [name for name, _ in found]


def write_rootless(folder: Path) -> Path:
    """Write the shim with a way around /run/containerd/s."""
    write_files(folder)
    path = folder / "rootless.py"
    path.write_text(_ROOTLESS.format(shim=os.fspath(folder / SHIM)))
    return path
