"""Compares our shim with Go's in private containerds: `python -m tests.bench`, run by `./just bench`.

Prints medians and ours/Go as they come, and writes all samples as JSON; `--read` shows such a file without measuring.
It judges nothing.  Needs root on Linux, containerd, runc, busybox-static and the built shim.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shim.testing import releases, sweep
from shim.testing.containerd import CommandError
from shim.testing.image import ImageError
from shim.testing.releases import Release, ReleaseError
from tests.bench import machine, publish, report, table
from tests.bench.measure import Listener, Wanted, measure
from tests.bench.report import Figures, Report, ReportError, Step
from tests.bench.rows import ROWS
from tests.bench.setting import RUST_PROGRAM

_PROJECT: Final = Path(__file__).resolve().parents[2]
_OURS: Final = "containerd-shim-pyrunc-v1"
_RUST_VARIABLE: Final = "CONTAINERD_SHIM_RUST"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark, or show what one has found, and return the exit code."""
    options = parse(argv)
    try:
        if options.read:
            found = report.read(options.read)
            _write(table.markdown(found))
        else:
            found = _run(options)
        if options.publish:
            publish.publish(found, options.publish)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; everything that was started is stopped\n")
        return 130
    except (CommandError, ImageError, ReleaseError, ReportError, RuntimeError, OSError) as error:
        sys.stderr.write(f"failed: {error}\n")
        return 1
    return 0


def _run(options: argparse.Namespace) -> Report:
    if os.uname().sysname != "Linux" or os.geteuid() != 0:
        raise RuntimeError("the benchmark runs real containers: it needs Linux and root")
    ours = options.ours.absolute() / _OURS
    if not ours.is_file():
        raise RuntimeError(f"there is no {ours}: run ./just build first")
    chosen = _releases(options.containerd)
    rust = None if options.rust is None else _rust(options.rust)
    wanted = Wanted(ours, rust, options.only or (), quick=options.quick, growth=options.growth)
    found: Report = {"format": report.FORMAT, "machine": machine.describe(), "releases": []}
    with sweep.interruptible():
        for release in chosen:
            _write(f"containerd {release.version}, {machine.brief()}; median (least-greatest)")
            _write(table.plain_head(has_rust=rust is not None))
            tell_row = functools.partial(_tell_row, containerd=release.version)
            found["releases"].append(measure(release, wanted, Listener(tell_row, _tell_step, _write)))
            # After each, so that one that is interrupted leaves what it has.
            report.write(found, options.json)
    _write(f"all samples: {options.json}")
    return found


def _releases(keys: str) -> list[Release]:
    if keys == "all":
        return releases.find_all()
    if keys:
        return [releases.find(key) for key in keys.split(",")]
    here = releases.installed()
    if here is None:
        raise ReleaseError("containerd is not installed: run packaging/system-packages test first")
    return [here]


def _rust(path: str) -> Path:
    # containerd finds a runtime by the name of its file, which is the one that the crate gives it.
    found = shutil.which(path)
    if found is None or Path(found).name != RUST_PROGRAM:
        raise RuntimeError(f"{path} is not the Rust shim: --rust=FILE, or {_RUST_VARIABLE}, names {RUST_PROGRAM}")
    return Path(found).absolute()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command line; SystemExit(2) with a usage message if they are none."""
    work = _PROJECT / ".work" / "bench.json"
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Compares our shim with Go's.")
    parser.add_argument("--quick", action="store_true", help="few runs, and not the row of 300 containers")
    parser.add_argument("--growth", action="store_true", help="with 1, 10, 100 and 300 containers too")
    parser.add_argument(
        "--rust",
        nargs="?",
        const=os.environ.get(_RUST_VARIABLE) or RUST_PROGRAM,
        metavar="FILE",
        help=f"the Rust project's shim too: this file, or else what {_RUST_VARIABLE} says, or else that on PATH",
    )
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument(
        "--containerd", default="", metavar="RELEASES", help="such as 1.6,2.1, or all (default: the installed)"
    )
    parser.add_argument("--ours", type=Path, default=_PROJECT / "dist", metavar="FOLDER", help=f"folder with {_OURS}")
    parser.add_argument("--json", type=Path, default=work, metavar="FILE", help="for all samples")
    parser.add_argument("--read", type=Path, metavar="FILE", help="measure nothing: show such a file")
    parser.add_argument(
        "--publish", type=Path, metavar="FOLDER", help="renew bench.json, bench.svg and the table of bench.md in it"
    )
    return parser.parse_args(argv)


def _tell_row(row: Figures, containerd: str) -> None:
    _write(table.plain_row(row, containerd))


def _tell_step(step: Step) -> None:
    _write(table.plain_step(step))


def _write(line: str) -> None:
    sys.stdout.write(line.rstrip("\n") + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
