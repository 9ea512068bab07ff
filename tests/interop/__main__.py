"""Runs our peers against published ones in Go and Rust: `python -m tests.interop`, run by `./just interop`.

Every client meets every server, ours in both styles; each case runs on a connection of its own.  Prints a table: ok,
ok* (a published peer's known difference, listed below), NO (described below), or - (not for this client).

Exit status 0: at least one toolchain was there and everything that ran was as expected.  --require makes a missing
toolchain an error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from shim.testing import sweep
from tests.interop import build, expected

_PROJECT: Final = Path(__file__).resolve().parents[2]
_TOOLCHAINS: Final[Mapping[str, tuple[str, Callable[[], Path]]]] = {
    "go": ("go", build.go_peer),
    "rust": ("cargo", build.rust_peer),
}
_OURS: Final = ("sync", "aio")
_START_S: Final = 20.0
_STOP_S: Final = 10.0

Results = dict[str, list[str]]
"""By case, what differs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Build, run and compare; return the exit code."""
    options = _parse(argv)
    try:
        with sweep.interruptible():
            return _main(options)
    except KeyboardInterrupt:
        _write("interrupted; every peer is stopped")
        return 130


def _main(options: argparse.Namespace) -> int:
    missing = {name: tool for name, (tool, _) in _TOOLCHAINS.items() if shutil.which(tool) is None}
    for name, tool in missing.items():
        _write(f"{tool} is not on PATH: nothing is run with the peer in {name.capitalize()}")
    if required := sorted(missing.keys() & set(options.require)):
        _write(f"failed: {', '.join(required)} required")
        return 1
    if len(missing) == len(_TOOLCHAINS):
        _write("failed: no toolchain, so there is no published peer to compare with")
        return 1
    commands = {style: [sys.executable, "-m", "tests.interop.peer", style] for style in _OURS}
    for name, (_, make) in _TOOLCHAINS.items():
        if name in missing or name not in {*options.client, *options.server}:
            continue
        _write(f"building the peer in {name.capitalize()}")
        try:
            commands[name] = [str(make())]
        except build.BuildError as error:
            _write(f"failed: {error}")
            return 1
    pairings = [
        (client, server)
        for client in commands
        for server in commands
        if client in options.client and server in options.server
    ]
    results = asyncio.run(_run_all(commands, pairings, options))
    status = _report(results)
    if not any(name in _TOOLCHAINS for pairing in results for name in pairing):
        _write("failed: no published peer took part")
        return 1
    return status


async def _run_all(
    commands: Mapping[str, list[str]], pairings: Iterable[tuple[str, str]], options: argparse.Namespace
) -> dict[tuple[str, str], Results]:
    results = {}
    build.WORK.mkdir(parents=True, exist_ok=True)
    for client, server in pairings:
        cases = [case for case in expected.cases_for(client) if case in options.case]
        log = build.WORK / f"{client}-{server}.log"
        with log.open("wb") as errors, tempfile.TemporaryDirectory(prefix="interop-") as folder:
            pairing = _Pairing(client, server, str(Path(folder) / "s"), errors.fileno(), options.timeout)
            results[client, server] = await pairing.run(commands[client], commands[server], cases)
        bad = sum(bool(differences) for differences in results[client, server].values())
        _write(f"{client} -> {server}: {len(cases)} cases, " + (f"{bad} NOT as expected, see {log}" if bad else "ok"))
    return results


class _Pairing:
    """One client against one server."""

    def __init__(self, client: str, server: str, socket: str, errors: int, timeout_s: float) -> None:
        self._client = client
        self._server = server
        self._socket = socket
        self._errors = errors
        self._timeout_s = timeout_s

    async def run(self, client: list[str], server: list[str], cases: Sequence[str]) -> Results:
        """Return what differs in each case, and under `stopping` how a peer ended otherwise than well."""
        results: Results = {}
        async with self._peer([*server, "server", self._socket]) as serving:
            try:
                async with asyncio.timeout(_START_S):
                    is_ready = await _read_line(serving) == "ready"
            except TimeoutError:
                is_ready = False
            if not is_ready:
                return {case: ["the server did not start"] for case in cases}
            while left := [case for case in cases if case not in results]:
                await self._attempt([*client, "client", self._socket, *left], left, results)
            assert serving.stdin is not None
            serving.stdin.close()
            if problem := await _end(serving, "the server"):
                results["stopping"] = [problem]
        return results

    async def _attempt(self, command: list[str], cases: Sequence[str], results: Results) -> None:
        """Run cases until the last, or until one hangs or ends the client."""
        async with self._peer(command) as process:
            for case in cases:
                try:
                    async with asyncio.timeout(self._timeout_s):
                        line = await _read_line(process)
                except TimeoutError:
                    results[case] = [f"no answer within {self._timeout_s:g} s"]
                    return
                if not line:
                    results[case] = [await _end(process, "the client") or "the client stopped early"]
                    return
                outcome: dict[str, Any] = json.loads(line)
                results[case] = expected.differences(outcome, self._client, self._server)
            if problem := await _end(process, "the client"):
                results["stopping"] = [problem]

    @asynccontextmanager
    async def _peer(self, command: list[str]) -> AsyncIterator[asyncio.subprocess.Process]:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, cwd=_PROJECT, stdin=pipe, stdout=pipe, stderr=self._errors, limit=1 << 20
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _read_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


async def _end(process: asyncio.subprocess.Process, name: str) -> str:
    """Let a peer end in peace, and return what went wrong."""
    try:
        async with asyncio.timeout(_STOP_S):
            status = await process.wait()
    except TimeoutError:
        return f"{name} did not stop within {_STOP_S:g} s"
    return f"{name} ended with status {status}" if status else ""


def _report(results: Mapping[tuple[str, str], Results]) -> int:
    """Print the table and what is behind it, and return the exit code."""
    cases = [case for case in [*expected.CASES, "stopping"] if any(case in result for result in results.values())]
    width = max(map(len, cases), default=0)
    for row in (0, 1):
        _write(("client" if row == 0 else "  server").ljust(width) + "".join(f"{names[row]:>6}" for names in results))
    quirks: set[str] = set()
    bad = []
    for case in cases:
        cells = []
        for (client, server), result in results.items():
            quirk = expected.quirk_of(case, client, server)
            if case not in result:
                cells.append("" if case == "stopping" else "-")
            elif result[case]:
                cells.append("NO")
                bad.append(f"{client} -> {server}, {case}: " + "; ".join(result[case]))
            else:
                cells.append("ok*" if quirk else "ok")
                quirks |= {quirk.reason} if quirk else set()
        _write(case.ljust(width) + "".join(f"{cell:>6}" for cell in cells))
    for reason in sorted(quirks):
        _write(f"* {reason}")
    for line in bad:
        _write(f"NO: {line}")
    return 1 if bad or not cases else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.interop", description="Our peers against published ones.")
    peers = [*_OURS, *_TOOLCHAINS]

    def add_names(option: str, known: Collection[str], default: Collection[str], text: str) -> None:
        def names(value: str) -> list[str]:
            if unknown := set(value.split(",")) - set(known):
                raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is none of {', '.join(known)}")
            return value.split(",")

        parser.add_argument(option, type=names, default=default, metavar="NAME,...", help=text)

    add_names("--require", _TOOLCHAINS, (), f"fail without these of {', '.join(_TOOLCHAINS)}")
    add_names("--client", peers, peers, f"only these of {', '.join(peers)}")
    add_names("--server", peers, peers, "only these, of the same")
    add_names("--case", expected.CASES, expected.CASES, "only these")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="for a case (default: 30)")
    return parser.parse_args(argv)


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
