"""The printed tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tests.bench_ttrpc.cases import WINDOW, Case, Results
from tests.bench_ttrpc.contenders import OURS_ASYNCIO, OURS_BLOCKING, Contender

_COLUMNS: Final = "{:<22} {:>10} {:>10} {:>10} {:>11} {:>11} {:>10} {:>9}"
_HEAD: Final = ("per s", "p50 us", "p99 us", "server us", "client us", "blocking/", "asyncio/")
_ASYNCIO_PEERS: Final = ("grpc.aio", "grpclib")


def case_table(case: Case, everybody: Sequence[Contender], results: Results) -> str:
    """Return one case: a row for each contender; the last columns are our figures divided by the row's."""
    lines = ["", _COLUMNS.format(case.title[:22] if len(case.title) <= 22 else "", *_HEAD)]
    if len(case.title) > 22:
        lines.insert(1, case.title)
    for contender in everybody:
        if not case.has(contender):
            continue
        found = results.median(case.name, contender.name)
        if found is None:
            lines.append(f"{contender.name:<22} {results.failures.get(contender.name, 'no figures')}")
            continue
        ratios = [_ratio(results, case.name, ours, contender.name) for ours in (OURS_BLOCKING, OURS_ASYNCIO)]
        times = [found.p50_us, found.p99_us, found.server_us, found.client_us]
        lines.append(
            _COLUMNS.format(
                contender.name,
                _figure(found.calls_per_s),
                *(_figure(value) if value else "-" for value in times),
                *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            )
        )
    return "\n".join(lines)


def facts_table(title: str, figures: Mapping[str, float]) -> str:
    """Return figures that have a name each."""
    return "\n".join(["", title, *(f"{name:<30} {_figure(value):>10}" for name, value in figures.items())])


def budgets(results: Results, facts: Mapping[str, Mapping[str, float]], pace: float) -> str:
    """Return what is wanted of this project's ttrpc beside what was measured.

    `pace` is how much slower this machine is than the one for which budgets of CPU time were set; those are judged by
    the measured time divided by it, except for one call at a time, which is the kernel's time for the most part.
    """
    lines = ["", f"CPU times are judged as on a machine {pace:.2f} times as fast, for which the budgets were set"]
    lines.append(f"{'wanted':<70} {'measured':>10} {'judged':>10}  {'':<6}  Go's, measured")
    for callers, small in ((1, "serial"), (64, "64 callers")):
        for ours, peers in ((OURS_BLOCKING, ("grpcio",)), (OURS_ASYNCIO, _ASYNCIO_PEERS)):
            for peer in peers:
                ratio = _ratio(results, f"unary-{callers}-64", ours, peer)
                least = 8.0 if peer == "grpcio" else 1.0
                _add(lines, f"{ours}: calls per s >= {least:.0f} x {peer}, 64 B, {small}", ratio, least, is_least=True)
    for size, name in ((4 << 10, "4 KiB"), (1 << 20, "1 MiB")):
        for ours, peers in ((OURS_BLOCKING, ("grpcio",)), (OURS_ASYNCIO, _ASYNCIO_PEERS)):
            for peer in peers:
                for callers in (1, 64):
                    ratio = _ratio(results, f"unary-{callers}-{size}", ours, peer)
                    _add(lines, f"{ours}: ahead of {peer}, {name}, {callers} callers", ratio, 1.0, is_least=True)
    for case, most, calls in (("raw-awake", 15.0, "1 in flight"), (f"raw-{WINDOW}", 5.0, f"{WINDOW} in flight")):
        go = results.median(case, "Go ttrpc")
        for ours in (OURS_BLOCKING, OURS_ASYNCIO, "ours, asyncio inline"):
            found = results.median(case, ours)
            value = None if found is None else found.server_us
            beside = "" if go is None else f"{go.server_us:.1f}"
            _add(
                lines,
                f"{ours}: server CPU us per call, {calls}",
                value,
                most,
                go=beside,
                pace=None if case == "raw-awake" else pace,
            )
    core = facts.get("core", {})
    for name in ("server, 64 B, 1 at once", "server, 64 B, 64 at once", "client, 64 B, 1 at once"):
        _add(lines, f"core, {name}: ns per frame in and out", core.get(name), 1500.0, pace=pace)
    memory = facts.get("memory", {})
    go_memory = f"{memory['Go ttrpc']:.1f}" if "Go ttrpc" in memory else ""
    for ours in (OURS_BLOCKING, OURS_ASYNCIO):
        _add(lines, f"{ours}: KB per idle connection", memory.get(ours), 4.0, go=go_memory)
    _add(lines, "import of the blocking client, CPU ms", facts.get("import", {}).get("cpu_ms"), 30.0, pace=pace)
    return "\n".join(lines) if len(lines) > 3 else ""


def _add(
    lines: list[str],
    name: str,
    value: float | None,
    limit: float,
    *,
    is_least: bool = False,
    go: str = "",
    pace: float | None = None,
) -> None:
    if value is None:
        return
    judged = value if pace is None else value / pace
    verdict = "met" if (judged >= limit if is_least else judged <= limit) else "MISSED"
    wanted = name if is_least else f"{name} <= {limit:.0f}"
    lines.append(f"{wanted:<70} {_figure(value):>10} {_figure(judged):>10}  {verdict:<6}  {go}".rstrip())


def _ratio(results: Results, case: str, ours: str, other: str) -> float | None:
    own, others = results.median(case, ours), results.median(case, other)
    return None if own is None or others is None else own.calls_per_s / others.calls_per_s


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
