"""What takes the place of Python's modules in the shims' own binaries: it means what they mean."""

from __future__ import annotations

import collections
import copy
import enum
import functools
import heapq
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.stand_ins import SPEC, load

NAMES: Final = st.lists(st.sampled_from(["a", "b", "long_name", "count", "index", "x1"]), unique=True)


def outcome(function: Callable[..., Any], *arguments: Any, **named: Any) -> object:
    """Return what a function returns, or how it fails, in words."""
    try:
        return function(*arguments, **named)
    except (TypeError, ValueError, KeyError) as error:
        return type(error)


@given(fields=NAMES, data=st.data())
def test_named_tuples_are_alike(fields: list[str], data: st.DataObject) -> None:
    """Made by position and by name, with as many defaults as there may be, changed, compared, shown and copied."""
    count = data.draw(st.integers(0, len(fields)))
    defaults = data.draw(st.lists(st.integers(), min_size=count, max_size=count))
    values = data.draw(st.lists(st.integers(), max_size=len(fields) + 1))
    named = data.draw(st.dictionaries(st.sampled_from([*fields, "other"]), st.integers(), max_size=2))
    made = [
        module.namedtuple("Made", fields, defaults=defaults, module="here")
        for module in (collections, load("collections"))
    ]

    real, ours = (outcome(kind, *values, **named) for kind in made)

    assert repr(real) == repr(ours)
    assert real == ours
    for attribute in ("_fields", "_field_defaults", "__match_args__", "__module__", "__name__", "__slots__"):
        assert getattr(made[0], attribute) == getattr(made[1], attribute)
    if isinstance(real, tuple):
        assert isinstance(ours, tuple)
        assert not hasattr(ours, "__dict__")
        changes = [found._replace for found in (real, ours)]  # type: ignore[attr-defined]
        assert outcome(changes[0], **named) == outcome(changes[1], **named)
        assert real._asdict() == ours._asdict()  # type: ignore[attr-defined]
        assert [getattr(real, name) for name in fields] == [getattr(ours, name) for name in fields]
        assert (ours, type(ours)) == (copy.copy(ours), type(copy.copy(ours)))
        assert hash(real) == hash(ours)
    assert outcome(made[0]._make, values) == outcome(made[1]._make, values)


def test_a_named_tuple_belongs_to_the_module_that_makes_it() -> None:
    """Without being told; field names may be one string."""
    made = load("collections").namedtuple("Made", "a, b")

    assert (__name__, ("a", "b")) == (made.__module__, made._fields)


@pytest.mark.parametrize("name", ["collections", "enum", "functools"])
def test_all_the_rest_is_the_real_modules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is loaded when somebody asks for it, but not because an import looks for packages."""
    stand_in = load(name)
    rest = {"collections": "ChainMap", "enum": "IntFlag", "functools": "lru_cache"}[name]
    assert not hasattr(stand_in, "__path__")
    with pytest.raises(ImportError):
        getattr(stand_in, rest)

    monkeypatch.setitem(sys.modules, f"whole_{name}", sys.modules[name])

    assert getattr(sys.modules[name], rest) is getattr(stand_in, rest)
    assert not hasattr(stand_in, "no_such_thing")


def enumerations(module: Any) -> tuple[Any, Any]:
    """Return two that a module makes: of strings, with a property and an alias, and of numbers."""

    class Text(module.Enum):  # type: ignore[misc]
        """Words."""

        ONE = "one"
        TWO = "two"
        UNO = "one"

        @property
        def loud(self) -> object:
            """A property is no member."""
            return self.value.upper()

    class Number(module.IntEnum):  # type: ignore[misc]
        """Numbers."""

        ZERO = 0
        FIVE = 5
        FIFTH = 5

    return Text, Number


def test_enumerations_are_alike() -> None:
    """By value, by name, in order, as text, as keys; an alias is the same member; numbers are numbers."""

    def describe(module: Any) -> list[object]:
        text, number = enumerations(module)
        described: list[object] = [len(text), len(number), text.ONE is text.UNO, number.FIVE is number["FIFTH"]]
        for kind in (text, number):
            for member in kind:
                described += [member.name, member.value, repr(member), str(member), f"{member}", member in kind]
                described += [kind(member.value) is member, kind[member.name] is member, isinstance(member, kind)]
        described += [text.ONE.loud, text.ONE == "one", text.ONE != text.TWO, {text.TWO: 1}[text("two")]]
        described += [number.FIVE == 5, number.FIVE + 1, number.FIVE < 6, f"{number.FIVE:03}", {5: 1}[number.FIVE]]
        described += [hash(number.FIVE), bool(number.ZERO), outcome(text, "three"), outcome(number, 7)]
        described += [
            outcome(text.__getitem__, "THREE"),
            dict(number.__members__),
            text.__doc__,
            isinstance(number.FIVE, int),
        ]
        return described

    assert describe(enum) == describe(load("enum"))


def test_an_enumeration_is_of_constants() -> None:
    """What the stand-in does not know it refuses."""
    module = load("enum")

    with pytest.raises(TypeError, match=r"Odd\.ONE: .* is no constant"):

        class Odd(module.Enum):  # type: ignore[misc,name-defined]
            """It would number itself."""

            ONE = enum.auto()


def test_an_unknown_value_is_named() -> None:
    """In the words of the real one."""
    text, _ = enumerations(load("enum"))

    with pytest.raises(ValueError, match=r"^'three' is not a valid enumerations\.<locals>\.Text$"):
        text("three")


def test_a_wrapper_looks_like_what_it_wraps() -> None:
    """As the real one makes it."""

    def make(module: Any) -> list[object]:
        def inner(value: int) -> int:
            """The inner one."""
            return value

        inner.mark = 1  # type: ignore[attr-defined]

        @module.wraps(inner)  # type: ignore[untyped-decorator]
        def outer(value: int) -> int:
            return inner(value) + 1

        names = ("__name__", "__doc__", "__module__", "__annotations__", "mark")
        return [outer.__wrapped__ is inner, outer(1), *(getattr(outer, name) for name in names)]

    assert make(functools) == make(load("functools"))


def test_other_modules_find_what_they_need_of_them() -> None:
    """Those of Python that a shim loads now and then, with all stand-ins in their places."""
    program = f"""
import os, sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import SourceFileLoader
library = os.path.dirname(os.__file__)
files = {{name: "{SPEC}/stand_in_" + name + ".py" for name in ("collections", "enum", "functools", "heapq", "signal")}}
files |= {{"whole_" + name: library + "/" + name + ".py" for name in ("enum", "functools")}}
files["whole_collections"] = library + "/collections/__init__.py"
assert not files.keys() & sys.modules.keys()
class Finder:
    def find_spec(name, path=None, target=None):
        return files.get(name) and ModuleSpec(name, SourceFileLoader(name, files[name]))
sys.meta_path.insert(0, Finder)
import ast, calendar, contextlib, ctypes, http, logging, re, string, threading, tomllib, traceback
assert re.search("(?P<all>A+)", "baa", re.IGNORECASE).groupdict() == {{"all": "aa"}}
assert string.Template("$a").substitute(a=1) == "1"
assert tomllib.loads("a = 1979-05-27T07:32:00Z")["a"].year == 1979
assert threading.Event().wait(0) is False
assert http.HTTPStatus(404).phrase == "Not Found" and calendar.monthrange(2024, 2)[1] == 29
with contextlib.suppress(ValueError), contextlib.ExitStack():
    raise ValueError
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("x").exception("said")
"""
    child = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False, timeout=20
    )

    assert "" == child.stderr
    assert child.stdout.startswith("ERROR said\nTraceback")


@given(values=st.lists(st.integers()))
def test_heaps_are_the_same(values: list[int]) -> None:
    """Both are the one in C."""
    stand_in = load("heapq")
    heap: list[int] = []
    for value in values:
        stand_in.heappush(heap, value)

    assert sorted(values) == [heapq.heappop(heap) for _ in values]


def test_signals_are_numbers() -> None:
    """All that there are, with what acts on them."""
    stand_in = load("signal")
    names = [name for name in dir(signal) if name.startswith("SIG")]

    assert len(names) > 30
    for name in names:
        assert int(getattr(signal, name)) == getattr(stand_in, name)
    assert signal.getsignal(signal.SIGTERM) == stand_in.getsignal(stand_in.SIGTERM)
    assert signal.valid_signals() == stand_in.valid_signals()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == stand_in.pthread_sigmask(stand_in.SIG_BLOCK, ())
