"""Who is compared: each contender is a server and a client of its own kind, in processes of their own.

A contender that cannot run here has a reason instead, which the tables show.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench_ttrpc.build import go_program
from tests.interop.build import BuildError


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of the tables.

    `serve` and `drive` are commands, where `{}` is the socket; `pipeliner` is the module that keeps many calls in
    flight against its server; `absent` says why it cannot run.  A variant differs in how handlers run.  What is
    bare has only a server, and no protocol.
    """

    name: str
    serve: tuple[str, ...]
    drive: tuple[str, ...]
    pipeliner: str = "raw"
    absent: str = ""
    is_variant: bool = False
    is_bare: bool = False


OURS_BLOCKING = "ours, blocking"
OURS_ASYNCIO = "ours, asyncio task"


def contenders(only: Sequence[str]) -> list[Contender]:
    """Return all contenders whose name has one of `only` in it, or all; builds what must be built."""
    wanted = [
        _python(OURS_BLOCKING, "ours_blocking", "inline"),
        _python("ours, blocking pool", "ours_blocking", "pool", is_variant=True),
        _python(OURS_ASYNCIO, "ours_asyncio", "task"),
        _python("ours, asyncio inline", "ours_asyncio", "inline", is_variant=True),
        _python("ours, asyncio plain", "ours_asyncio", "plain", is_variant=True),
        _python("grpcio", "grpc_blocking", needs="grpc"),
        _python("grpc.aio", "grpc_asyncio", needs="grpc"),
        _python("grpclib", "grpclib_asyncio", needs="grpclib"),
    ]
    chosen = [contender for contender in wanted if _is_chosen(contender.name, only)]
    if _is_chosen("Go ttrpc", only):
        chosen.append(_go())
    if _is_chosen("bare sockets", only):
        chosen.append(Contender("bare sockets", peer("bare", "serve"), peer("raw", "drive"), is_bare=True))
    return chosen


def _is_chosen(name: str, only: Sequence[str]) -> bool:
    return not only or any(part in name for part in only)


def _python(name: str, module: str, variant: str = "", *, needs: str = "", is_variant: bool = False) -> Contender:
    absent = f"{needs} is not installed" if needs and importlib.util.find_spec(needs) is None else ""
    # grpcio's own asyncio client keeps calls in flight against either of its servers; grpclib's against grpclib's.
    pipeliner = "raw" if not needs else "grpc_asyncio" if needs == "grpc" else module
    commands = peer(module, "serve", variant), peer(module, "drive", variant)
    return Contender(name, *commands, pipeliner, absent, is_variant)


def _go() -> Contender:
    try:
        program = go_program()
    except BuildError as error:
        return Contender("Go ttrpc", (), (), absent=str(error))
    return Contender("Go ttrpc", _of(program, "serve"), _of(program, "drive"))


def peer(module: str, role: str, variant: str = "") -> tuple[str, ...]:
    """Return the command of a Python process, where `{}` is the socket."""
    return (sys.executable, "-m", "tests.bench_ttrpc.peer", module, role, "{}", variant)


def _of(program: Path, role: str) -> tuple[str, ...]:
    return (str(program), role, "{}")
