"""Generated modules as protoc leaves them: they import, bind, and satisfy mypy and pyright, which see through them."""

import importlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

protoc = importlib.import_module("grpc_tools.protoc")  # which has no types

ROOT = Path(__file__).parent.parent.parent
MISTAKE = "  # type: ignore[arg-type]"

# All that makes names of modules and messages awkward.
AWKWARD = {
    "odd/types.proto": 'syntax = "proto3"; package a; message M { message Inner {} optional string s = 1; }',
    "odd/y-z/types.proto": 'syntax = "proto2"; package b; message M { optional string s = 1; }',
    "odd/class/k.proto": 'edition = "2023"; package c; message None {}',  # protoc's own .pyi is no Python
    "odd/public.proto": 'syntax = "proto3"; package d; import public "odd/types.proto";',
    "odd/__private.proto": 'syntax = "proto3"; package e; message M {}',
    "odd/all-of-them.proto": """
        syntax = "proto3";
        package odd;
        import "google/protobuf/struct.proto";
        import "odd/__private.proto";
        import "odd/class/k.proto";
        import "odd/public.proto";
        import "odd/y-z/types.proto";
        message Out { message __In {} }
        // Has "quotes", \\ and \"""
        service Every {
          // Ends with \\
          rpc SameNames(a.M) returns (b.M);
          rpc Nested(a.M.Inner) returns (google.protobuf.Struct);
          rpc Keywords(stream c.None) returns (stream c.None);
          rpc Mangled(Out.__In) returns (e.M);
          rpc match(Out) returns (stream Out);
        }
        service Nothing {}
        """,
}
MESSAGES = """
SameNames a.M b.M
Nested a.M.Inner google.protobuf.Struct
Keywords c.None c.None
Mangled odd.Out.__In e.M
match odd.Out odd.Out
"""


def run(*command: object, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run a Python module and return what became of it."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{path and os.pathsep}{path}", "MYPYPATH": str(ROOT)}
    words = [sys.executable, *map(str, command)]
    return subprocess.run(
        words, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def compile_protos(folder: Path, files: Mapping[str, str], hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """Run protoc with its own generators and ours over all files; what they write lies beside them."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    plugin = folder / "protoc-gen-ttrpc-python"
    command = shlex.join([sys.executable, "-m", "shim.ttrpc.codegen"])
    plugin.write_text(f"#!/bin/sh\nPYTHONHASHSEED={hash_seed} exec {command}\n")
    plugin.chmod(0o700)
    includes = [f"-I{folder}", f"-I{Path(str(protoc.__file__)).parent / '_proto'}"]
    outputs = [f"--{generator}_out={folder}" for generator in ("python", "pyi", "ttrpc-python")]
    return run("-m", "grpc_tools.protoc", *includes, f"--plugin={plugin.name}={plugin}", *outputs, *files, cwd=folder)


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with everything that was made of AWKWARD."""
    folder = tmp_path_factory.mktemp("awkward")
    made = compile_protos(folder, AWKWARD)
    assert (0, "") == (made.returncode, made.stdout)
    return folder


def test_awkward_names_lead_to_the_right_messages(awkward: Path) -> None:
    """The module imports, without asyncio, and each rpc has the messages of the .proto file."""
    program = (
        "import sys; from odd import all_of_them_ttrpc as made; print()\n"
        "for rpc in made.EVERY_RPCS:\n"
        "    print(rpc.name, rpc.request.DESCRIPTOR.full_name, rpc.response.DESCRIPTOR.full_name)\n"
        "service = made.every_service(made.EveryService()); assert len(service.methods) == 5\n"
        "service = made.nothing_service(made.NothingService()); assert service.name == 'odd.Nothing'\n"
        "assert 'asyncio' not in sys.modules"
    )
    ran = run("-c", program, cwd=awkward)

    assert (MESSAGES, 0) == (ran.stdout, ran.returncode)


def test_only_files_with_services_have_a_module(awkward: Path) -> None:
    """All others end at protoc's own."""
    assert ["odd/all_of_them_ttrpc.py"] == [str(path.relative_to(awkward)) for path in awkward.rglob("*_ttrpc.py")]


def test_the_output_is_the_same_each_time(awkward: Path, tmp_path: Path) -> None:
    """Whatever the order in which Python hashes."""
    made = compile_protos(tmp_path, AWKWARD, hash_seed="1")

    assert 0 == made.returncode
    first, second = ((folder / "odd/all_of_them_ttrpc.py").read_bytes() for folder in (awkward, tmp_path))
    assert first == second


def test_protoc_shows_our_errors_and_fails(tmp_path: Path) -> None:
    """With the plugin's name before the message."""
    made = compile_protos(
        tmp_path, {"a.proto": 'syntax = "proto3"; package p; service S { rpc If(M) returns (M); } message M {}'}
    )

    problem = "a.proto: service p.S: rpc If would be called if in Python, which is a keyword"
    assert (f"--ttrpc-python_out: {problem}\n", 1) == (made.stdout, made.returncode)
    assert not (tmp_path / "a_pb2.py").exists()


def test_protoc_shows_our_warnings_and_goes_on(tmp_path: Path) -> None:
    """They need no attention where no peer is generated with ttrpc-rust."""
    made = compile_protos(tmp_path, {"a.proto": 'syntax = "proto3"; service S {}'})

    warning = "a.proto: warning: service S is called .S by peers generated with ttrpc-rust"
    assert (f"{warning}\n", 0) == (made.stdout, made.returncode)
    assert (tmp_path / "a_ttrpc.py").exists()


def test_generated_code_is_formatted(awkward: Path) -> None:
    """As this project's own code is; formatters of other projects may be stricter, but have little to do."""
    paths = [*ROOT.glob("shim/api/*_ttrpc.py"), *ROOT.glob("tests/protos/*_ttrpc.py"), *awkward.rglob("*_ttrpc.py")]
    formatted = run(
        "-m", "ruff", "format", "--isolated", "--no-cache", "--line-length=120", "--diff", *paths, cwd=awkward
    )

    assert 0 == formatted.returncode, formatted.stdout


@pytest.fixture
def user(awkward: Path) -> Path:
    """What an author writes, its mistake no longer excused."""
    path = awkward / "user.py"
    path.write_text(Path(__file__).with_name("typed_user.py").read_text().replace(MISTAKE, ""))
    return path


def find_mistake(user: Path) -> int:
    """Return the line of the mistake."""
    lines = Path(__file__).with_name("typed_user.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if line.endswith(MISTAKE))


@pytest.mark.timeout(60)  # without a cache, on a slow machine
def test_mypy_finds_the_mistake_and_nothing_else(awkward: Path, user: Path) -> None:
    """Strict, over generated modules and over one that uses them."""
    paths = [
        user,
        *awkward.rglob("*_ttrpc.py"),
        *ROOT.glob("shim/api/*_ttrpc.py"),
        *ROOT.glob("tests/protos/*_ttrpc.py"),
    ]
    options = ["--strict", "--explicit-package-bases", "--warn-unreachable", "--config-file=", "--cache-dir=cache"]
    checked = run("-m", "mypy", *options, *paths, cwd=awkward)

    assert checked.stdout.splitlines() == [
        f'user.py:{find_mistake(user)}: error: Argument 1 to "divide" of "ConformanceClient" has incompatible type '
        '"Part"; expected "Total"  [arg-type]',
        f"Found 1 error in 1 file (checked {len(paths)} source files)",
    ]


@pytest.mark.timeout(60)
def test_pyright_finds_the_mistake_and_nothing_else(awkward: Path, user: Path) -> None:
    """Strict for what is fully typed; of modules that only importlib reaches it knows nothing."""
    generated = [*ROOT.glob("shim/api/*_ttrpc.py"), *ROOT.glob("tests/protos/*_ttrpc.py")]
    strict = ["user.py", *(os.path.relpath(path, awkward) for path in generated)]  # pyright ignores absolute ones
    settings = {
        "include": [*strict, "odd/all_of_them_ttrpc.py"],
        "strict": strict,
        "exclude": [],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "standard",
        "pythonVersion": "3.11",
    }
    (awkward / "pyrightconfig.json").write_text(json.dumps(settings))
    checked = run("-m", "pyright", f"--pythonpath={sys.executable}", "--outputjson", cwd=awkward)
    report = json.loads(checked.stdout)
    found = [
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1, each["rule"])
        for each in report["generalDiagnostics"]
    ]

    assert [("user.py", find_mistake(user), "reportArgumentType")] == found
    assert len(strict) + 1 <= report["summary"]["filesAnalyzed"]
