"""Generate the modules in shim/api from the .proto files in this folder, and those in tests/protos from its own.

    python protos/generate.py            bring them up to date, removing what no .proto file makes any more
    python protos/generate.py --check    write nothing; name each file that differs and exit with 1

Rule: the output depends on the .proto files, the grpcio-tools that pyproject.toml pins and our own protoc plugin only.
The pin decides the oldest protobuf that shim works with: code from 1.80 runs on 6.31.1 and newer up to 7.x, code from
1.81 needs 6.33.5, from 1.82 on 7.35.1.
"""

import argparse
import importlib
import importlib.metadata
import re
import shlex
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

PROTOS: Final = Path(__file__).resolve().parent
ROOT: Final = PROTOS.parent
SOURCES: Final[Mapping[str, Path]] = {"shim/api": PROTOS, "tests/protos": ROOT}  # by folder of the generated files
GENERATED: Final = ("*_pb2.py", "*_pb2.pyi", "*_ttrpc.py")


def require_generator() -> None:
    """Exit with a message unless the pinned generator is installed: another one writes other files."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    try:
        installed = f"grpcio-tools=={importlib.metadata.version('grpcio-tools')}"
    except importlib.metadata.PackageNotFoundError:
        installed = "no grpcio-tools"
    if installed not in groups["gen"]:
        sys.exit(f"code is generated with {groups['gen']}, but there is {installed} here: run ./just gen")


def compile_protos() -> dict[str, bytes]:
    """Return the content of every file that belongs into the folders, by its path below the project's."""
    protoc = importlib.import_module("grpc_tools.protoc")
    well_known = Path(str(protoc.__file__)).parent / "_proto"
    paths = {root: sorted(root.glob(f"{folder}/*.proto")) for folder, root in SOURCES.items()}
    sources = [str(path.relative_to(root)) for root, found in paths.items() for path in found]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        out.mkdir()
        plugin = write_plugin(Path(folder))
        options = [*(f"-I{root}" for root in SOURCES.values()), f"-I{well_known}", f"--plugin={plugin.name}={plugin}"]
        options += [f"--{generator}_out={out}" for generator in ("python", "pyi", "ttrpc-python")]
        if protoc.main(["protoc", *options, *sources]) != 0:
            sys.exit("protoc failed, see above")
        files = read_generated(out)
    # protoc writes a bare Mapping where a dict may stand for a message; strict type checkers refuse that
    bare = re.compile(rb"\b_Mapping(?=\])")
    return {
        name: bare.sub(b"_Mapping[str, object]", content) if name.endswith(".pyi") else content
        for name, content in files.items()
    }


def write_plugin(folder: Path) -> Path:
    """Write a program that runs this tree's protoc plugin, whatever is installed."""
    plugin = folder / "protoc-gen-ttrpc-python"
    command = shlex.join([sys.executable, "-m", "shim.ttrpc.codegen"])
    plugin.write_text(f"#!/bin/sh\ncd {shlex.quote(str(ROOT))} && exec {command}\n")
    plugin.chmod(0o700)
    return plugin


def read_generated(root: Path) -> dict[str, bytes]:
    """Return the content of every generated file below `root` by its path there; hand-written ones are left out."""
    paths = [path for folder in SOURCES for pattern in GENERATED for path in sorted((root / folder).glob(pattern))]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def compare(wanted: dict[str, bytes], present: dict[str, bytes]) -> dict[str, str]:
    """Return what is wrong with each file that is not as it should be."""
    wrong = dict.fromkeys(wanted.keys() - present.keys(), "missing")
    wrong |= dict.fromkeys(present.keys() - wanted.keys(), "stale")
    wrong |= {name: "differs" for name in wanted.keys() & present.keys() if wanted[name] != present[name]}
    return dict(sorted(wrong.items()))


def main(arguments: Sequence[str]) -> int:
    """Generate or check, and return the exit code."""
    parser = argparse.ArgumentParser(description=f"Generate {' and '.join(SOURCES)} from .proto files.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a file is out of date")
    is_check = parser.parse_args(arguments).check

    require_generator()
    wanted = compile_protos()
    wrong = compare(wanted, read_generated(ROOT))
    for name, problem in wrong.items():
        if is_check:
            sys.stdout.write(f"{name}: {problem}\n")
        elif name in wanted:
            (ROOT / name).write_bytes(wanted[name])
            sys.stdout.write(f"{name}: written\n")
        else:
            (ROOT / name).unlink()
            sys.stdout.write(f"{name}: removed\n")
    if is_check and wrong:
        sys.stdout.write("to bring them up to date: ./just gen\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
