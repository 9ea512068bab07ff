"""Builds the contender in go/ into .work/bench-ttrpc/, as the interop tests build their peer in Go."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from tests.interop import build
from tests.interop.build import BuildError

_HERE: Final = Path(__file__).resolve().parent
_WORK: Final = _HERE.parents[1] / ".work" / "bench-ttrpc"


def go_program() -> Path:
    """Return the program in Go, built if need be.

    Raises:
        BuildError: There is no Go here, or it fails; the text, one line, says why.
    """
    if shutil.which("go") is None:
        raise BuildError("no go on this machine")
    try:
        return build.go_program(_HERE / "go", _WORK, "go-bench")
    except BuildError as error:
        raise BuildError(str(error).strip().splitlines()[-1]) from None
