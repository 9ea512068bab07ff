"""The protoc plugin protoc-gen-ttrpc-python: writes `<name>_ttrpc.py` beside protoc's own `<name>_pb2.py`.

    protoc --python_out=DIR --pyi_out=DIR --ttrpc-python_out=DIR FILE.proto ...

The option `M<file.proto>=<python.module>` says where a file's messages are, if not in the module that protoc makes.
Rule: the output depends on the request alone, and what is wrong goes to protoc as an error, never as a traceback.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Final

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor_pb2 import Edition, FileDescriptorProto
from google.protobuf.message import DecodeError

from shim.ttrpc.codegen_names import (
    choose_aliases,
    find_messages,
    find_problems,
    find_rust_differences,
    find_services,
    module_name,
)
from shim.ttrpc.codegen_text import render

_USAGE: Final = """\
protoc-gen-ttrpc-python is a plugin, which protoc runs:
    protoc --python_out=DIR --pyi_out=DIR --ttrpc-python_out=DIR FILE.proto ...
Option, for --ttrpc-python_opt:
    M<file.proto>=<python.module>   where the messages of that file are
"""
_OPTION: Final = re.compile(r"M(?P<file>[^=]+)=(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*)")


def generate(request: CodeGeneratorRequest) -> CodeGeneratorResponse:
    """Return the modules of the files that protoc was asked for, or what is wrong with them."""
    response = CodeGeneratorResponse(
        supported_features=CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
        | CodeGeneratorResponse.FEATURE_SUPPORTS_EDITIONS,
        minimum_edition=Edition.EDITION_PROTO2,
        maximum_edition=Edition.EDITION_2024,
    )
    options = [option for option in request.parameter.split(",") if option]
    matches = [_OPTION.fullmatch(option) for option in options]
    problems = [f"unknown option {option!r}" for option, match in zip(options, matches, strict=True) if not match]
    modules = {match["file"]: match["module"] for match in matches if match}
    messages = find_messages(request.proto_file, modules)
    for file in _files_with_services(request):
        services = find_services(file, messages)
        aliases = choose_aliases(services)
        problems += [f"{file.name}: {problem}" for problem in find_problems(services, aliases.values())]
        name = module_name(file.name, "_ttrpc").replace(".", "/") + ".py"
        response.file.add(name=name, content=render(file.name, services, aliases))
    if problems:
        response.error = "\n".join(problems)
        del response.file[:]
    return response


def find_warnings(request: CodeGeneratorRequest) -> Iterator[str]:
    """Yield what works, but not with every peer."""
    for file in _files_with_services(request):
        yield from (f"{file.name}: warning: {difference}" for difference in find_rust_differences(file))


def _files_with_services(request: CodeGeneratorRequest) -> Iterator[FileDescriptorProto]:
    files = {file.name: file for file in request.proto_file}
    yield from (files[name] for name in request.file_to_generate if files[name].service)


def main() -> int:
    """Answer protoc's request from standard input on standard output, and return the exit code."""
    if len(sys.argv) > 1 or sys.stdin.isatty():
        sys.stderr.write(_USAGE)
        return 2
    try:
        request = CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
        response = generate(request)
    except (DecodeError, UnicodeDecodeError) as error:
        response = CodeGeneratorResponse(error=f"cannot read protoc's request: {error}")
    else:
        sys.stderr.writelines(f"{warning}\n" for warning in find_warnings(request))
    sys.stdout.buffer.write(response.SerializeToString(deterministic=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
