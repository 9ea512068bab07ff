"""The entry point of every shim: `run`.

Rule: stdout of `start`, `delete` and `-info` is protocol, and containerd reads start's stderr together with it, so
nothing is printed that is not an answer or the one line of a failure.  `-v` is answered before anything is imported.
Spec: containerd pkg/shim/shim.go; contract section 2.
"""

from __future__ import annotations

import gc
import os
import sys

from shim import __version__
from shim.runtime import flags as flags_module
from shim.runtime.flags import FlagError, HelpRequested

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from shim.runtime.config import Config
    from shim.runtime.flags import Flags
    from shim.runtime.shim import Shim
    from shim.runtime.warm_up import Calls, FakeHost


def run(
    runtime_id: str,
    shim: Callable[[str, Flags, Config], Shim],
    config: Config | None = None,
    arguments: list[str] | None = None,
    warm_up: Callable[[FakeHost, str], Calls] | None = None,
) -> NoReturn:
    """Be the shim `runtime_id` (such as `io.containerd.pyrunc.v1`) and end the process with containerd's exit codes.

    `shim` is a subclass of `Shim`, or a function with the arguments of its constructor that returns one, so that
    importing it can wait until it is needed.  `arguments` are those of the command line.  `warm_up` yields the calls
    that a daemon gets while the image of a static binary is made (shim/runtime/warm_up.py).  Exit codes: 0 success, 1
    the action failed (one line on stderr says why), 2 the command line is wrong.
    """
    gc.disable()  # nothing of a short process, nor of a daemon's imports, is garbage; the daemon enables it
    if "_shim_image" in sys.builtin_module_names:  # a static binary, perhaps the process of its build
        from shim.runtime import image

        if image.is_being_made():
            from shim.runtime.warm_up import warm_up as warm_shim_up

            image.make(
                lambda: _launch(runtime_id, shim, config, arguments),
                lambda: warm_shim_up(runtime_id, shim, config, warm_up),
            )
    _launch(runtime_id, shim, config, arguments)


def _launch(
    runtime_id: str,
    shim: Callable[[str, Flags, Config], Shim],
    config: Config | None,
    arguments: list[str] | None,
) -> NoReturn:
    words = sys.argv[1:] if arguments is None else arguments
    code = 1
    try:
        code = _act(runtime_id, shim, config, words)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except OSError as error:
        code = code or 1
        _complain(f"{runtime_id}: {_one_line(error)}")
    except MemoryError:
        _complain("not enough memory")
    os._exit(code)  # an orderly end costs milliseconds that containerd waits for


def _act(runtime_id: str, shim: Callable[[str, Flags, Config], Shim], config: Config | None, words: list[str]) -> int:
    try:
        flags = flags_module.parse(words)
    except HelpRequested:
        _complain(flags_module.usage(sys.argv[0]))
        return 0
    except FlagError as error:
        _complain(f"{error}\n{flags_module.usage(sys.argv[0])}")
        return 2
    if flags.version:
        os.write(1, _version_text(os.path.basename(sys.argv[0])).encode())
        return 0
    from shim.errors import ShimError
    from shim.host import process
    from shim.runtime import actions
    from shim.runtime.config import Config

    code = 0
    try:
        actions.act(shim(runtime_id, flags, config or Config()), flags)
    except (ShimError, OSError) as error:
        _complain(f"{runtime_id}: {_one_line(error)}")
        code = 1
    process.remove_abandoned_folder()
    return code


def _complain(text: str) -> None:
    if sys.stderr is None:  # closed by the caller
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        return


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([*names, error.strerror])
    return " ".join(str(error).split("\n"))


def _version_text(program: str) -> str:
    version = ".".join(str(part) for part in sys.version_info[:3])
    try:
        from shim_revision import REVISION  # type: ignore[import-not-found]  # written by build/spec
    except ImportError:
        REVISION = ""
    return f"{program}:\n  Version:  {__version__}\n  Revision: {REVISION}\n  Python version: {version}\n\n"
