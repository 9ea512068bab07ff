"""What every test shares: hypothesis settings, and the order of the run (unit tests first, then integration)."""

from pathlib import Path

import hypothesis
import pytest

INTEGRATION = Path(__file__).parent / "integration"

# No deadline per example: on a busy machine it measures the neighbours.
hypothesis.settings.register_profile("shim", deadline=None, print_blob=True)
hypothesis.settings.load_profile("shim")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put integration tests last, so that a broken unit is reported before what it breaks."""
    items.sort(key=lambda item: INTEGRATION in item.path.parents)
