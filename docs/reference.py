"""Writes the API reference, HTML by pdoc, to .work/docs:  python docs/reference.py [FOLDER]

Rule: every warning of pdoc's fails the build.  Names that are re-exported on first use are loaded before pdoc looks;
messages, of which protobuf tells nothing in Python's terms, are shown with their fields.
"""

from __future__ import annotations

import importlib
import sys
import typing
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pdoc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

from shim import __version__

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ROOT / ".work" / "docs"

# What is public, one page each, and where the methods of Task and Sandbox come from.
MODULES: Final = (
    "shim",
    "shim.aio",
    "shim.api",
    "shim.api.sandbox_ttrpc",
    "shim.api.task_v3_ttrpc",
    "shim.host.cgroup",
    "shim.host.mount",
    "shim.runtime.log_driver",
    "shim.runtime.topics",
    "shim.testing",
    "shim.ttrpc",
    "shim.ttrpc.aio",
)

_SCALARS: Final = {
    FieldDescriptor.CPPTYPE_BOOL: "bool",
    FieldDescriptor.CPPTYPE_DOUBLE: "float",
    FieldDescriptor.CPPTYPE_FLOAT: "float",
    FieldDescriptor.CPPTYPE_STRING: "str",
}


def main(arguments: list[str]) -> int:
    """Write all pages, and return the exit status."""
    folder = Path(arguments[0]) if arguments else FOLDER
    for name in MODULES:
        _load(importlib.import_module(name))
    _show_messages(importlib.import_module("shim.api"))
    pdoc.render.configure(docformat="google", footer_text=f"containerd-shim {__version__}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pdoc.pdoc(*MODULES, output_directory=folder)
    for warning in caught:
        print(f"docs: {warning.message}", file=sys.stderr)
    if caught:
        return 1
    print(f"{folder / 'shim.html'} and {len(list(folder.rglob('*.html'))) - 1} pages more")
    return 0


def _load(module: ModuleType) -> None:
    """Load the public names of a module, and resolve the types of named tuples, which hide where they are written."""
    for name in getattr(module, "__all__", vars(module).copy()):
        value = getattr(module, name)
        if isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_fields"):
            value.__new__.__annotations__ = typing.get_type_hints(value)


def _show_messages(api: ModuleType) -> None:
    """Put a class that tells what a message has in the place of each message and of each enumeration."""
    for name in api.__all__:
        value = getattr(api, name)
        if isinstance(value, EnumTypeWrapper):
            rows = [f"| `{key}` | {number} |" for key, number in value.items()]
            text = _table(f"The numbers of `{value.DESCRIPTOR.full_name}`.", "Name", "Number", rows)
        elif isinstance(value, type) and issubclass(value, Message):
            rows = [f"| `{field.name}` | `{_type_of(field)}` |" for field in value.DESCRIPTOR.fields]
            text = _table(f"The message `{value.DESCRIPTOR.full_name}`.", "Field", "Type", rows)
            value.__module__ = "shim.api"  # so the signatures of others link here
        else:
            continue
        setattr(api, name, type(name, (), {"__doc__": text, "__module__": "shim.api"}))


def _table(title: str, first: str, second: str, rows: list[str]) -> str:
    return "\n".join([title, "", f"| {first} | {second} |", "|---|---|", *rows] if rows else [title])


def _type_of(field: Any) -> str:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        return f"dict[{_type_of(key)}, {_type_of(value)}]"
    if field.message_type is not None:
        single = field.message_type.name
    elif field.type == FieldDescriptor.TYPE_BYTES:
        single = "bytes"
    else:
        single = _SCALARS.get(field.cpp_type, "int")
    return f"list[{single}]" if field.is_repeated else single


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
