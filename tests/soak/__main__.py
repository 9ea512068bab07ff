"""Runs thousands of containers and execs through one containerd, with our shim and with Go's: `./just soak`.

Half of the containers one by one, half in parallel, all in one pod, so that one daemon lives through all of them; then
the execs in one container, likewise.  Prints what daemon and containerd hold as the numbers grow, and every wrong exit
code; the exit status is 1 if there was any.  Needs root on Linux, containerd, runc, busybox-static and the built shim.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from shim.testing import releases, sweep
from shim.testing.containerd import GO_RUNTIME, RUNTIME, Containerd

_PROJECT: Final = Path(__file__).resolve().parents[2]
_POD: Final = ("--annotation", "io.kubernetes.cri.sandbox-id=soak")
_SAMPLES: Final = 10
_HEAD: Final = "{:<6} {:<26} {:>6} {:>6} {:>8} {:>9} {:>11} {:>6}"


class Sample(NamedTuple):
    """What the pod's daemon holds."""

    fds: int
    threads: int
    rss_kb: int
    unpacked: int

    @classmethod
    def take(cls, containerd: Containerd, pid: int) -> Sample:
        """Look at the daemon `pid`, and at the temporary folder that it shares with containerd."""
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        values = {
            name: value.split()[0] for name, _, value in (line.partition(":") for line in status) if value.split()
        }
        fds = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        unpacked = len(list(containerd.tmp.glob("_MEI*")))
        return cls(fds, int(values["Threads"]), int(values["VmRSS"]), unpacked)


class Soak:
    """One side: a containerd and a pod whose daemon lives through everything."""

    def __init__(self, name: str, containerd: Containerd, workers: int) -> None:
        self.name = name
        self.wrong: list[str] = []
        self._containerd = containerd
        self._workers = workers
        containerd.run("host", "sleep", "100000", detach=True, options=["--null-io", *_POD])
        self._daemon = containerd.shim_pid("host")

    def containers(self, count: int) -> None:
        """Run containers, each with an exit code of its own."""
        self._go("containers", count, self._container)

    def execs(self, count: int) -> None:
        """Run execs in the pod's first container."""
        self._go("execs", count, self._exec)

    def _go(self, what: str, count: int, one: Callable[[int], None]) -> None:
        step = max(1, count // _SAMPLES)
        for first in range(0, count, step):
            numbers = range(first, min(first + step, count))
            is_parallel = first >= count // 2
            began = time.monotonic()
            if is_parallel:
                with ThreadPoolExecutor(self._workers) as pool:
                    list(pool.map(one, numbers))
            else:
                for number in numbers:
                    one(number)
            rate = len(numbers) / (time.monotonic() - began)
            sample = Sample.take(self._containerd, self._daemon)
            how = f"{numbers.stop} {what}, {'parallel' if is_parallel else 'serial'}"
            row = (self.name, how, sample.fds, sample.threads, sample.rss_kb, sample.unpacked, f"{rate:.1f}/s")
            print(_HEAD.format(*row, len(self.wrong)), flush=True)

    def _container(self, number: int) -> None:
        status = number % 256
        done = self._containerd.run(f"c{number}", "sh", "-c", f"exit {status}", options=[*_POD], check=False)
        if done.returncode != status:
            self.wrong.append(f"{self.name}: container {number}: {done.returncode} {done.stderr.strip()[-200:]}")

    def _exec(self, number: int) -> None:
        status = number % 256
        done = self._containerd.exec("host", "sh", "-c", f"exit {status}", exec_id=f"e{number}", check=False)
        if done.returncode != status:
            self.wrong.append(f"{self.name}: exec {number}: {done.returncode} {done.stderr.strip()[-200:]}")


def main() -> int:
    """Soak both sides and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Soak the shim.")
    parser.add_argument("--containers", type=int, default=2000)
    parser.add_argument("--execs", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=4, help="how many at once in the parallel half")
    parser.add_argument("--containerd", default="1.6", help="the release to test under")
    parser.add_argument("--sides", default="ours,go", help="ours, go, or both")
    options = parser.parse_args()
    release = releases.find(options.containerd)
    wrong: list[str] = []
    print(_HEAD.format("shim", "after", "fds", "thr", "rss kB", "unpacked", "rate", "wrong"))
    for name in options.sides.split(","):
        runtime = {"ours": RUNTIME, "go": GO_RUNTIME}[name]
        with sweep.interruptible(), Containerd(release, [_PROJECT / "dist"], runtime=runtime) as containerd:
            containerd.import_image()
            soak = Soak(name, containerd, options.workers)
            soak.containers(options.containers)
            soak.execs(options.execs)
            wrong += soak.wrong
        if name == "ours":
            wrong += [f"left behind: {line}" for line in containerd.left_behind]
    for line in wrong:
        print(line)
    print(f"{len(wrong)} things wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
