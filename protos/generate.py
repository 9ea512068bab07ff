"""Generate shim/api from the .proto files in this folder.

    python protos/generate.py            bring shim/api up to date, removing what no .proto file makes any more
    python protos/generate.py --check    write nothing; name each file that differs and exit with 1

Rule: the output depends on the .proto files and on the grpcio-tools that pyproject.toml pins, on nothing else.
The pin decides the oldest protobuf that shim works with: code from 1.80 runs on 6.31.1 and newer up to 7.x, code from
1.81 needs 6.33.5, from 1.82 on 7.35.1.
"""

import argparse
import importlib
import importlib.metadata
import re
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

PROTOS: Final = Path(__file__).resolve().parent
ROOT: Final = PROTOS.parent
API: Final = ROOT / "shim" / "api"
GENERATED: Final = ("*_pb2.py", "*_pb2.pyi")


def require_generator() -> None:
    """Exit with a message unless the pinned generator is installed: another one writes other files."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    try:
        installed = f"grpcio-tools=={importlib.metadata.version('grpcio-tools')}"
    except importlib.metadata.PackageNotFoundError:
        installed = "no grpcio-tools"
    if installed not in groups["gen"]:
        sys.exit(f"shim/api is generated with {groups['gen']}, but there is {installed} here: run ./just gen")


def compile_protos() -> dict[str, bytes]:
    """Return name and content of every file that belongs into shim/api."""
    protoc = importlib.import_module("grpc_tools.protoc")
    well_known = Path(str(protoc.__file__)).parent / "_proto"
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("shim/api/*.proto"))
    with tempfile.TemporaryDirectory() as out:
        options = [f"-I{PROTOS}", f"-I{well_known}", f"--python_out={out}", f"--pyi_out={out}"]
        if protoc.main(["protoc", *options, *sources]) != 0:
            sys.exit("protoc failed, see above")
        files = read_generated(Path(out) / "shim" / "api")
    # protoc writes a bare Mapping where a dict may stand for a message; strict type checkers refuse that
    return {name: re.sub(rb"\b_Mapping(?=\])", b"_Mapping[str, object]", content) for name, content in files.items()}


def read_generated(folder: Path) -> dict[str, bytes]:
    """Return name and content of every generated file in `folder`; hand-written ones are left out."""
    return {path.name: path.read_bytes() for pattern in GENERATED for path in sorted(folder.glob(pattern))}


def compare(wanted: dict[str, bytes], present: dict[str, bytes]) -> dict[str, str]:
    """Return what is wrong with each file that is not as it should be."""
    wrong = dict.fromkeys(wanted.keys() - present.keys(), "missing")
    wrong |= dict.fromkeys(present.keys() - wanted.keys(), "stale")
    wrong |= {name: "differs" for name in wanted.keys() & present.keys() if wanted[name] != present[name]}
    return dict(sorted(wrong.items()))


def main(arguments: Sequence[str]) -> int:
    """Generate or check, and return the exit code."""
    parser = argparse.ArgumentParser(description="Generate shim/api from protos/.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a file is out of date")
    is_check = parser.parse_args(arguments).check

    require_generator()
    wanted = compile_protos()
    wrong = compare(wanted, read_generated(API))
    for name, problem in wrong.items():
        if is_check:
            sys.stdout.write(f"shim/api/{name}: {problem}\n")
        elif name in wanted:
            (API / name).write_bytes(wanted[name])
            sys.stdout.write(f"shim/api/{name}: written\n")
        else:
            (API / name).unlink()
            sys.stdout.write(f"shim/api/{name}: removed\n")
    if is_check and wrong:
        sys.stdout.write("to bring them up to date: ./just gen\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
