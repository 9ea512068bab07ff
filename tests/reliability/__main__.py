"""Launches in big numbers while everything around them goes wrong:  ./just reliability [--starts 10000]

Prints a line for each scenario; ends with 1 at the first that breaks the rule of scenarios.py.  Needs root.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.integration.conftest import BINARIES
from tests.reliability import scenarios


def main() -> int:
    """Run all scenarios and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description="Launches under fire.")
    parser.add_argument("--starts", type=int, default=10_000, help="some at a time (default 10000)")
    parser.add_argument("--at-once", type=int, default=200, help="all at the same time (default 200)")
    parser.add_argument("--binary", type=Path, default=BINARIES["image"], help="by default the image in dist/")
    options = parser.parse_args()
    for name, tally, seconds in scenarios.all_of(options.binary.absolute(), options.starts, options.at_once):
        counts = ", ".join(f"{count} {what}" for what, count in sorted(tally.items()))
        sys.stdout.write(f"{name:<45} {counts} ({seconds:.0f} s)\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
