"""What `shim.testing` offers, and how little of it is loaded for whom."""

import os
import subprocess
import sys

import pytest

from shim import testing
from tests.fakes import ROOT
from tests.testing.docs import PAGE


@pytest.mark.parametrize("name", testing.__all__)
def test_every_name_is_there(name: str) -> None:
    """And told of by the page, where it is one that an author begins with."""
    assert getattr(testing, name) is getattr(testing, name)
    assert (f"`{name}`" in PAGE) == (
        name not in {"Endpoint", "Event", "Gate", "RuncCall", "RuncGate", "VerdictError", "Version", "wait_until"}
    )


def test_other_names_are_not_there() -> None:
    """As with any module."""
    with pytest.raises(AttributeError, match="has no attribute 'Mock'"):
        testing.Mock  # noqa: B018


def test_the_fake_runc_loads_next_to_nothing() -> None:
    """It is started for every call; json alone would double its time."""
    code = f"import sys; sys.path.append({os.fspath(ROOT)!r}); import shim.testing.runc_commands; print(*sys.modules)"
    done = subprocess.run([os.path.realpath(sys.executable), "-ISE", "-c", code], capture_output=True, text=True)
    loaded = set(done.stdout.split())

    assert "" == done.stderr
    assert not loaded & {"json", "re", "typing", "subprocess", "socket", "threading", "signal", "google"}
    assert {"shim", "shim.testing"} | {f"shim.testing.runc_{part}" for part in ("commands", "program", "state")} == {
        name for name in loaded if name.startswith("shim")
    }
