"""What a shim's daemon has loaded once all its modules are imported.

The ast of our own modules is test_layers' business; this sees what they bring along from elsewhere.
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

SHIM: Final = Path(__file__).parent.parent / "shim"

# Each costs every daemon launch time and memory: asyncio alone 30 ms.
FORBIDDEN: Final = {
    "asyncio",
    "click",
    "concurrent.futures",
    "logging.handlers",
    "multiprocessing",
    "platformdirs",
    "ssl",
    "subprocess",
}


def _find_daemon_modules() -> list[str]:
    rooms = [path for room in ("ttrpc", "host", "runtime", "engine") for path in (SHIM / room).rglob("*.py")]
    # aio is for who asks, codegen for build time, otel for who has it installed, and __main__ would run.
    paths = [
        path
        for path in rooms
        if path.stem not in {"__init__", "__main__"} and path.stem.partition("_")[0] not in {"aio", "codegen", "otel"}
    ]
    return sorted(".".join(path.relative_to(SHIM.parent).with_suffix("").parts) for path in paths)


def test_daemon_modules_stay_within_the_import_budget() -> None:
    """A fresh interpreter with every module of the daemon loaded holds none of the forbidden ones."""
    program = f"import sys, {', '.join(_find_daemon_modules())}; print(*sys.modules)"
    child = subprocess.run([sys.executable, "-I", "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    loaded = set(child.stdout.split())

    assert set() == FORBIDDEN & loaded
