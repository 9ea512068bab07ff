"""What tests of shim.testing share: a daemon that is there, and a shim that says what it is told."""

from pathlib import Path

import pytest

from tests.testing import answering
from tests.testing.answering import Answering

abstract = answering.abstract
address = answering.address


@pytest.fixture
def shim(tmp_path: Path) -> Answering:
    """A shim that says what it is told."""
    return Answering(tmp_path / "shim")
