"""containerd-shim-pyrunc-v1: the program."""

from __future__ import annotations

from shim.runtime.main import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from shim.runtime.config import Config
    from shim.runtime.flags import Flags
    from shim.runtime.shim import Shim

RUNTIME_ID = "io.containerd.pyrunc.v1"


def pyrunc(runtime_id: str, flags: Flags, config: Config) -> Shim:
    """Return the shim; imported only now, since `-v` needs none of it.

    Its daemons come and go without a word: containerd's log has enough of each container.
    """
    from shim.engine.shim import RuncShim

    return RuncShim(runtime_id, flags, config._replace(default_log_level="warning"))


def main() -> NoReturn:
    """Be the shim."""
    run(RUNTIME_ID, pyrunc)


if __name__ == "__main__":
    main()
