"""What fuzzing starts from and what it has found, run again; and a taste of the random engine."""

from pathlib import Path
from typing import Final

import pytest

from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import TARGETS, legal_sequence, server

CORPUS: Final = Path(__file__).parent / "corpus"
FILES: Final = sorted(CORPUS.glob("*/*"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_input_of_the_corpus_breaks_no_promise(path: Path) -> None:
    """Nor does any beginning of it, nor the same with another way to cut it."""
    target = TARGETS[path.parent.name]
    wire = path.read_bytes()
    target(wire)
    for at in range(0, len(wire), 1 + len(wire) // 40):
        target(wire[:at])
    for pace in (1, 9, 11):
        target(bytes((pace,)) + wire[1:])


def test_the_corpus_is_small_and_belongs_to_targets() -> None:
    """It is read at each run of the tests."""
    assert set(TARGETS) == {path.parent.name for path in FILES}
    assert sum(path.stat().st_size for path in FILES) < 100_000


@pytest.mark.parametrize("name", TARGETS)
def test_random_inputs_break_no_promise(name: str) -> None:
    """A few hundred each time; `python -m tests.fuzz` makes millions."""
    mutator = Mutator(4711, [path.read_bytes() for path in FILES if path.parent.name == name])
    for _ in range(200):
        TARGETS[name](mutator.make())


def test_a_seed_decides_every_input() -> None:
    """So a failure can be seen again."""
    first, second, other = (
        [maker.make() for _ in range(50)] for maker in (Mutator(number, [b"seed"]) for number in (1, 1, 2))
    )

    assert first == second
    assert first != other


def test_legal_sequences_are_calls_and_streams() -> None:
    """They get further into the server than damage does."""
    wire = legal_sequence(bytes(range(12)))
    server(wire)

    assert 9 == wire.count(b"a.B")
