"""The Python peers: `python -m tests.interop.peer sync|aio server|client SOCKET [CASE ...]`.

As the peers in go/ and rust/: a server says "ready" and serves until its standard input ends, so that nothing is left
when the driver dies; a client prints a line of JSON for each case.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from tests.interop import asynchronous, blocking, services


def main(arguments: Sequence[str]) -> int:
    """Run as server or client."""
    style, role, socket, *names = arguments
    address = f"unix://{socket}"
    if role == "server" and style == "aio":
        asyncio.run(services.serve_asynchronous(address, sys.stdin.read, _ready))
    elif role == "server":
        services.serve_blocking(address, sys.stdin.read, _ready)
    for name in names:
        outcome = (
            asyncio.run(asynchronous.attempt(address, name)) if style == "aio" else blocking.attempt(address, name)
        )
        _write(outcome.as_line())
    return 0


def _ready() -> None:
    _write("ready")


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
