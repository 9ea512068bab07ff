"""One server or client process of a contender: `python -m tests.bench_ttrpc.peer MODULE serve|drive SOCKET VARIANT`."""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    """Run the module's `serve` or `drive`."""
    module, role, address, variant = sys.argv[1:]
    getattr(importlib.import_module(f"tests.bench_ttrpc.{module}"), role)(address, variant)


if __name__ == "__main__":
    main()
