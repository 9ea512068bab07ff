"""Kills the shim, runc, the logger and containerd at each step of a container's life: `./just faults --rounds 500`.

Prints what is wrong after a round (nothing, if all is well), and a summary; the exit status is 1 if anything was.
Needs root on Linux, containerd, runc, busybox-static and the built shim.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

from shim.testing import releases, sweep
from shim.testing.containerd import GO_RUNTIME, RUNTIME, Containerd
from tests.faults.rounds import Rounds
from tests.faults.runtime import ACCIDENTS

_PROJECT: Final = Path(__file__).resolve().parents[2]


def main() -> int:
    """Play the rounds and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Inject faults.")
    parser.add_argument("--rounds", type=int, default=len(ACCIDENTS), help="how many, each with the next accident")
    parser.add_argument("--containerd", default="1.6", help="the release to test under")
    parser.add_argument("--go", action="store_true", help="Go's shim instead of ours, to compare")
    options = parser.parse_args()
    release = releases.find(options.containerd)
    wrong: list[str] = []
    began = time.monotonic()
    runtime = GO_RUNTIME if options.go else RUNTIME
    with sweep.interruptible(), Containerd(release, [_PROJECT / "dist"], runtime=runtime) as containerd:
        containerd.import_image()
        rounds = Rounds(containerd)
        for number in range(options.rounds):
            lines = rounds.play(ACCIDENTS[number % len(ACCIDENTS)])
            wrong += lines
            for line in lines:
                print(line, flush=True)
    wrong += [f"left behind at the end: {line}" for line in containerd.left_behind]
    kinds = Counter(line.partition(":")[0] for line in wrong)
    took_s = time.monotonic() - began
    print(f"{options.rounds} rounds under containerd {release.version} in {took_s:.0f} s: {len(wrong)} things wrong")
    for kind, count in kinds.most_common():
        print(f"  {count} x {kind}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
