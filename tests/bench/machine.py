"""Says what the figures were taken on."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path


def brief() -> str:
    """Return processor and kernel, for one line."""
    return f"{os.cpu_count()} {platform.machine()} cores, Linux {platform.release()}"


def describe() -> dict[str, str]:
    """Return all that a reader may ask, by name."""
    processor = _first("/proc/cpuinfo", r"model name\s*:\s*(.+)", platform.machine())
    memory_kb = int(_first("/proc/meminfo", r"MemTotal:\s*(\d+)", "0"))
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": f"{os.cpu_count()} cores of {processor}",
        "memory": f"{memory_kb / 1e6:.0f} GB",
        "kernel": f"Linux {platform.release().partition('-')[0]}",
        "system": _first("/etc/os-release", r'PRETTY_NAME="?([^"\n]+)', "unknown"),
        "runc": _runc(),
        "load": f"{os.getloadavg()[0]:.1f} before the first run",
    }


def _first(path: str, pattern: str, default: str) -> str:
    try:
        found = re.search(pattern, Path(path).read_text())
    except OSError:
        return default
    return found[1].strip() if found else default


def _runc() -> str:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    done = subprocess.run(
        ["runc", "--version"], capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )
    found = re.search(r"version (\S+)", done.stdout)
    return found[1] if found else "unknown"
