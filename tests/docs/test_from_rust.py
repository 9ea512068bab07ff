"""What docs/from-rust.md calls by a name of ours is there."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from typing import Any, Final

import pytest

import shim
from shim.engine.runc import Runc
from tests.fakes import ROOT

# Names of Python, of protobuf and of values in an expression.
FOREIGN: Final = frozenset(
    "OSError KeyError ValueError DecodeError TRACEPARENT pty tty termios.tcsetwinsize asyncio.to_thread pathlib.Path "
    "contextlib.ExitStack message.SerializeToString value try finally with from logging start address loop ps "
    "-debug -info Async".split()
)
# Where a bare name may live besides `shim` itself.
HOMES: Final = (
    "shim",
    "shim.api.events_service_ttrpc",
    "shim.api.task_v3_ttrpc",
    "shim.engine.runc",
    "shim.runtime.monitor",
    "shim.runtime.publisher",
)
# Whose methods and fields the tables name alone.
CLASSES: Final = (
    shim.ExitSignal,
    shim.RemotePublisher,
    shim.Shim,
    shim.StartOpts,
    shim.Subscription,
    shim.log_driver.Config,
    shim.mount.Mount,
    Runc,
)


def names() -> list[str]:
    """Return each name in the second column of the tables, without arguments; of an expression its parts."""
    found: set[str] = set()
    for row in (ROOT / "docs/from-rust.md").read_text().splitlines():
        if row.startswith("| ") and not row.startswith("| Rust"):
            for code in re.findall(r"`([^`]+)`", row.split(" | ", 1)[1]):
                found.update(re.findall(r"(?<![\w.\"'])[A-Za-z_][\w.]*(?=\()|^[\w.-]+", code))
    return sorted(found - FOREIGN)


def instance_attributes(kind: type) -> set[str]:
    """Return what the methods of a class set on it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}


def resolve(name: str, root: Any) -> bool:
    """Say whether a dotted name leads somewhere from `root`."""
    first, _, rest = name.partition(".")
    if isinstance(root, type) and not rest and first in instance_attributes(root):
        return True
    try:
        value = getattr(root, first)
    except AttributeError:
        return False
    return not rest or resolve(rest, value)


def is_ours(name: str) -> bool:
    """Say whether a name is a module of this project, or is in one, or in one of CLASSES."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1) if parts[0] == "shim" else ():
        try:
            module = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        return count == len(parts) or resolve(".".join(parts[count:]), module)
    roots = [*CLASSES, *(importlib.import_module(home) for home in HOMES)]
    return any(resolve(name, root) for root in roots)


@pytest.mark.parametrize("name", names())
def test_each_name_is_there(name: str) -> None:
    """As a module, a class, a function, or something of one of them."""
    assert is_ours(name)


@pytest.mark.parametrize("name", ["shim.nothing", "Shim.nothing", "Nothing", "shim.runtime.nothing.Name"])
def test_names_that_are_not_there_are_found(name: str) -> None:
    """The look-up can fail."""
    assert not is_ours(name)
