"""containerd-shim-pyrunc-v1: the program."""

from __future__ import annotations

from shim.runtime.main import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from shim.runtime.config import Config
    from shim.runtime.flags import Flags
    from shim.runtime.shim import Shim
    from shim.runtime.warm_up import Calls, FakeHost

RUNTIME_ID = "io.containerd.pyrunc.v1"


def pyrunc(runtime_id: str, flags: Flags, config: Config) -> Shim:
    """Return the shim; imported only now, since `-v` needs none of it.

    Its daemons come and go without a word: containerd's log has enough of each container.
    """
    from shim.engine.shim import RuncShim

    return RuncShim(runtime_id, flags, config._replace(default_log_level="warning"))


def _warm_up(host: FakeHost, folder: str) -> Calls:
    from shim.engine.warm_up import calls

    return calls(host, folder)


def main() -> NoReturn:
    """Be the shim."""
    run(RUNTIME_ID, pyrunc, warm_up=_warm_up)


if __name__ == "__main__":
    main()
