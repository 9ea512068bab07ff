"""A script whose image would have what LEAVE names, so that it cannot be made."""

import os
import threading
import time

from shim.runtime import image

kept: list[object] = []


def leave() -> bool:
    """Leave it."""
    what = os.environ["LEAVE"]
    if what == "descriptor":
        kept.append(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
    elif what == "child":
        if os.fork() == 0:
            os._exit(0)
    elif what == "thread":
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    elif what == "time":
        kept.append(str(time.time_ns()))
    return False


if image.is_being_made():
    image.make(lambda: os._exit(0), leave)
