"""The names that shim authors import: they are there, under one list, and cost what they use."""

import ast
import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import shim
import shim.aio
import shim.api
from tests.fakes import ROOT

LAZY = {"shim": shim, "shim.api": shim.api}


def typed_imports(module: ModuleType) -> dict[str, str]:
    """Return what a module imports for type checkers alone: each name and where it is from."""
    assert module.__file__ is not None
    with open(module.__file__) as file:
        tree = ast.parse(file.read())
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}


@pytest.mark.parametrize("module", [*LAZY.values(), shim.aio], ids=lambda module: module.__name__)
def test_every_public_name_resolves(module: ModuleType) -> None:
    """To what it says; the list is sorted and has each name once."""
    names: list[str] = module.__all__

    assert sorted(set(names)) == names
    for name in names:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("name", LAZY)
def test_lists_homes_and_type_checkers_agree(name: str) -> None:
    """What one of them has, all have, from the same module."""
    module = LAZY[name]

    assert typed_imports(module) == module._HOMES
    assert sorted({*module._HOMES, *(["__version__"] if name == "shim" else [])}) == module.__all__


@pytest.mark.parametrize("name", LAZY)
def test_each_name_is_its_homes(name: str) -> None:
    """No copy, and none that another name hides."""
    for each, home in LAZY[name]._HOMES.items():
        source = importlib.import_module(home)
        value = getattr(source, each) if hasattr(source, each) else importlib.import_module(f"{home}.{each}")

        assert getattr(LAZY[name], each) is value


@pytest.mark.parametrize("name", LAZY)
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'Nonsense'"):
        LAZY[name].Nonsense  # noqa: B018


def test_messages_have_bare_names_of_task_v3() -> None:
    """Which serves v2 as well."""
    assert "containerd.task.v3.ConnectResponse" == shim.api.ConnectResponse.DESCRIPTOR.full_name
    assert "containerd.events.TaskExit" == shim.api.TaskExit.DESCRIPTOR.full_name


@pytest.mark.parametrize(
    ("program", "forbidden"),
    [
        ("import shim.ttrpc", ("shim.runtime", "shim.engine", "shim.host", "shim.api", "shim.errors")),
        ("import shim.ttrpc.aio", ("shim.runtime", "shim.engine", "shim.host", "shim.api", "shim.errors")),
        ("import shim", ("shim.", "google")),
        ("import shim.api", ("shim.runtime", "shim.engine", "shim.ttrpc", "google")),
        (
            "from shim import Shim, Task, run",
            ("asyncio", "logging", "dataclasses", "inspect", "shim.engine", "shim.aio"),
        ),
        ("import shim; shim.Shim; shim.spawn; shim.Deleted; shim.run", ("google", "shim.api", "shim.runtime.serve")),
        ("from shim.api import TaskOOM", ("shim.runtime", "shim.api.task_v3_pb2", "shim.api.sandbox_pb2")),
    ],
)
def test_an_import_costs_what_it_uses(program: str, forbidden: tuple[str, ...]) -> None:
    """In a fresh interpreter."""
    command = [sys.executable, "-c", f"import sys\n{program}\nprint(*sys.modules)"]
    child = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)

    assert [] == [name for name in child.stdout.split() if name.startswith(forbidden)]
