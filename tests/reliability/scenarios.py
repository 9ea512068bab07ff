"""What can go wrong around launches, done on purpose: each scenario makes many starts and counts what came of them.

Rule: a start gives one working shim, or one clear error and no shim; and when all is over, nothing is left behind.
A scenario returns its tally and raises AssertionError where the rule is broken.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from shim.runtime.zygote_protocol import FOLDER_VARIABLE
from shim.testing.leftovers import processes, read_process
from tests.integration.byhand import Hand, finish, warm
from tests.integration.client import wait_until
from tests.integration.conftest import SHIM
from tests.integration.paths import launch_path, zygote_pid

# Of the fast path, when who has the order is killed: as if `start` itself had been.
BROKEN: Final = "containerd-shim: the process that did the work ended without a word\n"
_BATCH: Final = 20
_AT_ONCE: Final = 4

Tally = Counter[str]


@contextlib.contextmanager
def scene(binary: Path) -> Iterator[tuple[Hand, Path]]:
    """Give a hand and the folder of its zygotes; afterwards nothing may be left, of starts, daemons, zygotes, files."""
    with launch_path("zygote") as zygotes:
        hand = Hand(binary)
        try:
            yield hand, zygotes
        finally:
            left = hand.close()
        assert [] == left
    # One that was warming up when its folder went sees that when it is done.
    wait_until(lambda: not family(zygotes), "no zygote is left")
    assert not zygotes.exists()


def family(folder: Path) -> list[int]:
    """Return the pids of the zygotes of a folder and of their spares."""
    return [each.pid for each in processes() if each.arguments[1:2] == ("zygote",) and str(folder) in each.arguments[2]]


def kill_unless_busy(pid: int) -> bool:
    """Kill a zygote or spare, and say so; but let a spare live that has become a daemon: that one must not die.

    It is stopped first, so that it cannot become one between the look and the kill.
    """
    try:
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: (process := read_process(pid)) is None or process.state == "T", "it is stopped")
        process = read_process(pid)
        is_busy = process is not None and process.arguments[1:2] != ("zygote",)
        os.kill(pid, signal.SIGCONT if is_busy else signal.SIGKILL)
    except ProcessLookupError:
        return False
    return not is_busy


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


def killed_at_random(binary: Path, count: int, seed: int) -> Tally:
    """The zygote and its spare are killed again and again, at any moment, while starts go on."""
    tally: Tally = Counter()
    chance = random.Random(seed)  # noqa: S311  (of when to kill)
    is_over = threading.Event()

    def kill(zygotes: Path) -> None:
        while not is_over.wait(chance.uniform(0, 0.12)):
            for pid in chance.sample(pids := family(zygotes), min(len(pids), chance.choice((1, 2)))):
                tally["kills"] += kill_unless_busy(pid)

    with scene(binary) as (hand, zygotes):
        killer = threading.Thread(target=kill, args=(zygotes,))
        killer.start()
        try:
            batches(hand, count, tally, lambda text: text == BROKEN)
        finally:
            is_over.set()
            killer.join()
        # A spare that was killed together with its zygote cannot remove the socket; the next start replaces it.
        assert len(list(zygotes.iterdir())) <= 1
    return tally


def cold_at_once(binary: Path, count: int) -> Tally:
    """All of them before there is a zygote; in the end there is one."""
    tally: Tally = Counter()
    with scene(binary) as (hand, zygotes):
        start_batch(hand, [f"c{number}" for number in range(count)], count, tally, lambda text: False)
        wait_until(lambda: len({zygote_pid(path) for path in zygotes.iterdir()}) == 1, "one zygote")
        wait_until(lambda: len(family(zygotes)) == 2, "one zygote and one spare")
    return tally


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Put a file system of one's own on a folder."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "zygote-test", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def bad_temporary_folder(binary: Path, count: int, options: str, *, is_warm: bool) -> Tally:
    """Nothing can be unpacked: who has to says so in PyInstaller's words, the others need no folder at all."""
    tally: Tally = Counter()
    with scene(binary) as (hand, zygotes):
        if is_warm:
            warm(binary, zygotes)
        with mounted(hand.tmp, options):
            batches(hand, count, tally, lambda text: not is_warm and "PYI-" in text)
            # PyInstaller's bootloader leaves what it could not finish, which is not ours to change.
            left = [path for path in hand.tmp.iterdir() if is_warm or not path.name.startswith("_MEI")]
            assert [] == left, left
    return tally


def read_only_folder(binary: Path, count: int) -> Tally:
    """There can be no zygote, and nobody misses it."""
    tally: Tally = Counter()
    with scene(binary) as (hand, zygotes), mounted(zygotes, "mode=0700,ro"):
        batches(hand, count, tally, lambda text: False)
        assert [] == family(zygotes)
    return tally


def hostile_socket(binary: Path, count: int, answer: bytes | None, *, may_fail: bool = False) -> Tally:
    """Somebody of our own user listens in the zygote's place, and answers nonsense, or (None) nothing."""
    tally: Tally = Counter()
    with scene(binary) as (hand, zygotes):
        zygote = warm(binary, zygotes)
        (path,) = zygotes.iterdir()
        os.kill(zygote, signal.SIGKILL)
        wait_until(lambda: not family(zygotes), "the zygote has ended")
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(256)
            kept: list[socket.socket] = []
            server = threading.Thread(target=_answer_all, args=(listener, answer, kept))
            server.start()
            try:
                batches(hand, count, tally, lambda text: may_fail and text == BROKEN)
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                server.join()
                for connection in kept:
                    connection.close()
        path.unlink()
    return tally


def _answer_all(listener: socket.socket, answer: bytes | None, kept: list[socket.socket]) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            if answer is None:
                kept.append(connection)
                continue
            with connection, contextlib.suppress(OSError):
                connection.sendall(answer)


def hostile_folder(binary: Path, count: int) -> Tally:
    """The folder is another user's, or open to all: no zygote, no trouble."""
    tally: Tally = Counter()
    with scene(binary) as (hand, zygotes):
        for make in (lambda path: os.chown(path, 65534, 65534), lambda path: path.chmod(0o777)):
            path = zygotes / "z"
            path.mkdir()
            make(path)
            os.environ[FOLDER_VARIABLE] = str(path)
            batches(hand, count // 2, tally, lambda text: False)
            assert [] == family(zygotes)
            assert [] == list(path.iterdir())
            path.rmdir()
    return tally


def binary_replaced(binary: Path, count: int) -> Tally:
    """Upgrades while starts go on: each start is of the one or of the other, and old zygotes end."""
    tally: Tally = Counter()
    with scene(binary) as (hand, zygotes):
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
        wait_until(lambda: len(family(zygotes)) <= 2, "old zygotes end")
    return tally


def all_of(binary: Path, count: int, at_once: int, seed: int) -> Iterator[tuple[str, Tally, float]]:
    """Run every scenario; yield its name, its tally and how many seconds it took."""
    few = max(10, count // 20)
    scenarios: dict[str, Callable[[], Tally]] = {
        f"{count} starts, zygote killed at random": lambda: killed_at_random(binary, count, seed),
        f"{at_once} starts at once, cold": lambda: cold_at_once(binary, at_once),
        "full temporary folder, cold": lambda: bad_temporary_folder(binary, few, "size=64k", is_warm=False),
        "full temporary folder, warm": lambda: bad_temporary_folder(binary, few, "size=64k", is_warm=True),
        "noexec temporary folder, cold": lambda: bad_temporary_folder(binary, few, "noexec", is_warm=False),
        "noexec temporary folder, warm": lambda: bad_temporary_folder(binary, few, "noexec", is_warm=True),
        "read-only socket folder": lambda: read_only_folder(binary, few),
        "garbage in the zygote's place": lambda: hostile_socket(binary, few, b"\xffgarbage" * 99),
        "silence in the zygote's place": lambda: hostile_socket(binary, 10, None),
        "hostile socket folder": lambda: hostile_folder(binary, few),
        "binary replaced mid-run": lambda: binary_replaced(binary, few),
    }
    for name, run in scenarios.items():
        began = time.monotonic()
        yield name, run(), time.monotonic() - began
