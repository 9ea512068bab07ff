"""The fenced blocks of README.md and docs/*.md, each with the heading that it stands under and the file that it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from tests.fakes import ROOT

_PARTS: Final = re.compile(
    r"^#+ (?P<heading>[^\n]*)\n|(?:^`(?P<name>[\w.]+)`:\n\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PAGES: Final = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))


class Block(NamedTuple):
    """One block; `name` is that of the file whose content it is, given in the line before it, or ''."""

    page: str
    heading: str
    language: str
    name: str
    text: str


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page, in order."""
    heading = ""
    found = []
    for part in _PARTS.finditer((ROOT / page).read_text()):
        if part["heading"] is not None:
            heading = part["heading"]
        else:
            found.append(Block(page, heading, part["language"], part["name"] or "", part["text"]))
    return found


def texts(page: str, heading: str, language: str) -> list[str]:
    """Return the texts of the blocks of one language under a heading; there has to be one."""
    found = [block.text for block in blocks(page) if (block.heading, block.language) == (heading, language)]
    assert found, f"{page} has no block of {language} under {heading!r}"
    return found


def write_files(page: str, folder: Path) -> None:
    """Write all files that a page gives."""
    for block in blocks(page):
        if block.name:
            (folder / block.name).write_text(block.text)
