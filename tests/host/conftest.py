"""The Pythons that tests of the heap run under."""

import sys

import pytest


@pytest.fixture(params=sorted({sys.executable}))
def python(request: pytest.FixtureRequest) -> str:
    """Each Python that can freeze a shim here."""
    assert isinstance(request.param, str)
    return request.param
