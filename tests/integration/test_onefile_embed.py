"""The onefile's bootloader, its parts in C: libraries from the binary itself, and wide buffers; under sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.integration.compiled import HARNESS, LIMIT_S, SANITIZERS, compile_program
from tests.integration.conftest import PROJECT

SOURCES: Final = PROJECT / "build/onefile"
MARK: Final = ("shim-embedded", "a", b"")
OPENED: Final = ["_PYI_ARCHIVE_FILE=the binary", "_PYI_PARENT_PROCESS_LEVEL=-1"]

Entry = tuple[str, str, bytes]  # name, kind, contents


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a program that loads libraries through embed.c."""
    wraps = ("-Wl,--wrap=dlopen", "-Wl,--wrap=pyi_archive_open", f"-I{HARNESS / 'stubs'}")
    target = tmp_path_factory.mktemp("embed") / "loads"
    return compile_program(target, SOURCES / "embed.c", HARNESS / "loads.c", flags=(*SANITIZERS, *wraps))


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Return a library that answers 42, and the one that it has the 40 from."""
    folder = tmp_path_factory.mktemp("libraries")
    (folder / "forty.c").write_text("int forty(void);\nint forty(void) { return 40; }\n")
    (folder / "answer.c").write_text("int forty(void);\nint answer(void);\nint answer(void) { return forty() + 2; }\n")
    shared = ("-shared", "-fPIC", "-Wl,-soname,libforty.so.1")
    needed = compile_program(folder / "libforty.so.1", folder / "forty.c", flags=shared)
    library = compile_program(folder / "answer.so", folder / "answer.c", needed, flags=("-shared", "-fPIC"))
    return library.read_bytes(), needed.read_bytes()


def run(
    program: Path,
    folder: Path,
    entries: list[Entry],
    *commands: str,
    cut: int = 0,
    through: Path | None = None,
    **environment: str,
) -> list[str]:
    """Append the entries to a copy of the program, less a few bytes in the end, and return what it prints."""
    image = program.read_bytes()
    bound = folder / "bound"
    bound.write_bytes((image + b"".join(contents for _, _, contents in entries))[: -cut or None])
    bound.chmod(0o755)
    words = [word for name, kind, contents in entries for word in (name, kind, str(len(contents)))]
    command = [str(through or bound), str(len(image)), *words, "--", *commands]
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )

    assert (0, "") == (done.returncode, done.stderr)
    lines: list[str] = done.stdout.splitlines()
    first = lines.pop(0)
    assert first == "compiled in"
    return lines


def test_library_is_loaded_with_what_it_needs(program: Path, libraries: tuple[bytes, bytes], tmp_path: Path) -> None:
    """And once."""
    entries = [("lib/answer.so", "a", libraries[0]), MARK, ("libforty.so.1", "a", libraries[1])]

    assert [*OPENED, "42"] == run(program, tmp_path, entries, "open", "lib/answer.so")


def test_files_without_names_serve_where_there_are_none_in_memory(
    program: Path, libraries: tuple[bytes, bytes], tmp_path: Path
) -> None:
    """Nobody sees them in the temporary folder."""
    entries = [MARK, ("lib/answer.so", "a", libraries[0]), ("libforty.so.1", "a", libraries[1])]
    folder = tmp_path / "temporary"
    folder.mkdir()
    lines = run(program, tmp_path, entries, "open", "lib/answer.so", NO_MEMFD="1", TMPDIR=str(folder))

    assert [*OPENED, "42"] == lines
    assert [] == list(folder.iterdir())


def test_nothing_is_loaded_from_an_archive_without_the_mark(
    program: Path, libraries: tuple[bytes, bytes], tmp_path: Path
) -> None:
    """PyInstaller has unpacked it by then, or does so: it is told nothing."""
    lines = run(program, tmp_path, [("lib/answer.so", "a", libraries[0])], "open", "lib/answer.so")

    assert ["_PYI_ARCHIVE_FILE=", "_PYI_PARENT_PROCESS_LEVEL="] == lines[:2]
    assert "lib/answer.so: cannot open shared object file: No such file or directory" == lines[2]


def test_entries_of_other_kinds_are_none_of_its_business(
    program: Path, libraries: tuple[bytes, bytes], tmp_path: Path
) -> None:
    """Only the freezer's libraries are."""
    entries = [MARK, ("lib/answer.so", "b", libraries[0])]

    assert (
        "lib/answer.so: cannot open shared object file" in run(program, tmp_path, entries, "open", "lib/answer.so")[2]
    )


def test_python_is_the_program_itself(program: Path, tmp_path: Path) -> None:
    """Whatever folder the bootloader looks for it in; it has no `answer`."""
    assert ["-1"] == run(program, tmp_path, [], "/no/such/folder/libpython3.12.so.1.0")


def test_needed_library_that_is_nowhere_is_named(program: Path, libraries: tuple[bytes, bytes], tmp_path: Path) -> None:
    """By the loader."""
    lines = run(program, tmp_path, [MARK, ("lib/answer.so", "a", libraries[0])], "open", "lib/answer.so")

    assert "libforty.so.1: cannot open shared object file: No such file or directory" == lines[2]


def test_binary_that_has_been_cut_short_is_named(program: Path, libraries: tuple[bytes, bytes], tmp_path: Path) -> None:
    """What is not there is not read."""
    lines = run(program, tmp_path, [MARK, ("lib/answer.so", "a", libraries[0])], "open", "lib/answer.so", cut=100)

    assert "/dev/null/answer.so: cannot open shared object file: Not a directory" == lines[2]


def test_library_that_there_is_no_room_for_is_named(
    program: Path, libraries: tuple[bytes, bytes], tmp_path: Path
) -> None:
    """Half of it is not loaded: the loader would map what is not there."""
    limited = tmp_path / "limited"
    limited.write_text(f"#!/bin/sh\ntrap '' XFSZ\nulimit -f 1\nexec {tmp_path}/bound \"$@\"\n")
    limited.chmod(0o755)
    entries = [MARK, ("lib/answer.so", "a", libraries[0])]
    lines = run(program, tmp_path, entries, "open", "lib/answer.so", through=limited)

    assert "/dev/null/answer.so: cannot open shared object file: Not a directory" == lines[2]


def test_library_without_a_folder_is_found_as_the_interpreter_asks_for_it(
    program: Path, libraries: tuple[bytes, bytes], tmp_path: Path
) -> None:
    """By ./ and its name; one that there is none of is looked for where that says, not where the system has its own."""
    entries = [MARK, ("answer.so", "a", libraries[0]), ("libforty.so.1", "a", libraries[1])]
    lines = run(program, tmp_path, entries, "open", "./answer.so", "./libm.so.6")

    assert "42" == lines[2]
    assert "./libm.so.6: cannot open shared object file: No such file or directory" == lines[3]


def test_libraries_that_need_each_other_are_no_end_of_it(program: Path, tmp_path: Path) -> None:
    """The loader has its own opinion of them."""
    text = "int {own}(void);\nint {other}(void);\nint {own}(void) {{ return 42; }}\nint (*of_{own})(void) = {other};\n"
    names = {"libone.so": ("answer", "other"), "libtwo.so": ("other", "answer")}
    for name, (own, other) in names.items():
        (tmp_path / f"{name}.c").write_text(text.format(own=own, other=other))
        compile_program(tmp_path / name, tmp_path / f"{name}.c", flags=("-shared", "-fPIC", f"-Wl,-soname,{name}"))
    for name, needed in (("libone.so", "libtwo.so"), ("libtwo.so", "libone.so")):
        flags = ("-shared", "-fPIC", f"-Wl,-soname,{name}", "-Wl,--no-as-needed")
        compile_program(tmp_path / name, tmp_path / f"{name}.c", tmp_path / needed, flags=flags)
    entries = [MARK, *((name, "a", (tmp_path / name).read_bytes()) for name in names)]
    for name in names:
        (tmp_path / name).unlink()
    lines = run(program, tmp_path, entries, "open", "./libone.so")

    assert "cannot open shared object file" in lines[2]


def test_wide_buffers_change_no_byte(tmp_path: Path) -> None:
    """Of files of any size, one of them wider than a buffer, while others are open too."""
    wraps = ("-Wl,--wrap=fopen", "-Wl,--wrap=fclose")
    program = compile_program(
        tmp_path / "copies", SOURCES / "buffers.c", HARNESS / "copies.c", flags=(*SANITIZERS, *wraps)
    )
    files = [tmp_path / str(size) for size in (0, 1, 8191, 262144, 700001)]
    for file in files:
        file.write_bytes(os.urandom(int(file.name)))
    done = subprocess.run([program, tmp_path / "all", *files], capture_output=True, check=False, timeout=LIMIT_S)

    assert (0, b"") == (done.returncode, done.stderr)
    assert b"".join(file.read_bytes() for file in files) == (tmp_path / "all").read_bytes()
