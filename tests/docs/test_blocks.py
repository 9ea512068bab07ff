"""Every code block of README.md and docs/*.md is run by a test: RUN_BY says by which one, and has to know them all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.docs.blocks import PAGES, Block, blocks
from tests.fakes import ROOT

TTRPC: Final = "tests/examples/test_readme.py"
README: Final = "tests/integration/test_readme.py"
GUIDE: Final = "tests/docs/test_guide.py"
GUIDE_AS_ROOT: Final = "tests/integration/test_guide.py"

# Page and heading -> languages of the blocks there, and the tests that run them.
RUN_BY: Final[Mapping[tuple[str, str], tuple[str, str]]] = {
    ("README.md", "Try it"): ("sh sh", README),
    ("README.md", "Install the shim"): ("sh sh toml toml", README),
    ("README.md", "Configure it"): ("toml", "tests/docs/test_readme_configuration.py"),
    ("README.md", "Compare it with Go's shim"): ("sh", README),
    ("README.md", "Code from a .proto file"): ("proto console", TTRPC),
    ("README.md", "A server"): ("python", TTRPC),
    ("README.md", "A client"): ("python console console", TTRPC),
    ("README.md", "With asyncio"): ("python python console", TTRPC),
    ("README.md", "Write a shim"): ("sh", GUIDE_AS_ROOT),
    ("README.md", "Test and measure ttrpc"): ("console", "tests/docs/test_readme_commands.py"),
    ("docs/bench.md", "Other runs"): ("sh", "tests/testing/test_bench.py"),
    ("docs/guide.md", "A whole shim"): ("python", GUIDE_AS_ROOT),
    ("docs/guide.md", "By hand"): ("console console", GUIDE_AS_ROOT),
    ("docs/guide.md", "Under containerd"): ("sh sh", GUIDE_AS_ROOT),
    ("docs/guide.md", "As one file"): ("sh", GUIDE_AS_ROOT),
    ("docs/guide.md", "Three processes"): ("python", GUIDE_AS_ROOT),
    ("docs/guide.md", "Grouping"): ("python", GUIDE),
    ("docs/guide.md", "Events, log and description"): ("python text", GUIDE_AS_ROOT),
    ("docs/guide.md", "Processes"): ("python", GUIDE_AS_ROOT),
    ("docs/guide.md", "Mounts and cgroups"): ("python", GUIDE_AS_ROOT),
    ("docs/guide.md", "Pod sandboxes"): ("python", GUIDE),
    ("docs/guide.md", "asyncio"): ("python", GUIDE_AS_ROOT),
    ("docs/guide.md", "Change pyrunc instead"): ("python", GUIDE_AS_ROOT),
}
# Pages whose blocks have a test of their own that knows each of them.
OWN_TESTS: Final = {"docs/testing.md": "tests/testing/test_docs.py"}


def of_all_pages() -> list[Block]:
    """Return the blocks of all pages without a test of their own."""
    return [block for page in PAGES if page not in OWN_TESTS for block in blocks(page)]


def test_every_block_is_run_by_a_test() -> None:
    """None is new here, and none is gone."""
    found: dict[tuple[str, str], list[str]] = {}
    for block in of_all_pages():
        found.setdefault((block.page, block.heading), []).append(block.language)

    assert {place: languages for place, (languages, _) in RUN_BY.items()} == {
        place: " ".join(languages) for place, languages in found.items()
    }


@pytest.mark.parametrize(
    ("block", "test"),
    [
        pytest.param(block, RUN_BY.get((block.page, block.heading), ("", ""))[1], id=block.name or f"{number}")
        for number, block in enumerate(blocks("docs/guide.md"))
    ],
)
def test_the_tests_of_the_guide_name_what_they_run(block: Block, test: str) -> None:
    """By its file or, where it is none, by its heading."""
    source = (ROOT / test).read_text()

    assert repr(block.name or block.heading).replace("'", '"') in source or Path(block.name).stem in source


@pytest.mark.parametrize("page", PAGES)
def test_fences_come_in_pairs(page: str) -> None:
    """And each says its language, so that no block is overlooked."""
    lines = [line for line in (ROOT / page).read_text().splitlines() if line.lstrip().startswith("```")]

    assert len(blocks(page)) * 2 == len(lines)
    assert all(block.language for block in blocks(page))
