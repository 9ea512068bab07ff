"""Compares ttrpc here with gRPC in Python and ttrpc in Go, on unix sockets: `python -m tests.bench_ttrpc`.

Prints medians of rounds in which the contenders take turns, and the ratios; --json keeps all samples.  It judges
nothing: next to the budgets of the last table is what was measured.  Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import struct
import sys
import time
import timeit
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from tests.bench_ttrpc import footprint, tables
from tests.bench_ttrpc.cases import Case, cases, measure
from tests.bench_ttrpc.contenders import Contender, contenders
from tests.bench_ttrpc.processes import PeerError

_BUDGETS_PACK_NS: Final = 67.0  # on the machine for which the budgets of CPU time were set
_FOOTPRINTS: Final = ("memory", "core", "import")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    options = _parse(argv)
    if sys.platform != "linux":
        sys.stderr.write("the benchmark reads /proc: it needs Linux\n")
        return 1
    began = time.monotonic()
    only = set(options.only or ())
    everybody = contenders(options.contender or ())
    paces = [_pack_ns()]
    _write(f"{_machine()}; medians\nat the start: {_conditions(paces[-1])}")
    chosen = [case for case in cases() if not only or case.name in only]
    seconds, rounds = (0.1, 2) if options.quick else (0.35, 5)
    try:
        results = measure(everybody, chosen, rounds=rounds, seconds=seconds)
        paces.append(_pack_ns())
        for case in chosen:
            _write(tables.case_table(case, everybody, results))
        facts = _footprints(everybody, only, options.quick)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; everything that was started ends\n")
        return 130
    paces.append(_pack_ns())
    _write(tables.budgets(results, facts, statistics.median(paces) / _BUDGETS_PACK_NS))
    _write(f"at the end, after {time.monotonic() - began:.0f} s: {_conditions(paces[-1])}")
    if options.json is not None:
        _write_json(options.json, chosen, results.samples, results.failures, facts)
    return 0


def _footprints(everybody: Sequence[Contender], only: set[str], quick: bool) -> dict[str, Mapping[str, float]]:
    facts: dict[str, Mapping[str, float]] = {}
    if not only or "memory" in only:
        facts["memory"] = _memory(everybody)
        _write(tables.facts_table("memory of the server for an idle connection, KB", facts["memory"]))
    if not only or "core" in only:
        facts["core"] = footprint.core(0.1 if quick else 0.5)
        _write(tables.facts_table("core alone, one frame in and one out, CPU ns", facts["core"]))
    if not only or "import" in only:
        facts["import"] = footprint.imports(5 if quick else 21)
        _write(tables.facts_table("import of the blocking client", facts["import"]))
    return facts


def _memory(everybody: Sequence[Contender]) -> Mapping[str, float]:
    figures: dict[str, float] = {}
    for contender in everybody:
        if contender.absent or contender.is_variant:
            continue
        try:
            figures[contender.name] = footprint.memory(contender)
        except (PeerError, OSError) as error:
            sys.stderr.write(f"memory of {contender.name}: {error}\n")
    return figures


def _write_json(
    path: Path,
    chosen: Sequence[Case],
    samples: Mapping[str, Mapping[str, Sequence[object]]],
    failures: Mapping[str, str],
    facts: Mapping[str, Mapping[str, float]],
) -> None:
    document = {
        "machine": _machine(),
        "cases": {case.name: case.title for case in chosen},
        "samples": {
            case: {name: [asdict(sample) for sample in taken] for name, taken in by_name.items()}  # type: ignore[call-overload]
            for case, by_name in samples.items()
        },
        "failures": failures,
        **facts,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    _write(f"all samples: {path}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [*(case.name for case in cases()), *_FOOTPRINTS]
    parser = argparse.ArgumentParser(prog="python -m tests.bench_ttrpc", description="Compares ttrpc with its peers.")
    parser.add_argument("--json", type=Path, help="file for all samples")
    parser.add_argument("--quick", action="store_true", help="short and few turns: under a minute")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--contender", nargs="+", metavar="PART", help="only those with this in their name")
    return parser.parse_args(argv)


def _pack_ns() -> float:
    """Return the CPU time of one call of Struct.pack: on a shared machine all CPU times grow with the load."""
    runs, names = 20_000, {"pack": struct.Struct(">IIBB").pack}
    return (
        min(timeit.repeat("pack(1, 2, 3, 4)", globals=names, timer=time.process_time, number=runs, repeat=9))
        / runs
        * 1e9
    )


def _conditions(pack_ns: float) -> str:
    return f"load {os.getloadavg()[0]:.1f}, a call of Struct.pack takes {pack_ns:.0f} ns"


def _machine() -> str:
    return (
        f"{os.cpu_count()} {platform.machine()} cores, Linux {platform.release()}, Python {platform.python_version()}"
    )


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
