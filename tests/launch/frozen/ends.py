"""What the frozen script answers besides checks: facts, chance, stdio, and ways to end."""

from __future__ import annotations

import atexit
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, Final


def facts(*_words: str) -> None:
    """Tell what this interpreter knows of its surroundings."""
    print(json.dumps(_facts()))


def _facts() -> dict[str, Any]:
    import gc
    import locale
    import signal

    streams = {}
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        streams[name] = stream and [
            stream.name,
            stream.mode,
            stream.encoding,
            stream.errors,
            stream.line_buffering,
            stream.write_through,
            stream.isatty(),
            stream.fileno(),
            stream is getattr(sys, f"__{name}__"),
        ]
    return {
        "argv": sys.argv,
        "orig_argv": sys.orig_argv,
        "executable": sys.executable,
        "flags": str(sys.flags),
        "path": sys.path,
        "prefix": [sys.prefix, sys.exec_prefix, sys.base_prefix],
        "warnoptions": sys.warnoptions,
        "xoptions": sys._xoptions,
        "dont_write_bytecode": sys.dont_write_bytecode,
        "recursion": sys.getrecursionlimit(),
        "switch": sys.getswitchinterval(),
        "environ": dict(os.environ),
        "environb": sorted(map(os.fsdecode, os.environb.values())),
        "tz": [time.tzname, time.timezone, time.altzone, time.daylight],
        "local": [list(time.localtime(second)) for second in (0, 1_700_000_000, 1_720_000_000)],
        "encodings": [sys.getfilesystemencoding(), sys.getfilesystemencodeerrors(), sys.getdefaultencoding()],
        "locale": [locale.getencoding(), locale.setlocale(locale.LC_ALL)],
        "signals": {int(number): _shown(signal.getsignal(number)) for number in signal.valid_signals()},
        "mask": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
        "streams": streams,
        "collector": [gc.isenabled(), gc.get_threshold(), gc.get_debug()],
        "threads": [thread.name for thread in threading.enumerate()],
        "hash": hash("containerd"),
        "cwd": os.getcwd(),
        "main": sys.modules["__main__"].__name__,
        "hooks": [sys.excepthook is sys.__excepthook__, sys.breakpointhook is sys.__breakpointhook__],
        "path_hooks": [hook.__name__ for hook in sys.path_hooks],
    }


def _shown(handler: Any) -> Any:
    return int(handler) if isinstance(handler, int) else getattr(handler, "__name__", repr(handler))


def chance() -> None:
    """Tell what no two starts may share."""
    import secrets
    import uuid
    from random import Random, SystemRandom

    print(
        json.dumps(
            {
                "random": random.random(),
                "instance": Random().random(),
                "bits": random.getrandbits(64),
                "system": SystemRandom().random(),
                "urandom": os.urandom(8).hex(),
                "secrets": secrets.token_hex(8),
                "uuid1": str(uuid.uuid1()),
                "uuid4": str(uuid.uuid4()),
                "temporary": tempfile.mktemp(),  # noqa: S306
                "candidate": next(tempfile._get_candidate_names()),  # type: ignore[attr-defined]
            }
        )
    )


def stdio() -> None:
    """Write to what there is; the exit code says what there is."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:
            print(f"to {name}", file=stream)
            stream.flush()
    if sys.stdin is not None:
        sys.stdin.read()
    os._exit(40 + sum(1 << number for number, name in enumerate(("stdin", "stdout", "stderr")) if getattr(sys, name)))


def buffered() -> None:
    """Write a line without its end, and one with it, to stdout, and wait."""
    sys.stdout.write("a line\nno line")
    time.sleep(30)


def read() -> None:
    """Read lines from stdin and answer each."""
    for line in sys.stdin:
        print(f"got {line.rstrip()}", flush=True)


def idle() -> None:
    """Say so, and wait."""
    print("idle", flush=True)
    time.sleep(60)


def end(how: str) -> None:
    """End in a way that is named."""
    atexit.register(lambda: print("atexit", flush=True))
    print("before")
    if how == "code":
        sys.exit(3)
    elif how == "text":
        sys.exit("a text")
    elif how == "none":
        sys.exit()
    elif how == "raise":
        raise ValueError("an error of the author's")
    elif how == "interrupt":
        import signal

        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)
    elif how == "abort":
        os.abort()
    elif how == "thread":
        threading.Timer(0.05, print, ("thread",)).start()
        sys.exit(4)


ACTIONS: Final[dict[str, Callable[..., None]]] = {
    function.__name__: function for function in (facts, chance, stdio, buffered, read, idle, end)
}
