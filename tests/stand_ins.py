"""The modules that take the place of Python's own in the shims' binaries."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

SPEC: Final = Path(__file__).parents[1] / "build/spec"


def load(name: str) -> ModuleType:
    """Return the stand-in for a module, under its own name."""
    spec = importlib.util.spec_from_file_location(f"stand_in_{name}", SPEC / f"stand_in_{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where it may look for itself
    spec.loader.exec_module(module)
    return module
