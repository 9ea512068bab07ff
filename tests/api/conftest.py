"""Descriptors as text, so that our definitions, upstream's and a table in a test compare line by line."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

import shim.api

Definitions = dict[str, frozenset[str]]
TYPES = {value: name.removeprefix("TYPE_").lower() for name, value in FieldDescriptorProto.Type.items()}
LABELS = {value: name.removeprefix("LABEL_").lower() for name, value in FieldDescriptorProto.Label.items()}


def type_of(field: FieldDescriptorProto) -> str:
    """Return the scalar's name, or the full name of the message or enum."""
    return field.type_name.removeprefix(".") or TYPES[field.type]


def field_line(field: FieldDescriptorProto, message: DescriptorProto, full_name: str) -> str:
    """Return everything about a field that its bytes or its presence depend on."""
    entries = {f"{full_name}.{nested.name}": nested for nested in message.nested_type if nested.options.map_entry}
    words = [str(field.number), field.name]
    if entry := entries.get(type_of(field)):
        key, value = entry.field
        return " ".join([*words, f"map<{type_of(key)}, {type_of(value)}>"])
    if field.label != FieldDescriptorProto.LABEL_OPTIONAL:
        words.append(LABELS[field.label])
    if field.proto3_optional:
        words.append("optional")
    elif field.HasField("oneof_index"):
        words.append(f"oneof {message.oneof_decl[field.oneof_index].name}")
    if field.options.HasField("packed"):
        words.append(f"packed={field.options.packed}")
    return " ".join([*words, type_of(field)])


def message_definitions(message: DescriptorProto, scope: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the message and what is declared inside of it; map entries are part of their field's line."""
    full_name = f"{scope}.{message.name}"
    yield f"message {full_name}", frozenset(field_line(field, message, full_name) for field in message.field)
    for nested in message.nested_type:
        if not nested.options.map_entry:
            yield from message_definitions(nested, full_name)
    for enum in message.enum_type:
        yield enum_definition(enum, full_name)


def enum_definition(enum: EnumDescriptorProto, scope: str) -> tuple[str, frozenset[str]]:
    """Return the enum's name and its values."""
    return f"enum {scope}.{enum.name}", frozenset(f"{value.number} {value.name}" for value in enum.value)


def file_definitions(file: FileDescriptorProto) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield every message, enum and service of a file; numbers mean nothing across syntaxes, so only one is allowed."""
    assert file.syntax == "proto3", file.name
    for message in file.message_type:
        yield from message_definitions(message, file.package)
    for enum in file.enum_type:
        yield enum_definition(enum, file.package)
    for service in file.service:
        lines = (
            f"{method.name} {'stream ' * method.client_streaming}{method.input_type.removeprefix('.')}"
            f" -> {'stream ' * method.server_streaming}{method.output_type.removeprefix('.')}"
            for method in service.method
        )
        yield f"service {file.package}.{service.name}", frozenset(lines)


def define(files: Iterable[FileDescriptorProto]) -> Definitions:
    """Return all definitions of the files by kind and full name."""
    return {name: lines for file in files for name, lines in file_definitions(file)}


@pytest.fixture(scope="session")
def describe() -> Callable[[Iterable[FileDescriptorProto]], Definitions]:
    """Return the function that turns descriptors into text."""
    return define


@pytest.fixture(scope="session")
def ours() -> Definitions:
    """Return what the generated modules define: the code that ships, not the .proto files it was made from."""
    stems = sorted(path.stem for path in Path(shim.api.__path__[0]).glob("*_pb2.py"))
    modules = [importlib.import_module(f"shim.api.{stem}") for stem in stems]
    return define(FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb) for module in modules)
