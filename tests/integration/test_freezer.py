"""What the freezer makes of the libraries of a shim: which it need not unpack, and one that it leaves out."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from tests.integration.archive import needed
from tests.integration.compiled import compile_program
from tests.integration.conftest import PROJECT

Libraries = tuple[Path, Path]


@pytest.fixture
def freezer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return build/spec/freezer.py, as PyInstaller loads it."""
    monkeypatch.syspath_prepend(str(PROJECT / "build/spec"))
    return importlib.import_module("freezer")


@pytest.fixture
def libraries(tmp_path: Path) -> Libraries:
    """Return a library, and one that needs it."""
    (tmp_path / "one.c").write_text("int one(void);\nint one(void) { return 1; }\n")
    (tmp_path / "two.c").write_text(
        "#include <unistd.h>\nint one(void);\nint two(void);\nint two(void) { return one() + getpid(); }\n"
    )
    shared = ("-shared", "-fPIC", "-Wl,-soname,libone.so.1")
    one = compile_program(tmp_path / "libone.so.1", tmp_path / "one.c", flags=shared)
    return one, compile_program(tmp_path / "two.so", tmp_path / "two.c", one, flags=shared[:-1])


def test_needed_libraries_are_read(freezer: ModuleType, libraries: Libraries) -> None:
    """As another reader finds them, by the sections."""
    _, two = libraries

    assert ["libone.so.1", "libc.so.6"] == needed(two.read_bytes())
    assert needed(two.read_bytes()) == [name.decode() for name in freezer.needed(two.read_bytes())]
    assert {} == freezer.needed(b"#!/bin/sh\n")


def test_needed_library_is_forgotten(freezer: ModuleType, libraries: Libraries, tmp_path: Path) -> None:
    """In a copy, which is the same otherwise."""
    _, two = libraries
    (tmp_path / "copies").mkdir()
    copy = freezer._forget_needed(two, b"libone.so.1", tmp_path / "copies")
    pairs = zip(two.read_bytes(), copy.read_bytes(), strict=True)

    assert ["libc.so.6"] * 2 == needed(copy.read_bytes())
    assert sum(before != after for before, after in pairs) <= 8


def test_modules_and_what_they_need_stay_packed(freezer: ModuleType, libraries: Libraries) -> None:
    """All others have to be files: what is opened by its path, or by ctypes, or found by way of a link."""
    one, two = map(str, libraries)
    modules = [("two.so", two, "EXTENSION"), ("libone.so.1", one, "BINARY")]

    assert freezer._are_modules(modules)
    for entry in (
        ("libone.so.1", "two.libs/libone.so.1", "SYMLINK"),
        ("two.libs/libone.so.1", one, "BINARY"),
        ("libopened.so.1", one, "BINARY"),
    ):
        assert not freezer._are_modules([*modules, entry])


def test_cpp_library_stays_where_somebody_needs_it(freezer: ModuleType, tmp_path: Path) -> None:
    """Not protobuf, which only says so."""
    (tmp_path / "three.c").write_text("int three(void);\nint three(void) { return 3; }\n")
    three = compile_program(
        tmp_path / "three.so", tmp_path / "three.c", flags=("-shared", "-fPIC", "-Wl,--no-as-needed", "-lstdc++")
    )
    cpp = [("libstdc++.so.6", str(three), "BINARY"), ("libgcc_s.so.1", str(three), "BINARY")]
    protobufs = ("google/_upb/_message.abi3.so", str(three), "EXTENSION")
    link = ("libx.so", "nowhere/libx.so", "SYMLINK")
    (tmp_path / "copies").mkdir()
    left_out = freezer._without_cpp([protobufs, *cpp, link], tmp_path / "copies")

    assert [protobufs[0], "libx.so"] == [name for name, _, _ in left_out]
    assert "libstdc++.so.6" not in needed(Path(left_out[0][1]).read_bytes())
    copy = tmp_path / "a.so"
    copy.write_bytes(three.read_bytes())
    everything = [protobufs, ("a.so", str(copy), "EXTENSION"), *cpp]
    assert everything == freezer._without_cpp(everything, tmp_path / "copies")
