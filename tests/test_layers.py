"""Who may import whom, as the ast of every module in shim/ tells it; and the shape of module heads.

Rule: a room imports only rooms to its left in MAY_IMPORT, and a new room has to be added there.
Imports inside functions and under TYPE_CHECKING count like any other.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent


def _find_modules(folder: str) -> dict[str, Path]:
    paths = {path.relative_to(ROOT).with_suffix(""): path for path in sorted((ROOT / folder).rglob("*.py"))}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}


MODULES: Final = _find_modules("shim")
HAND_WRITTEN: Final = [
    path
    for path in [*MODULES.values(), *_find_modules("tests").values()]
    if not path.match("shim/api/*_pb2.py") and not path.match("*_ttrpc.py")
]

_CORE_NAMES: Final = (
    "_client_connection",
    "_envelope",
    "_events",
    "_frame",
    "_inbox",
    "_mux",
    "_server_connection",
    "_streams",
    "status",
    "wire",
)
CORE: Final = {f"shim.ttrpc.{name}" for name in _CORE_NAMES}
PURE: Final = CORE | {"shim.runtime.flags", "shim.runtime.bootstrap", "shim.engine.task"}

TTRPC: Final = {"core", "ttrpc", "ttrpc.sync", "ttrpc.aio", "ttrpc.__init__"}
FLOOR: Final = TTRPC | {"errors", "api", "host"}
ALL: Final = FLOOR | {"runtime", "engine", "testing", "cli", "shim", "aio"}
MAY_IMPORT: Final[Mapping[str, set[str]]] = {
    "core": {"core"},
    "ttrpc": {"core", "ttrpc"},
    "ttrpc.sync": {"core", "ttrpc", "ttrpc.sync"},
    "ttrpc.aio": {"core", "ttrpc", "ttrpc.aio"},
    "ttrpc.__init__": TTRPC,
    "errors": TTRPC | {"errors"},
    "api": TTRPC | {"api"},
    "host": {"errors", "host"},
    "runtime": FLOOR | {"runtime"},
    "engine": FLOOR | {"runtime", "engine"},
    "shim": FLOOR | {"runtime", "engine"},  # the public surface: shim/__init__.py and shim/aio.py
    "aio": FLOOR | {"runtime", "engine"},
    "testing": ALL - {"cli"},
    "cli": ALL,
}

TRANSPORTS: Final = {
    "ttrpc.sync": {"sync", "link", "outbox", "server"},
    "ttrpc.aio": {"aio", "aio_client", "aio_link", "aio_server", "aio_waiting"},
}

# What a frozen daemon does without, as it has libc's twin built in.
CTYPES: Final = {"shim.host.libc_ctypes", "shim.host.heap"}
NO_SYSTEM: Final = {"os", "posix", "select", "selectors", "socket", "_socket", "subprocess", "threading", "time"}
NO_DAEMON: Final = {"asyncio", "click", "concurrent.futures", "logging.handlers", "platformdirs", "ssl", "subprocess"}


def _room(name: str) -> str:
    """Return the room of a module, or of a name in it."""
    _, *inner = name.split(".")
    module = ".".join(["shim", *inner[:2]])
    if inner[:1] != ["ttrpc"]:
        return inner[0] if inner and inner[0] in MAY_IMPORT else "shim"
    for transport, names in TRANSPORTS.items():
        if inner[1:2] and inner[1] in names:
            return transport
    return "core" if module in CORE else "ttrpc" if module in MODULES.keys() - {"shim.ttrpc"} else "ttrpc.__init__"


def _imports(module: str, tree: ast.AST) -> Iterator[str]:
    """Yield the full dotted name of everything imported, down to the attribute."""
    package = module if MODULES.get(module, Path()).name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            yield from (".".join(filter(None, [*above, node.module, alias.name])) for alias in node.names)


def _forbidden(module: str) -> set[str]:
    room, name = _room(module), module.rpartition(".")[2]
    banned = set() if room == "cli" else {"click", "platformdirs"}
    banned |= set() if room == "host" else {"sys.platform"}
    banned |= set() if module in CTYPES else {"ctypes", "_ctypes"}
    banned |= set() if module == "shim.host.libc" else {"shim.host.libc_ctypes"}
    banned |= NO_SYSTEM if module in PURE else set()
    banned |= NO_DAEMON if room not in {"testing", "cli"} else set()
    return (
        banned
        - ({"asyncio"} if name in TRANSPORTS["ttrpc.aio"] or name.startswith("aio_") else set())
        - ({"logging"} if name == "log_handler" else set())
        - ({"platformdirs"} if room == "testing" else set())
    )


def _is_allowed(module: str, name: str) -> bool:
    if any(f"{name}.".startswith(f"{banned}.") for banned in _forbidden(module)):
        return False
    return name.partition(".")[0] != "shim" or _room(name) in MAY_IMPORT[_room(module)] or name == "shim.__version__"


def find_violations(module: str, source: str) -> list[str]:
    """Return what a module imports, or reads of the platform, against the rules."""
    tree = ast.parse(source)
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return [name for name in [*_imports(module, tree), *attributes & {"sys.platform"}] if not _is_allowed(module, name)]


@pytest.mark.parametrize("module", MODULES)
def test_imports_of_a_module_point_left(module: str) -> None:
    """No module imports a room to its right, or what its room may not load."""
    assert module == "shim" or module.split(".")[1] in {*MAY_IMPORT, "ttrpc"}, "a room that the table does not know"

    assert [] == find_violations(module, MODULES[module].read_text())


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("shim.errors", "from shim.ttrpc.status import Code", []),
        ("shim.host.libc_ctypes", "import ctypes, sys\nsys.platform", []),
        ("shim.host.libc", "from shim.host.libc_ctypes import mount", []),
        ("shim.host.libc", "def f(): import ctypes", ["ctypes"]),
        ("shim.host.process", "from shim.host import libc_ctypes", ["shim.host.libc_ctypes"]),
        ("shim.ttrpc.aio", "import asyncio", []),
        ("shim.testing.releases", "def f(): import platformdirs", []),
        ("shim.ttrpc.status", "import time", ["time"]),
        ("shim.ttrpc.aio", "from . import sync", ["shim.ttrpc.sync"]),
        ("shim.ttrpc.service", "from ..errors import ShimError", ["shim.errors.ShimError"]),
        ("shim.host.mount", "from shim.runtime import address", ["shim.runtime.address"]),
        ("shim.runtime.main", "from shim.engine import service", ["shim.engine.service"]),
        ("shim.runtime.main", "from shim import __version__, run", ["shim.run"]),
        ("shim.engine.task", "from os.path import join", ["os.path.join"]),
        ("shim.engine.runc", "def f(): import subprocess", ["subprocess"]),
        ("shim.engine.runc", "from concurrent import futures", ["concurrent.futures"]),
        ("shim.runtime.logger", "import logging.handlers", ["logging.handlers"]),
        ("shim.runtime.daemon", "import sys\nif sys.platform == 'linux': pass", ["sys.platform"]),
        ("shim.testing.demo", "import shim.cli", ["shim.cli"]),
    ],
)
def test_imports_against_the_rules_are_found(module: str, source: str, expected: list[str]) -> None:
    """The reader of imports sees plain, relative and hidden ones."""
    found = find_violations(module, source)

    assert expected == found


@pytest.mark.parametrize("path", HAND_WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_and_stays_short(path: Path) -> None:
    """A hand-written module opens with a docstring of 1 to 12 lines and ends before line 500."""
    source = path.read_text()
    head = ast.get_docstring(ast.parse(source)) or ""

    assert 1 <= len(head.splitlines()) <= 12
    assert source.count("\n") <= 500
