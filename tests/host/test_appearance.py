"""What /proc shows of a process that says what it wants to be taken for."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, os, sys
from shim.host import appearance
for size in (1, 100, 5000, 3):
    words, environment = ["shim", "", "x" * size], {"A": "b" * size, "\\udcff": "="}
    appearance.show(words, environment)
    gc.collect()
    hold = [bytes(1000) for _ in range(1000)]  # nothing of it may be in memory that is used again
    with open("/proc/self/cmdline", "rb") as file:
        assert file.read() == b"shim\\0\\0" + b"x" * size + b"\\0"
    with open("/proc/self/environ", "rb") as file:
        assert file.read() == b"A=" + b"b" * size + b"\\0\\xff==\\0"
hold = [bytearray(1 << 12) for _ in range(10000)]  # the heap still grows
assert os.environ["PATH"], "what is shown is not what is there"
appearance.show(["shim"], {})
with open("/proc/self/environ", "rb") as file:
    assert file.read() == b""
print("shown")
"""


def test_words_and_environment_are_shown_as_said() -> None:
    """Of any length, any number of times, and for good."""
    done = subprocess.run([sys.executable, "-X", "utf8", "-c", PROGRAM], capture_output=True, text=True, check=False)

    assert ("shown\n", "", 0) == (done.stdout, done.stderr, done.returncode)
