"""containerd shims in Python.

Names are re-exported on first use (PEP 562), so that `import shim.ttrpc` loads no runtime.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.errors import ShimError
    from shim.runtime.main import run
    from shim.runtime.shim import Shim

__all__ = ["Shim", "ShimError", "__version__", "run"]

_HOMES = {"Shim": "shim.runtime.shim", "ShimError": "shim.errors", "run": "shim.runtime.main"}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value
