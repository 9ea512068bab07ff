"""What is measured between processes: the cases in order, and rounds in which the contenders take turns.

Every sample has calls per second, latencies, and CPU time per call of server and client: on a busy machine that is the
figure to compare.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.bench_ttrpc.contenders import Contender, peer
from tests.bench_ttrpc.loads import Command
from tests.bench_ttrpc.processes import Peer, PeerError

SIZES: Final[Mapping[str, int]] = {"64 B": 64, "4 KiB": 4 << 10, "1 MiB": 1 << 20}
WINDOW: Final = 128


@dataclass(frozen=True, slots=True)
class Case:
    """One table; `is_raw` has the pipelining client instead of the contender's own."""

    name: str
    title: str
    kind: str
    callers: int
    size: int
    is_raw: bool = False

    def has(self, contender: Contender) -> bool:
        """Tell whether the contender is in the table."""
        return self.is_raw or not contender.is_bare

    def command(self, seconds: float) -> Command:
        """Return what the client is told."""
        return Command(self.kind, self.callers, self.size, seconds)


@dataclass(frozen=True, slots=True)
class Sample:
    """One contender, one case, one turn."""

    calls_per_s: float
    p50_us: float
    p99_us: float
    server_us: float
    client_us: float


@dataclass(slots=True)
class Results:
    """The samples of all turns, by case and contender, and why some are missing."""

    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, case: Case, contender: Contender, sample: Sample) -> None:
        """Keep a sample."""
        self.samples.setdefault(case.name, {}).setdefault(contender.name, []).append(sample)

    def median(self, case: str, contender: str) -> Sample | None:
        """Return the middle of each figure, or None when there is none."""
        taken = self.samples.get(case, {}).get(contender)
        if not taken:
            return None
        names = Sample.__dataclass_fields__
        return Sample(*(statistics.median(getattr(sample, name) for sample in taken) for name in names))


def cases() -> list[Case]:
    """Return all cases."""
    unary = [
        Case(
            f"unary-{callers}-{size}", f"unary, {label}, {callers} caller{'s' * (callers > 1)}", "unary", callers, size
        )
        for label, size in SIZES.items()
        for callers in (1, 64)
    ]
    return [
        *unary,
        Case("ping-pong", "bidi stream, 64 B, ping-pong", "ping-pong", 1, 64),
        Case("upload", "client's stream, 64 B, messages", "upload", 1, 64),
        Case("download", "server's stream, 2 B, messages in streams of 500", "download", 1, 64),
        Case(
            "raw-1", "server alone, 64 B, serial (prepared frames; gRPC: asyncio client)", "unary", 1, 64, is_raw=True
        ),
        Case("raw-awake", "server alone, 64 B, serial, the client never asleep", "awake", 1, 64, is_raw=True),
        Case(f"raw-{WINDOW}", f"server alone, 64 B, {WINDOW} in flight", "unary", WINDOW, 64, is_raw=True),
    ]


def measure(everybody: Sequence[Contender], chosen: Sequence[Case], *, rounds: int, seconds: float) -> Results:
    """Run every case with every contender in turn, forth and back; one that fails is out from there."""
    results = Results()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-ttrpc-")))
        sides: dict[str, tuple[Peer, Peer, Peer]] = {}
        for at, contender in enumerate(everybody):
            if contender.absent:
                results.failures[contender.name] = contender.absent
                continue
            try:
                sides[contender.name] = _started(contender, folder / str(at), stack)
            except PeerError as error:
                results.failures[contender.name] = str(error)
        for turn in range(rounds):
            for case in chosen:
                for contender in everybody if turn % 2 == 0 else reversed(everybody):
                    if contender.name not in sides or not case.has(contender):
                        continue
                    server, client, pipeliner = sides[contender.name]
                    try:
                        sample = _sample(server, pipeliner if case.is_raw else client, case.command(seconds))
                    except (PeerError, OSError) as error:
                        results.failures[contender.name] = f"{case.name}: {error}"
                        del sides[contender.name]
                    else:
                        results.add(case, contender, sample)
    return results


def _started(contender: Contender, prefix: Path, stack: contextlib.ExitStack) -> tuple[Peer, Peer, Peer]:
    """Return the contender's server, its client, and the client that keeps many calls in flight."""
    errors = stack.enter_context(prefix.with_suffix(".err").open("wb"))
    address = prefix.with_suffix(".sock")
    peers = []
    for command in (contender.serve, contender.drive, peer(contender.pipeliner, "drive")):
        peers.append(stack.enter_context(Peer(command, address, errors)))
        peers[-1].wait_ready()
    server, client, pipeliner = peers
    return server, client, pipeliner


def _sample(server: Peer, client: Peer, command: Command) -> Sample:
    before = server.cpu_s
    figures = client.load(command)
    server_s = server.cpu_s - before
    if not figures.calls:
        raise PeerError("no call was answered")
    return Sample(
        figures.calls / figures.seconds,
        figures.p50_us,
        figures.p99_us,
        server_s / figures.calls * 1e6,
        figures.cpu_s / figures.calls * 1e6,
    )
