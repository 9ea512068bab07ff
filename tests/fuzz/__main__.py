"""Fuzzing of the ttrpc core:  python -m tests.fuzz [--inputs N] [--seed S] [--engine random|atheris] [--target NAME]

The random engine needs nothing but this tree. The other one, atheris, is led by the code that an input reaches; it has
to be installed (the `fuzz` dependency group). An input that breaks a promise is kept in .work/fuzz/; move it to
tests/fuzz/corpus/<target>/ with its fix, where the unit tests run it from then on.
"""

import argparse
import hashlib
import importlib.util
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, Final

CORPUS: Final = Path(__file__).parent / "corpus"
FOUND: Final = Path(__file__).parents[2] / ".work" / "fuzz"
TARGETS: Final = ("server", "client", "frames", "envelope", "pair")
_BATCH: Final = 1000
_MAX_INPUT_S: Final = 1.0  # of processor time; the slowest known takes a hundredth of it
_MAX_BATCH_S: Final = 120  # on the clock: something hangs
_MAX_FOUND: Final = 5


class HangError(Exception):
    """An input takes too long."""


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def peak_kib() -> int:
    """Return the most memory that this process has had, in KiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> 10 if sys.platform == "darwin" else peak


def keep(target: str, wire: bytes) -> Path:
    """Write an input that has found something, and return where."""
    FOUND.mkdir(parents=True, exist_ok=True)
    path = FOUND / f"{target}-{hashlib.sha256(wire).hexdigest()[:12]}"
    path.write_bytes(wire)
    return path


def _on_alarm(_number: int, _frame: FrameType | None) -> None:
    raise HangError(f"a batch took more than {_MAX_BATCH_S} s")


def run_random(name: str, inputs: int, seed: int) -> int:
    """Run one target, say what came of it, and return how many inputs broke a promise."""
    from tests.fuzz.mutate import Mutator
    from tests.fuzz.targets import TARGETS as functions

    target = functions[name]
    mutator = Mutator(seed, [path.read_bytes() for path in sorted((CORPUS / name).iterdir())])
    signal.signal(signal.SIGALRM, _on_alarm)
    began, begin_kib, found, slowest = time.monotonic(), 0, 0, 0.0
    done = 0
    while done < inputs and found < _MAX_FOUND:
        signal.alarm(_MAX_BATCH_S)
        for _ in range(min(_BATCH, inputs - done)):
            wire = mutator.make()
            started = time.process_time()
            try:
                target(wire)
                slowest = max(slowest, took := time.process_time() - started)
                if took > _MAX_INPUT_S:
                    raise HangError(f"an input took {took:.1f} s of processor time")
            except Exception:
                traceback.print_exc()
                say(f"{name}: kept as {keep(name, wire)}")
                found += 1
            done += 1
        begin_kib = begin_kib or peak_kib()  # the first batch fills caches
    signal.alarm(0)
    took = time.monotonic() - began
    say(
        f"{name}: {done} inputs, seed {seed}, {took:.0f} s, {done / took:.0f}/s, {found} crashes, "
        f"slowest {slowest * 1000:.1f} ms, peak memory {begin_kib} -> {peak_kib()} KiB"
    )
    return found


def run_atheris(name: str, inputs: int, seed: int) -> int:
    """Run one target under atheris, in a process of its own, and return how that ended."""
    FOUND.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz", "--engine", "atheris", "--inputs", str(inputs), "--seed", str(seed)]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:  # it adds what it learns, which is not for the tree
        shutil.copytree(CORPUS / name, folder, dirs_exist_ok=True)
        return subprocess.run([*command, "--target", name, "--folder", folder]).returncode


def become_atheris(name: str, inputs: int, seed: int, folder: str) -> None:
    """Run one target; atheris ends the process when it is done."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["shim.ttrpc"]):
        targets = importlib.import_module("tests.fuzz.targets")
    options = [f"-runs={inputs}", f"-seed={seed}", "-max_len=2000", "-timeout=20", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={FOUND}/{name}-", folder], targets.TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the ttrpc core.")
    parser.add_argument("--inputs", type=int, default=100_000, help="how many, over all targets (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same inputs (random engine)")
    parser.add_argument("--engine", choices=["random", "atheris"], default="random")
    parser.add_argument("--target", choices=TARGETS, action="append", help="may be repeated; all by default")
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # says that this is atheris's own process
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    inputs = options.inputs // len(names)
    if options.engine == "random":
        return 1 if sum(run_random(name, inputs, options.seed) for name in names) else 0
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed here: python -m pip install --group fuzz")
    if options.folder:
        become_atheris(names[0], inputs, options.seed, options.folder)
    failed = [name for name in names if run_atheris(name, inputs, options.seed)]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
