"""What can go wrong around launches, done on purpose: each scenario makes many starts and counts what came of them.

Rule: a start gives one working shim, or one clear error and no shim; and when all is over, nothing is left behind.
A scenario returns its tally and raises AssertionError where the rule is broken.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from shim.ttrpc import ConnectionClosedError
from tests.integration.byhand import Hand, finish
from tests.integration.client import wait_until
from tests.integration.conftest import SHIM

_BATCH: Final = 20
_AT_ONCE: Final = 4
_LINE: Final = 300
_ENOUGH: Final = 96 << 20

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
    """Nothing is unpacked, so it does not matter what the folder is."""
    tally: Tally = Counter()
    with scene(binary) as hand, mounted(hand.tmp, options):
        batches(hand, count, tally, lambda text: False)
        assert [] == list(hand.tmp.iterdir())
    return tally


def cold(binary: Path, count: int) -> Tally:
    """All at the same time, of a file that is not in memory."""
    tally: Tally = Counter()
    with scene(binary) as hand:
        hand.program = hand.folder / SHIM
        shutil.copy2(binary, hand.program)
        os.sync()
        with hand.program.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start_batch(hand, [f"c{number}" for number in range(count)], count, tally, lambda text: False)
    return tally


def binary_replaced(binary: Path, count: int) -> Tally:
    """Upgrades while starts go on: each start is of the one or of the other."""
    tally: Tally = Counter()
    with scene(binary) as hand:
        hand.program = hand.folder / SHIM
        shutil.copy2(binary, hand.program)
        is_over = threading.Event()

        def replace() -> None:
            while not is_over.wait(0.02):
                # By another process: a start that this one forks meanwhile would have the file open, and find it busy.
                subprocess.run(["cp", binary, hand.folder / "new"], check=True)
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


def binary_damaged(binary: Path, count: int) -> Tally:
    """A copy that ended early, at some lengths: the kernel refuses it, or kills it at a page that is not there.

    Never does it hang, never does it say that it works and does not.
    """
    tally: Tally = Counter()
    content = binary.read_bytes()
    lengths = {0, 1, 4, 63, 64, 120, 4096, len(content) - 1, len(content) - 88, len(content) - 4096}
    lengths |= {len(content) * number // count for number in range(1, count)}
    with scene(binary) as hand:
        expected = hand.run("-v").stdout
        hand.program = hand.folder / SHIM
        for length in sorted(lengths):
            hand.program.unlink(missing_ok=True)
            hand.program.write_bytes(content[:length])
            hand.program.chmod(0o755)
            try:
                done = hand.run("-v")
            except OSError as error:
                if error.errno not in (errno.ENOEXEC, errno.EINVAL, errno.EIO):
                    raise
                tally["refused by the kernel"] += 1
                continue
            tally[_judge(done, expected)] += 1
    return tally


def _judge(done: subprocess.CompletedProcess[bytes], expected: bytes) -> str:
    if done.returncode == 0:
        assert (expected, b"") == (done.stdout, done.stderr), done
        return "working"
    assert b"" == done.stdout, done
    if done.returncode < 0:
        assert -done.returncode in (signal.SIGBUS, signal.SIGSEGV, signal.SIGKILL), done
        assert b"" == done.stderr, done
        return "killed by the kernel"
    assert _is_line(done.stderr.decode()), done
    return "one clear error"


def _is_line(text: str) -> bool:
    return 10 < len(text) < _LINE and "\n" not in text.rstrip("\n")


def little_memory(binary: Path, count: int) -> Tally:
    """With address spaces from too small to large enough: what the kernel maps says why it goes no further."""
    tally: Tally = Counter()
    with scene(binary) as hand:
        for number in range(count):
            name, size = f"c{number}", (8 << 20) + (_ENOUGH - (8 << 20)) * number // (count - 1)
            done = finish(hand.popen_start(name, stdin=subprocess.DEVNULL, wrapper=["prlimit", f"--as={size}"]))
            if done.returncode:
                tally[_judge(done, b"")] += 1
            else:
                assert f"unix://{hand.socket_path(name)}".encode() == done.stdout, done
                client = hand.client(name)
                try:
                    client.connect()
                    client.shutdown()
                    tally["working"] += 1
                except ConnectionClosedError:  # the daemon found too little, and is gone
                    tally["gone, and said so"] += 1
            wait_until(lambda: not hand.processes(), "nothing is left of it")
            hand.socket_path(name).unlink(missing_ok=True)
            hand.forget(name)
    return tally


def all_of(binary: Path, count: int, crowd: int) -> Iterator[tuple[str, Tally, float]]:
    """Run every scenario; yield its name, its tally and how many seconds it took."""
    few = max(10, count // 20)
    scenarios: dict[str, Callable[[], Tally]] = {
        f"{count} starts": lambda: many(binary, count),
        f"{crowd} starts at once": lambda: at_once(binary, crowd),
        f"{crowd} starts at once, cold": lambda: cold(binary, crowd),
        "full temporary folder": lambda: bad_temporary_folder(binary, few, "size=64k"),
        "noexec temporary folder": lambda: bad_temporary_folder(binary, few, "noexec"),
        "binary that ends early": lambda: binary_damaged(binary, few),
        "little memory": lambda: little_memory(binary, few),
        "binary replaced mid-run": lambda: binary_replaced(binary, few),
    }
    for name, run in scenarios.items():
        began = time.monotonic()
        yield name, run(), time.monotonic() - began
