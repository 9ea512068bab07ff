"""The checks that a frozen interpreter runs on itself: a name and a function each, kept in order.

Rule: a check calls `expect`, since what is frozen has no assert statements; what it asks of modules it imports itself,
so that the image holds no more than this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

CHECKS: Final[dict[str, Callable[[], None]]] = {}


def check(function: Callable[[], None]) -> Callable[[], None]:
    """Keep a function as a check, by its name."""
    CHECKS[function.__name__] = function
    return function


def expect(condition: object, found: object = None) -> None:
    """Fail the check if the condition does not hold, and show what was found instead."""
    if not condition:
        raise AssertionError(repr(found))


def raised(kind: type[BaseException], function: Callable[..., object], *args: object) -> BaseException:
    """Return the exception that a call has to end with."""
    try:
        function(*args)
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")
