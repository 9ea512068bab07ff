"""What the protoc plugin calls things in Python: modules, messages, classes, methods.

Rule: modules and messages are named as protoc's own Python generator does it; no name on the wire is changed.
What Python cannot spell, or would spell twice, is reported with the names that the .proto file uses.
"""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, ServiceDescriptorProto

from shim.ttrpc._streams import Kind
from shim.ttrpc.rpc import snake_case

_KINDS: Final = {
    (False, False): Kind.UNARY,
    (False, True): Kind.SERVER_STREAM,
    (True, False): Kind.CLIENT_STREAM,
    (True, True): Kind.BIDI,
}
_SERVICE_FIELD: Final = FileDescriptorProto.SERVICE_FIELD_NUMBER
_METHOD_FIELD: Final = ServiceDescriptorProto.METHOD_FIELD_NUMBER

# Lower-case names that annotations inside the generated classes use: a method of that name would stand before them.
_NAMES_IN_CLASSES: Final = frozenset({"aio", "float"})


class Message(NamedTuple):
    """A message type: its Python module, and its name there from the outermost message inwards."""

    module: str
    path: tuple[str, ...]


class Method(NamedTuple):
    """One rpc: `wire_name` as in the .proto file, `name` as Python spells methods."""

    wire_name: str
    name: str
    kind: Kind
    request: Message
    response: Message
    comment: str

    @property
    def constant(self) -> str:
        """The name as constants are spelled."""
        return self.name.upper()


class Names(NamedTuple):
    """One service: `full_name` on the wire, and the `stem` of which the names of its classes are made."""

    full_name: str
    stem: str
    methods: tuple[Method, ...]
    comment: str

    @property
    def snake_stem(self) -> str:
        """The stem as functions are spelled."""
        return snake_case(self.stem)

    @property
    def public(self) -> tuple[str, ...]:
        """Every name that the service puts into its module."""
        classes = ("{}Rpcs", "{}Service", "Async{}Service", "{}Client", "Async{}Client")
        functions = (f"{self.snake_stem.upper()}_RPCS", f"{self.snake_stem}_service")
        return (*(pattern.format(self.stem) for pattern in classes), *functions)


def module_name(file: str, suffix: str) -> str:
    """Return the module that protoc makes of a .proto file: `a-b/c.d.proto` is `a_b.c.d_pb2` with the suffix `_pb2`."""
    stem = file.removesuffix(".protodevel") if file.endswith(".protodevel") else file.removesuffix(".proto")
    return stem.replace("-", "_").replace("/", ".") + suffix


def is_odd(part: str) -> bool:
    """Return whether a part of a dotted name is no name in Python, or one that Python mangles inside of classes."""
    return keyword.iskeyword(part) or not part.isidentifier() or part.startswith("__")


def find_messages(files: Iterable[FileDescriptorProto], modules: Mapping[str, str]) -> dict[str, Message]:
    """Return all messages by full name with a leading dot; `modules` overrides the modules of some files.

    A message belongs to the file that declares it, whatever file imports that one publicly.
    """
    found: dict[str, Message] = {}
    for file in files:
        module = modules.get(file.name) or module_name(file.name, "_pb2")
        scope = f".{file.package}" if file.package else ""
        found |= {f"{scope}.{'.'.join(path)}": Message(module, path) for path in _walk(file.message_type, ())}
    return found


def _walk(messages: Iterable[DescriptorProto], outer: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for message in messages:
        yield (*outer, message.name)
        yield from _walk(message.nested_type, (*outer, message.name))


def find_services(file: FileDescriptorProto, messages: Mapping[str, Message]) -> list[Names]:
    """Return what each service of a file, its methods and their messages are called."""
    comments = {tuple(location.path): location.leading_comments for location in file.source_code_info.location}
    services = []
    for number, service in enumerate(file.service):
        path = (_SERVICE_FIELD, number)
        methods = tuple(
            Method(
                wire_name=method.name,
                name=snake_case(method.name),
                kind=_KINDS[method.client_streaming, method.server_streaming],
                request=messages[method.input_type],
                response=messages[method.output_type],
                comment=_comment(comments.get((*path, _METHOD_FIELD, index), ""), method.options.deprecated),
            )
            for index, method in enumerate(service.method)
        )
        full_name = f"{file.package}.{service.name}" if file.package else service.name
        comment = _comment(comments.get(path, ""), service.options.deprecated)
        services.append(Names(full_name, _stem(service.name), methods, comment))
    return services


def _stem(service: str) -> str:
    camel_case = "".join(part[:1].upper() + part[1:] for part in service.split("_"))
    return camel_case.removesuffix("Service") or camel_case


def _comment(text: str | bytes, is_deprecated: bool) -> str:
    if isinstance(text, bytes):  # what protobuf makes of a comment that is not UTF-8
        text = text.decode(errors="replace")
    lines = [line.removeprefix(" ").rstrip().expandtabs() for line in text.split("\n")]
    paragraphs = ["\n".join(lines).strip(), "Deprecated." if is_deprecated else ""]
    return "\n\n".join(filter(None, paragraphs))


def choose_aliases(services: Iterable[Names]) -> dict[str, str]:
    """Return what message modules are called in a generated module: their last name, unless that is ambiguous."""
    methods = [method for service in services for method in service.methods]
    modules = sorted({message.module for method in methods for message in (method.request, method.response)})
    short = {module: module.rpartition(".")[2].lstrip("_") for module in modules}
    counts = Counter(short.values())
    # As protoc spells its own, so that no two are alike.
    long = {module: module.replace("_", "__").replace(".", "_dot_").lstrip("_") for module in modules}
    return {module: short[module] if counts[short[module]] == 1 else long[module] for module in modules}


def find_problems(services: Iterable[Names], aliases: Iterable[str]) -> Iterator[str]:
    """Yield what keeps services of one file from becoming Python; `aliases` are its names for message modules."""
    taken: dict[str, str] = {}
    for service in services:
        if not service.stem.isidentifier():
            yield f"service {service.full_name}: Python cannot call a class {service.stem!r}"
        rivals = {taken[name]: name for name in reversed(service.public) if name in taken}
        for rival, name in rivals.items():
            yield f"services {rival} and {service.full_name} would both be called {name} in Python"
        taken |= dict.fromkeys(service.public, service.full_name)
        for problem in _method_problems(service.methods, _NAMES_IN_CLASSES.union(aliases)):
            yield f"service {service.full_name}: {problem}"


def _method_problems(methods: Iterable[Method], used: frozenset[str]) -> Iterator[str]:
    taken: dict[str, str] = {}
    for method in methods:
        rival = taken.setdefault(method.name, method.wire_name)
        if rival != method.wire_name:
            yield f"rpcs {rival} and {method.wire_name} would both be called {method.name} in Python"
            continue
        reason = ""
        if keyword.iskeyword(method.name):
            reason = "which is a keyword"
        elif method.name.startswith("_"):
            reason = "which is private there"
        elif method.name in used:
            reason = "which the generated code needs itself"
        if reason:
            yield f"rpc {method.wire_name} would be called {method.name} in Python, {reason}"


def find_rust_differences(file: FileDescriptorProto) -> Iterator[str]:
    """Yield what peers that ttrpc-rust's compiler generated call differently on the wire, so that calls do not meet.

    Its names are package, a dot, and the service in camel case: words are split off at `_` and where the case changes.
    """
    for service in file.service:
        words = re.findall(r"[A-Z]?[^A-Z_]+|[A-Z]+(?![^A-Z_])", service.name)
        rusts = f"{file.package}.{''.join(word.capitalize() for word in words)}"
        ours = f"{file.package}.{service.name}" if file.package else service.name
        if rusts != ours:
            yield f"service {ours} is called {rusts} by peers generated with ttrpc-rust"
