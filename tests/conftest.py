"""What every test shares: hypothesis settings, the order of the run (unit tests first), and the makings of libc."""

from pathlib import Path

import hypothesis
import pytest

from tests.libc_builtin import compile_builtin
from tests.libc_calls import Calls, calls_of

INTEGRATION = Path(__file__).parent / "integration"

# No deadline per example: on a busy machine it measures the neighbours.
hypothesis.settings.register_profile("shim", deadline=None, print_blob=True)
hypothesis.settings.load_profile("shim")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put integration tests last, so that a broken unit is reported before what it breaks."""
    items.sort(key=lambda item: INTEGRATION in item.path.parents)


@pytest.fixture(scope="session")
def builtin_libc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the module is that frozen shims have built in."""
    return compile_builtin(tmp_path_factory.mktemp("libc"))


@pytest.fixture(scope="session", params=["builtin", "ctypes"])
def calls(request: pytest.FixtureRequest, builtin_libc: Path) -> Calls:
    """Each making of the libc calls."""
    return calls_of(request.param, builtin_libc)
