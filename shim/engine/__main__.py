"""containerd-shim-pyrunc-v1: the program."""

from __future__ import annotations

from typing import NoReturn

from shim.engine.shim import RUNTIME_ID, RuncShim
from shim.runtime.main import run


def main() -> NoReturn:
    """Be the shim."""
    run(RUNTIME_ID, RuncShim)


if __name__ == "__main__":
    main()
