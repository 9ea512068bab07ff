"""Compares our shim with Go's in one private containerd: `python -m tests.bench`, run by `./just bench`.

Prints medians (with the least and the greatest sample) and ours/Go, and writes all samples as JSON. It judges nothing.
Needs root on Linux, containerd, runc, busybox-static and the built shim.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from shim.runtime.zygote_protocol import FOLDER_VARIABLE, SWITCH_VARIABLE
from shim.testing import releases, sweep
from shim.testing.containerd import GO_RUNTIME, RUNTIME, CommandError, Containerd
from shim.testing.image import ImageError
from shim.testing.releases import ReleaseError
from tests.bench.cases import METRICS, TARGETS, Bench, Side
from tests.bench.sampling import Summary, interleave

_PROJECT: Final = Path(__file__).resolve().parents[2]
_OURS: Final = "containerd-shim-pyrunc-v1"
_COLUMNS: Final = "{:<48}  {:>22}  {:>22}  {:>6}  {:>6}  {:>3}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    options = _parse(argv)
    if os.uname().sysname != "Linux" or os.geteuid() != 0:
        sys.stderr.write("the benchmark runs real containers: it needs Linux and root\n")
        return 1
    ours = options.ours / _OURS
    if not ours.is_file():
        sys.stderr.write(f"there is no {ours}: run ./just build first\n")
        return 1
    try:
        release = releases.find(options.containerd) if options.containerd else releases.installed()
        if release is None:
            sys.stderr.write("containerd is not installed: run packaging/system-packages test first\n")
            return 1
        sides = [Side("Go", GO_RUNTIME, release.go_shim), Side("ours", RUNTIME, ours)]
        # Zygotes of its own, so that all of them are known and none is left.
        zygotes = Path(tempfile.mkdtemp(prefix="zb-", dir="/tmp"))
        environment = {FOLDER_VARIABLE: str(zygotes / "containerd"), SWITCH_VARIABLE: "on"}
        containerd = Containerd(release, [options.ours], environment=environment)
        try:
            with sweep.interruptible(), containerd:
                results = _measure(Bench(containerd, zygotes), containerd, sides, options)
        finally:
            shutil.rmtree(zygotes)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; everything that was started is stopped\n")
        return 130
    except (CommandError, ImageError, ReleaseError, RuntimeError, OSError) as error:
        sys.stderr.write(f"failed: {error}\n")
        return 1
    for line in containerd.left_behind:
        sys.stdout.write(f"left behind (removed by force): {line}\n")
    facts = {
        "containerd": release.version,
        "machine": _machine(),
        "ours_bytes": ours.stat().st_size,
        "results": results,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(facts, indent=1) + "\n")
    sys.stdout.write(f"all samples: {options.json}\n")
    return 0


def _measure(
    bench: Bench, containerd: Containerd, sides: Sequence[Side], options: argparse.Namespace
) -> list[dict[str, object]]:
    containerd.import_image()
    _write(f"containerd {containerd.release.version}, {_machine()}; median (least-greatest)")
    _write(_COLUMNS.format("", "Go", "ours", "ours/Go", "target", "n"))
    results: list[dict[str, object]] = []
    for case in bench.cases():
        if options.only and not set(options.only).intersection(case.metrics):
            continue
        runs = case.quick_runs if options.quick else case.runs
        began = time.monotonic()
        summaries = interleave(
            sides, case.measure, runs=runs, warm_up=min(case.warm_up, runs - 1), name_of=lambda side: side.name
        )
        for metric in case.metrics:
            result = _row(metric, summaries[metric])
            results.append(result)
        results[-1]["case_seconds"] = round(time.monotonic() - began, 1)
    return results


def _row(metric: str, summary: Mapping[str, Summary]) -> dict[str, object]:
    go, ours = summary["Go"], summary["ours"]
    ratio = ours.median / go.median
    _write(
        _COLUMNS.format(METRICS[metric], str(go), str(ours), f"{ratio:.2f}", TARGETS.get(metric, ""), len(ours.samples))
    )
    return {
        "name": metric,
        "title": METRICS[metric],
        "go": go.as_json(),
        "ours": ours.as_json(),
        "ratio": round(ratio, 4),
        "n": len(ours.samples),
    }


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Compares our shim with Go's.")
    parser.add_argument("--json", type=Path, default=_PROJECT / ".work" / "bench.json", help="file for all samples")
    parser.add_argument("--quick", action="store_true", help="few runs: under a minute")
    parser.add_argument("--only", nargs="+", choices=METRICS, metavar="NAME", help=f"of {', '.join(METRICS)}")
    parser.add_argument(
        "--containerd", metavar="RELEASE", help="containerd release, such as 2.1 (default: the installed)"
    )
    parser.add_argument("--ours", type=Path, default=_PROJECT / "dist", metavar="FOLDER", help=f"folder with {_OURS}")
    return parser.parse_args(argv)


def _machine() -> str:
    return f"{os.cpu_count()} {platform.machine()} cores, Linux {platform.release()}"


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
