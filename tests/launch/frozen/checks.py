"""The script that is frozen: runs the checks that the command line names, and answers what tests ask.

checks NAME...      each check prints one JSON line: its name, and its error or null
checks facts        one JSON line of what this interpreter knows of its surroundings
checks chance       one JSON line of numbers and names that no two starts may share
checks end HOW      ends in the way that is named
checks stdio        writes to stdout and stderr, as far as there are any
checks idle         sleeps
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import NoReturn

from shim.runtime import image
from tests.launch.frozen import ends, language, processes, surroundings
from tests.launch.frozen.registry import CHECKS

_MODULES = (language, processes, surroundings)  # which fill CHECKS


def launch() -> NoReturn:
    """Do what the command line says."""
    action, *words = sys.argv[1:] or ["facts"]
    if action in ends.ACTIONS:
        ends.ACTIONS[action](*words)
    else:
        for name in sys.argv[1:]:
            run(name)
    if sys.stdout is not None:
        sys.stdout.flush()
    os._exit(0)


def run(name: str) -> None:
    """Run one check, and say what came of it."""
    error = None
    begun = time.monotonic()
    try:
        CHECKS[name]()
    except BaseException:
        import traceback

        error = traceback.format_exc()
    print(json.dumps({"name": name, "error": error, "seconds": round(time.monotonic() - begun, 3)}), flush=True)


if image.is_being_made():
    image.make(launch, lambda: False)
launch()
