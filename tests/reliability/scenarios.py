"""What can go wrong around launches, done on purpose: each scenario makes many starts and counts what came of them.

Rule: a start gives one working shim, or one clear error and no shim; and when all is over, nothing is left behind.
A scenario returns its tally and raises AssertionError where the rule is broken.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.integration.byhand import Hand, finish
from tests.integration.client import wait_until
from tests.integration.conftest import SHIM

_BATCH: Final = 20
_AT_ONCE: Final = 4

Tally = Counter[str]


@contextlib.contextmanager
def scene(binary: Path) -> Iterator[Hand]:
    """Give a hand; afterwards nothing may be left, of starts, daemons, files."""
    hand = Hand(binary)
    try:
        yield hand
    finally:
        left = hand.close()
    assert [] == left


def start_batch(hand: Hand, names: list[str], at_once: int, tally: Tally, is_error: Callable[[str], bool]) -> None:
    """Start containers, compare what was said with what is there, and end their daemons."""
    for name in names:
        hand.bundle(name)

    def start(name: str) -> subprocess.CompletedProcess[bytes]:
        return finish(hand.popen_start(name, stdin=subprocess.DEVNULL))

    with ThreadPoolExecutor(at_once) as pool:
        done = dict(zip(names, pool.map(start, names), strict=True))
    for name, each in done.items():
        if each.returncode == 0:
            assert (f"unix://{hand.socket_path(name)}".encode(), b"") == (each.stdout, each.stderr), each
            tally["working"] += 1
        else:
            text = each.stderr.decode()
            assert is_error(text), f"{name}: start ended with {each.returncode}: {text!r}"
            tally["one clear error"] += 1
    working = {name for name, each in done.items() if each.returncode == 0}
    pids = {name: hand.client(name).connect().shim_pid for name in working}
    wait_until(lambda: {each.pid for each in hand.processes()} == set(pids.values()), "one daemon for each success")
    for name in working:
        hand.client(name).shutdown()
    wait_until(lambda: not hand.processes(), "the daemons have ended")
    for name in names:
        hand.forget(name)


def batches(hand: Hand, count: int, tally: Tally, is_error: Callable[[str], bool]) -> None:
    """Do `start_batch` until `count` containers have been started."""
    for first in range(0, count, _BATCH):
        names = [f"c{number}" for number in range(first, min(count, first + _BATCH))]
        start_batch(hand, names, _AT_ONCE, tally, is_error)


# Scenarios.


def many(binary: Path, count: int) -> Tally:
    """Some at a time, again and again."""
    tally: Tally = Counter()
    with scene(binary) as hand:
        batches(hand, count, tally, lambda text: False)
    return tally


def at_once(binary: Path, count: int) -> Tally:
    """All of them at the same time."""
    tally: Tally = Counter()
    with scene(binary) as hand:
        start_batch(hand, [f"c{number}" for number in range(count)], count, tally, lambda text: False)
    return tally


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Put a file system of one's own on a folder."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "shim-test", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def bad_temporary_folder(binary: Path, count: int, options: str) -> Tally:
    """Nothing can be unpacked: a binary that has to says so, or its loader does; another needs no folder at all."""
    tally: Tally = Counter()
    with scene(binary) as hand, mounted(hand.tmp, options):
        batches(hand, count, tally, lambda text: "PYI-" in text or "loading shared libraries" in text)
        # PyInstaller's bootloader leaves what it could not finish, which is not ours to change.
        left = [path for path in hand.tmp.iterdir() if not path.name.startswith("_MEI")]
        assert [] == left, left
    return tally


def binary_replaced(binary: Path, count: int) -> Tally:
    """Upgrades while starts go on: each start is of the one or of the other."""
    tally: Tally = Counter()
    with scene(binary) as hand:
        hand.program = hand.folder / SHIM
        shutil.copy2(binary, hand.program)
        is_over = threading.Event()

        def replace() -> None:
            while not is_over.wait(0.3):
                shutil.copy2(binary, hand.folder / "new")
                (hand.folder / "new").replace(hand.program)
                tally["upgrades"] += 1

        upgrader = threading.Thread(target=replace)
        upgrader.start()
        try:
            batches(hand, count, tally, lambda text: False)
        finally:
            is_over.set()
            upgrader.join()
    return tally


def all_of(binary: Path, count: int, crowd: int) -> Iterator[tuple[str, Tally, float]]:
    """Run every scenario; yield its name, its tally and how many seconds it took."""
    few = max(10, count // 20)
    scenarios: dict[str, Callable[[], Tally]] = {
        f"{count} starts": lambda: many(binary, count),
        f"{crowd} starts at once": lambda: at_once(binary, crowd),
        "full temporary folder": lambda: bad_temporary_folder(binary, few, "size=64k"),
        "noexec temporary folder": lambda: bad_temporary_folder(binary, few, "noexec"),
        "binary replaced mid-run": lambda: binary_replaced(binary, few),
    }
    for name, run in scenarios.items():
        began = time.monotonic()
        yield name, run(), time.monotonic() - began
