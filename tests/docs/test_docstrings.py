"""Everything public says what it is: classes, functions, methods and properties of the modules with a page.

Public is what `__all__` names, else what a module defines without a leading underscore.  Messages are left out: what
they hold is all there is to say.  The docstrings of generated services are the comments of their .proto files.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Final, NamedTuple

import pytest
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

from tests.fakes import ROOT

# As docs/reference.py has them, and the modules of a package that re-exports nothing.
PACKAGES: Final = ("shim.testing",)


def documented() -> list[str]:
    """Return the modules that docs/reference.py makes pages of; it cannot be imported without pdoc."""
    tree = ast.parse((ROOT / "docs/reference.py").read_text())
    (listed,) = [
        node.value for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "MODULES"
    ]
    assert listed is not None
    named = [str(name) for name in ast.literal_eval(listed)]
    inner = [
        f"{package}.{path.stem}" for package in PACKAGES for path in (ROOT / package.replace(".", "/")).glob("*.py")
    ]
    return sorted([*named, *(name for name in inner if not name.endswith("__init__"))])


def public_names(module: ModuleType) -> list[str]:
    """Return the public names of a module."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]


def is_generated(value: object) -> bool:
    """Say whether protobuf made it."""
    return isinstance(value, EnumTypeWrapper) or (isinstance(value, type) and issubclass(value, Message))


def lacking(name: str, value: object) -> Iterator[str]:
    """Yield the name of a class or function if it has no docstring of its own, and those of its public members."""
    if is_generated(value) or not (inspect.isroutine(value) or isinstance(value, type | ModuleType)):
        return  # a constant or a type: what it is stands beside it in the source
    fields = ", ".join(getattr(value, "_fields", ()))
    if not value.__doc__ or value.__doc__ == f"{name.rpartition('.')[2]}({fields})":  # a named tuple's is made up
        yield name
    if not isinstance(value, type):
        return
    for part, member in ((part, member) for owner in value.__mro__ for part, member in vars(owner).items()):
        function = getattr(member, "__func__", member.fget if isinstance(member, property) else member)
        home = getattr(function, "__module__", "")
        if not part.startswith("_") and inspect.isfunction(function) and str(home).startswith("shim"):
            if not function.__doc__:
                yield f"{name}.{part}"


@pytest.mark.parametrize("module", documented())
def test_public_names_have_docstrings(module: str) -> None:
    """None is missing, down to methods and properties; those that are inherited count with their class."""
    loaded = importlib.import_module(module)
    missing = [
        name for public in public_names(loaded) for name in lacking(f"{module}.{public}", getattr(loaded, public))
    ]

    assert loaded.__doc__
    assert [] == missing


class _Pair(NamedTuple):
    first: int
    second: int


class _Bare:
    def method(self) -> None:
        return

    @property
    def value(self) -> int:
        return 1

    @classmethod
    def make(cls) -> None:
        """Say something."""


def test_missing_docstrings_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class, its method and its property are named; what has one is not, nor what protobuf made."""
    for function in (_Bare.method, vars(_Bare)["value"].fget, vars(_Bare)["make"].__func__):
        monkeypatch.setattr(function, "__module__", "shim.bare")

    assert ["bare", "bare.method", "bare.value"] == list(lacking("bare", _Bare))
    assert ["_Pair"] == list(lacking("_Pair", _Pair))
    assert [] == list(lacking("message", importlib.import_module("shim.api").ConnectRequest))
