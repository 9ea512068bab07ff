"""The heap of a process that is to be forked: what is immortal, and where new and hot things lie.

Each in a process of its own, since what is done to a heap stays.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]

IMMORTAL: Final = """
class Thing:
    def act(self): return [str(self.number) for self.number in range(3)]
thing, text, pair = Thing(), "x" * 3000, (1.5, "y" * 3000)
def things(): return [thing, Thing, Thing.act, Thing.act.__code__, text, pair, pair[1]]
def counts(): return [sys.getrefcount(found) for found in things()]
made = heap.immortalize()
before = counts()
held = things() * 50
print(made > 10_000, before == counts() and set(before) == {sys.getrefcount(None)})
thing.act()
del held, thing, Thing, text, pair
gc.collect()
class Fresh: pass
fresh = [Fresh() for _ in range(9)]
print(sys.getrefcount(fresh[0]) < 5)
"""

HOLES: Final = """
def pools(size): return len({id(found) // 16384 for found in [bytes(size - 33) for _ in range(100)]})
def scatter(size):
    blocks = [bytes(size - 33) for _ in range(4_000_000 // size)]
    return [block for number, block in enumerate(blocks) if number % 16]
def fits(size): return pools(size) <= 2 + 100 * size // 16336
kept = [scatter(size) for size in (64, 240, 512)]
scattered = [not fits(size) for size in (64, 240, 512)]
heap.fill_holes()
print(scattered, [fits(size) for size in (64, 240, 512)])
"""

CHUNKS: Final = """
def fits(size):
    pages = {id(found) // 4096 for found in [bytes(size) for _ in range(60)]}
    return len(pages) <= 5 + 60 * (size + 64) // 4096
def scatter(size):
    blocks = [bytes(size) for _ in range(4000)]
    return [block for number, block in enumerate(blocks) if number % 8]
kept = [scatter(size) for size in (700, 1500, 3000)]
scattered = [not fits(size) for size in (700, 1500, 3000)]
heap.fill_holes()
print(scattered, [fits(size) for size in (700, 1500, 3000)])
"""

CODE: Final = """
for number in range(600):
    exec(f"def act{number}(value):\\n    total = value * {number}\\n    return [total, -total, str(total)]\\n")
hot = [globals()[f"act{number}"] for number in range(0, 600, 60)]
def run(): return [function(7) for function in hot for _ in range(20)]
def span():
    found = sorted(id(function.__code__) for function in hot)
    return found[-1] - found[0]
cold = [globals()[f"act{number}"] for number in range(1, 600, 60)]
[function(7) for function in cold for _ in range(20)]
states, was_at = heap.code_states(), [id(function.__code__) for function in cold]
said, before = run(), span()
heap.pack(states)
print(was_at == [id(function.__code__) for function in cold])
print(before > 100_000, span() < 16_384, run() == said, act1(3) == [3, -3, "3"])
"""

STATES: Final = """
for number in range(3000):
    exec(f"def act{number}(value):\\n    total = value * {number}\\n    return [total, -total, str(total)]\\n")
before = sys.getallocatedblocks()
heap.code_states()
print(sys.getallocatedblocks() - before < 1000)
"""

KEYS: Final = """
import threading
class Base:
    def __new__(cls): raise ValueError("made")
    def __del__(self): raise ValueError("ended")
class Ended:
    def __del__(self): print("ended")
Base.__module__ = Ended.__module__ = "shim.test"
heap.pack({})
print(threading.Event().is_set())
"""


def run(python: str, program: str) -> str:
    """Run a program that has the module `heap`, and return what it prints."""
    head = "import gc, sys\nfrom shim.host import heap\n"
    child = subprocess.run([python, "-c", head + program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "" == child.stderr
    return child.stdout


def has_immortals(python: str) -> bool:
    """Say whether this Python knows immortal objects."""
    said = subprocess.run(
        [python, "-c", "import sys; print(sys.version_info >= (3, 12))"], capture_output=True, check=True
    )
    return said.stdout == b"True\n"


def test_what_is_there_is_no_longer_counted(python: str) -> None:
    """Whatever refers to it; what is made later is counted and freed as ever.  Before 3.12 nothing is done."""
    immortal = has_immortals(python)

    assert f"{immortal} {immortal}\nTrue\n" == run(python, IMMORTAL)


def test_small_objects_lie_together_once_the_holes_are_filled(python: str) -> None:
    """In as few pools as they fill, though thousands of holes were there."""
    assert "[True, True, True] [True, True, True]\n" == run(python, HOLES)


def test_large_objects_lie_together_once_the_holes_are_filled(python: str) -> None:
    """On as few pages as they fill."""
    assert "[True, True, True] [True, True, True]\n" == run(python, CHUNKS)


def test_noting_the_states_of_code_keeps_no_copy_of_it(python: str) -> None:
    """As Python would, for whoever asks for it in the ordinary way."""
    assert "True\n" == run(python, STATES)


def test_code_that_has_run_lies_together_once_packed(python: str) -> None:
    """It does the same as before, and so does what has not run; what has run only before stays where it is."""
    assert "True\nTrue True True True\n" == run(python, CODE)


def test_packing_makes_no_instances_of_what_would_act(python: str) -> None:
    """Classes that make or end their instances themselves are left alone."""
    assert "False\n" == run(python, KEYS)
