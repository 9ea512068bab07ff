"""The protoc plugin: the text it writes, the names it chooses, and what it refuses.

Requests are made by protoc from .proto text; test_codegen_types has what type checkers and a running module say.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from importlib import metadata
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest
from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor_pb2 import Edition, FileDescriptorSet

from shim.ttrpc import codegen

protoc = importlib.import_module("grpc_tools.protoc")  # which has no types

WELL_KNOWN = Path(str(protoc.__file__)).parent / "_proto"
EMPTY = "google.protobuf.Empty"
IMPORT_EMPTY = 'syntax = "proto3"; import "google/protobuf/empty.proto";'


@pytest.fixture
def request_for(tmp_path: Path) -> RequestMaker:
    """What protoc sends to a plugin for files given by name and text."""
    return RequestMaker(tmp_path / "protos")


class RequestMaker:
    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, files: Mapping[str, str], *wanted: str, parameter: str = "") -> CodeGeneratorRequest:
        """Return the request for the wanted of the files, or for all."""
        for name, text in files.items():
            path = self._root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="surrogateescape")
        output = self._root / "descriptors"
        arguments = ["--include_imports", "--include_source_info", f"--descriptor_set_out={output}"]
        names = wanted or tuple(files)
        assert protoc.main(["protoc", f"-I{self._root}", f"-I{WELL_KNOWN}", *arguments, *names]) == 0
        descriptors = FileDescriptorSet.FromString(output.read_bytes())
        return CodeGeneratorRequest(file_to_generate=names, proto_file=descriptors.file, parameter=parameter)


def service(*rpcs: str, name: str = "Test") -> str:
    """Return a file with a service of unary rpcs."""
    methods = " ".join(f"rpc {rpc}({EMPTY}) returns ({EMPTY});" for rpc in rpcs)
    return f"{IMPORT_EMPTY} package p; service {name} {{ {methods} }}"


def lines_of(response: CodeGeneratorResponse, *words: str) -> list[str]:
    """Return the lines of the only generated file that have all the words."""
    assert response.error == ""
    (file,) = response.file
    return [line.strip() for line in file.content.splitlines() if all(word in line for word in words)]


def test_a_service_with_every_kind_of_method(request_for: RequestMaker) -> None:
    """The whole module, word for word."""
    source, golden = (Path(__file__).with_name(name).read_text() for name in ("depot.proto", "depot_ttrpc.golden"))
    response = codegen.generate(request_for({"golden/depot.proto": source}))

    assert [("golden/depot_ttrpc.py", golden)] == [(file.name, file.content) for file in response.file]


def test_a_file_without_services_makes_no_file(request_for: RequestMaker) -> None:
    """Messages are protoc's business alone."""
    response = codegen.generate(request_for({"a.proto": 'syntax = "proto3"; message A {}'}))

    assert ("", []) == (response.error, list(response.file))


def test_only_the_files_that_were_asked_for_are_made(request_for: RequestMaker) -> None:
    """A file that is merely imported makes nothing."""
    files = {
        "a.proto": 'syntax = "proto3"; import "b.proto"; service A { rpc Do(M) returns (M); }',
        "b.proto": 'syntax = "proto3"; message M {} service B { rpc Do(M) returns (M); }',
    }
    response = codegen.generate(request_for(files, "a.proto"))

    assert ["a_ttrpc.py"] == [file.name for file in response.file]


def test_a_service_without_rpcs_is_a_module_too(request_for: RequestMaker) -> None:
    """Its table is empty and its classes have nothing but a docstring."""
    response = codegen.generate(request_for({"a.proto": 'syntax = "proto3"; service Nothing {}'}))

    assert ["NOTHING_RPCS: Final[tuple[Rpc[Any, Any], ...]] = ()"] == lines_of(response, "NOTHING_RPCS:")
    assert ['return Service("Nothing", {})'] == lines_of(response, "return Service")
    assert ["from shim.ttrpc import Rpc, Service"] == lines_of(response, "from shim.ttrpc", "Service")


def test_the_plugin_tells_what_it_understands(request_for: RequestMaker) -> None:
    """Without these protoc refuses files with optional fields or editions."""
    response = codegen.generate(request_for({"a.proto": service()}))

    wanted = response.FEATURE_PROTO3_OPTIONAL | response.FEATURE_SUPPORTS_EDITIONS
    assert wanted == response.supported_features
    assert (Edition.EDITION_PROTO2, Edition.EDITION_2024) == (response.minimum_edition, response.maximum_edition)


@pytest.mark.parametrize(
    ("name", "stem", "function"),
    [
        ("Task", "Task", "task_service"),
        ("TaskService", "Task", "task_service"),
        ("Service", "Service", "service_service"),
        ("CRIImages", "CRIImages", "cri_images_service"),
        ("task_store", "TaskStore", "task_store_service"),
    ],
)
def test_names_come_from_the_services_name(request_for: RequestMaker, name: str, stem: str, function: str) -> None:
    """In camel case, and without a second Service; the name on the wire stays."""
    response = codegen.generate(request_for({"a.proto": service("Do", name=name)}))

    names = [f"{stem}Rpcs", f"{stem}Service", f"Async{stem}Service", f"{stem}Client", f"Async{stem}Client"]
    assert [f"class {name}:" for name in names] == lines_of(response, "class ", ":")
    assert 1 == len(lines_of(response, f"def {function}("))
    assert 1 == len(lines_of(response, f'Rpc("p.{name}", "Do", '))


@pytest.mark.parametrize(
    ("file", "output", "line"),
    [
        ("a.proto", "a_ttrpc.py", "import a_pb2"),
        ("x/y-z/a-b.proto", "x/y_z/a_b_ttrpc.py", "from x.y_z import a_b_pb2"),
        ("v1.2/a.b.proto", "v1/2/a/b_ttrpc.py", 'b_pb2 = importlib.import_module("v1.2.a.b_pb2")'),
        ("x/class/a.proto", "x/class/a_ttrpc.py", 'a_pb2 = importlib.import_module("x.class.a_pb2")'),
        ("a.protodevel", "a_ttrpc.py", "import a_pb2"),
        ("__a.proto", "__a_ttrpc.py", 'a_pb2 = importlib.import_module("__a_pb2")'),
    ],
)
def test_modules_are_named_as_protoc_names_them(request_for: RequestMaker, file: str, output: str, line: str) -> None:
    """The output lies beside the messages, and imports them from where protoc has put them."""
    text = 'syntax = "proto3"; service S { rpc Do(M) returns (M); } message M {}'
    response = codegen.generate(request_for({file: text}))

    assert output == response.file[0].name
    assert [line] == lines_of(response, "a_pb2", "import") + lines_of(response, "b_pb2", "import")


def test_an_option_moves_messages_to_another_module(request_for: RequestMaker) -> None:
    """As for protos that import each other by another root than their Python package has."""
    request = request_for(
        {"a.proto": service("Do")}, parameter="Ma.proto=x.a_pb2,Mgoogle/protobuf/empty.proto=x.y.empty"
    )
    response = codegen.generate(request)

    assert ["from x.y import empty"] == lines_of(response, "import empty")


def test_messages_are_found_where_they_are_declared(request_for: RequestMaker) -> None:
    """Nested ones by their outer message, and those that come through a public import in their own module."""
    files = {
        "x/a.proto": 'syntax = "proto3"; package p; import "x/b.proto"; service S { rpc Do(q.Out.In) returns (Out); } '
        "message Out {}",
        "x/b.proto": 'syntax = "proto3"; import public "y/c.proto";',
        "y/c.proto": 'syntax = "proto3"; package q; message Out { message In {} }',
    }
    response = codegen.generate(request_for(files, "x/a.proto"))

    assert ["from x import a_pb2", "from y import c_pb2"] == lines_of(response, "_pb2", "import ")
    assert ['DO: Final = Rpc("p.S", "Do", c_pb2.Out.In, a_pb2.Out)'] == lines_of(response, "DO: Final")


def test_modules_with_the_same_last_name_are_told_apart(request_for: RequestMaker) -> None:
    """Both get an alias, spelled as protoc spells its own."""
    files = {
        "x/types.proto": 'syntax = "proto3"; package x; message M {}',
        "x/y_z/types.proto": 'syntax = "proto3"; package y; message M {}',
        "a.proto": 'syntax = "proto3"; import "x/types.proto"; import "x/y_z/types.proto"; '
        "service S { rpc Do(x.M) returns (y.M); }",
    }
    response = codegen.generate(request_for(files, "a.proto"))

    assert [
        "from x import types_pb2 as x_dot_types__pb2",
        "from x.y_z import types_pb2 as x_dot_y__z_dot_types__pb2",
    ] == lines_of(response, "import types_pb2")


def test_messages_that_python_cannot_spell_are_reached_all_the_same(request_for: RequestMaker) -> None:
    """Keywords and what Python mangles inside classes, by getattr; type checkers know nothing of those."""
    text = 'syntax = "proto3"; service S { rpc Do(None) returns (Out.__In); } '
    text += "message None {} message Out { message __In {} }"
    response = codegen.generate(request_for({"a.proto": text}))

    assert ['DO: Final = Rpc("S", "Do", getattr(a_pb2, "None"), getattr(a_pb2.Out, "__In"))'] == lines_of(
        response, "DO:"
    )
    assert ["def do(self, context: CallContext, request: Any, /) -> Any | Deferred:"] == lines_of(
        response, "| Deferred"
    )


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        (" One.", '"""One."""'),
        ("Two\n//  indented\n// ", '"""Two\n     indented\n    """'),
        (r" C:\new \" ", r'"""C:\\new \\\""""'),
        (' Says """no""".', r'"""Says \"\"\"no\"\"\"."""'),
        (' "Quoted" first', r'"""\"Quoted\" first"""'),
        (' With "quotes" inside', '"""With "quotes" inside"""'),
        (" Ünïcode \x07\x0c\x7f", '"""Ünïcode \\x07\\x0c\\x7f"""'),
        (" Dos\r", '"""Dos"""'),
        (" Latin-1: \udce9", '"""Latin-1: \ufffd"""'),
    ],
)
def test_comments_become_docstrings(request_for: RequestMaker, comment: str, expected: str) -> None:
    """Whatever they hold, the module says the same."""
    text = f"{IMPORT_EMPTY} service S {{\n//{comment}\nrpc Do({EMPTY}) returns ({EMPTY}); }}"
    response = codegen.generate(request_for({"a.proto": text}))

    assert 4 == response.file[0].content.count(
        f":\n        {expected.replace(chr(10) + '    ', chr(10) + '        ')}\n"
    )
    compile(response.file[0].content, "a_ttrpc.py", "exec")


@pytest.mark.parametrize("syntax", ['syntax = "proto2"', 'edition = "2023"'])
def test_other_syntaxes_make_the_same_module(request_for: RequestMaker, syntax: str) -> None:
    """Services are the same in all of them."""
    text = 'syntax = "proto3"; service S { rpc Do(M) returns (M); } message M {}'
    proto3, other = (
        codegen.generate(request_for({"a.proto": text.replace('syntax = "proto3"', head)}))
        for head in ('syntax = "proto3"', syntax)
    )

    assert proto3 == other


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (service("Import"), "service p.Test: rpc Import would be called import in Python, which is a keyword"),
        (service("_Do"), "service p.Test: rpc _Do would be called _do in Python, which is private there"),
        (
            service("Float"),
            "service p.Test: rpc Float would be called float in Python, which the generated code needs itself",
        ),
        (
            service("empty_pb2"),
            "service p.Test: rpc empty_pb2 would be called empty_pb2 in Python, which the generated code needs itself",
        ),
        (service("GetIt", "get_it"), "service p.Test: rpcs GetIt and get_it would both be called get_it in Python"),
        (
            f"{service(name='Foo')} service FooService {{}}",
            "services p.Foo and p.FooService would both be called FooRpcs in Python",
        ),
        (service(name="_"), "service p._: Python cannot call a class ''"),
        (service(name="_1"), "service p._1: Python cannot call a class '1'"),
    ],
)
def test_names_that_python_cannot_have_are_errors(request_for: RequestMaker, text: str, problem: str) -> None:
    """Each names the file, the service and the rpcs as the .proto file has them, and nothing is written."""
    response = codegen.generate(request_for({"x/a.proto": text}))

    assert (f"x/a.proto: {problem}", []) == (response.error, list(response.file))


def test_all_errors_are_reported_at_once(request_for: RequestMaker) -> None:
    """Of all files, with what is wrong with the options."""
    files = {"a.proto": service("Import", "Class"), "b.proto": service("_", name="Other")}
    response = codegen.generate(request_for(files, parameter="import_root=x,Mx"))

    assert [
        "unknown option 'import_root=x'",
        "unknown option 'Mx'",
        "a.proto: service p.Test: rpc Import would be called import in Python, which is a keyword",
        "a.proto: service p.Test: rpc Class would be called class in Python, which is a keyword",
        "b.proto: service p.Other: rpc _ would be called _ in Python, which is private there",
    ] == response.error.splitlines()


@pytest.mark.parametrize(
    ("name", "rusts"),
    [
        ("Task", "Task"),
        ("TaskV2", "TaskV2"),
        ("CRIService", "CriService"),
        ("task_store", "TaskStore"),
        ("ID", "Id"),
        ("createID", "CreateId"),
        ("AsyncRClient", "AsyncRClient"),
        ("CRI2", "CrI2"),
    ],
)
def test_services_that_rust_calls_differently_are_warned_about(
    request_for: RequestMaker, name: str, rusts: str
) -> None:
    """ttrpc-rust's compiler changes names on the wire; the module is written all the same."""
    warnings = [*codegen.find_warnings(request_for({"a.proto": service("Do", name=name)}))]

    warning = f"a.proto: warning: service p.{name} is called p.{rusts} by peers generated with ttrpc-rust"
    assert ([warning] if rusts != name else []) == warnings


def test_a_file_without_a_package_is_warned_about(request_for: RequestMaker) -> None:
    """ttrpc-rust's compiler puts a dot before the service's name."""
    warnings = [*codegen.find_warnings(request_for({"a.proto": 'syntax = "proto3"; service S {}'}))]

    assert ["a.proto: warning: service S is called .S by peers generated with ttrpc-rust"] == warnings


def run_main(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> tuple[CodeGeneratorResponse, str]:
    """Return what the plugin answers on its standard output and error."""
    stdin, stdout, stderr = TextIOWrapper(BytesIO(sent)), TextIOWrapper(BytesIO()), StringIO()
    monkeypatch.setattr(sys, "argv", ["protoc-gen-ttrpc-python"])
    for name, stream in {"stdin": stdin, "stdout": stdout, "stderr": stderr}.items():
        monkeypatch.setattr(sys, name, stream)
    assert codegen.main() == 0
    stdout.buffer.seek(0)
    return CodeGeneratorResponse.FromString(stdout.buffer.read()), stderr.getvalue()


def test_warnings_go_to_standard_error(request_for: RequestMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is protoc's."""
    response, errors = run_main(monkeypatch, request_for({"a.proto": service("Do", name="ID")}).SerializeToString())

    assert ["a_ttrpc.py"] == [file.name for file in response.file]
    assert "a.proto: warning: service p.ID is called p.Id by peers generated with ttrpc-rust\n" == errors


def test_what_is_no_request_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a traceback."""
    response, errors = run_main(monkeypatch, b"\xff")

    assert response.error.startswith("cannot read protoc's request: ")
    assert "" == errors


def test_the_distribution_installs_the_plugin() -> None:
    """Under the name by which protoc looks for it."""
    (script,) = metadata.entry_points(group="console_scripts", name="protoc-gen-ttrpc-python")

    assert codegen.main is script.load()


def test_who_calls_it_by_hand_is_told_how_it_is_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rather than left waiting for a request."""
    monkeypatch.setattr(sys, "argv", ["protoc-gen-ttrpc-python", "--help"])
    code = codegen.main()

    assert 2 == code
    assert "protoc --python_out=DIR --pyi_out=DIR --ttrpc-python_out=DIR FILE.proto" in capsys.readouterr().err
