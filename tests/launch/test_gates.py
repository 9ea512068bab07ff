"""The gates of a build of the static bootloader let an object through that is as it has to be, and no other."""

from __future__ import annotations

import importlib
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

from tests.fakes import ROOT
from tests.launch.conftest import freeze

SCRIPT: Final = (ROOT / "build/launch/image.ld").read_text()
# What Python has: variables of each kind, constants, and its two thread-local ones.
RIGHT: Final = """
static int zero;
int initialized = 1, *pointer = &zero, common;
const char *const relocated = "text";
const int constant = 7;
__attribute__((section(".PyRuntime"))) int runtime = 1;
__thread void *_Py_tss_tstate;
__thread const char *pkgcontext;
"""


@pytest.fixture
def static(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return build/spec/static.py."""
    monkeypatch.syspath_prepend(str(ROOT / "build/spec"))
    return importlib.import_module("static")


def compiled(folder: Path, source: str, *flags: str) -> bytes:
    """Return an object as the linker would be given it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.fail("there is no C compiler: install gcc", pytrace=False)
    (folder / "made.c").write_text(source)
    target = folder / "made.o"
    command = [compiler, "-O1", "-fdata-sections", *flags, "-c", str(folder / "made.c"), "-o", str(target)]
    subprocess.run(command, check=True)
    return target.read_bytes()


@pytest.mark.parametrize("flags", [(), ("-fcommon",), ("-fPIC",)])
def test_an_object_as_pythons_is_let_through(flags: tuple[str, ...], static: ModuleType, tmp_path: Path) -> None:
    """However the compiler names its sections."""
    static.check_object(compiled(tmp_path, RIGHT, *flags), SCRIPT)


def refusal(static: ModuleType, content: bytes, script: str = SCRIPT) -> str:
    """Return why an object is refused."""
    with pytest.raises(static.BuildFailedError) as caught:
        static.check_object(content, script)
    return str(caught.value)


def test_data_in_a_section_of_another_name_is_refused(static: ModuleType, tmp_path: Path) -> None:
    """It would be outside the image, and as it was at first in each process."""
    source = RIGHT + '__attribute__((section("elsewhere"))) int lost = 1;\n'

    assert refusal(static, compiled(tmp_path, source)).endswith(" elsewhere")


def test_functions_that_run_before_main_are_refused(static: ModuleType, tmp_path: Path) -> None:
    """A process that starts from the image would run them over what they have made in it."""
    source = RIGHT + "__attribute__((constructor)) static void early(void) { initialized = 2; }\n"

    assert ".init_array" in refusal(static, compiled(tmp_path, source))


@pytest.mark.parametrize("pattern", [".PyRuntime", ".data.*", ".bss.*", "COMMON"])
def test_each_kind_of_data_is_asked_of_the_linkers_script(pattern: str, static: ModuleType, tmp_path: Path) -> None:
    """One that it does not gather is refused."""
    lacking = SCRIPT.replace(f"{pattern} ", "", 1) if pattern != "COMMON" else SCRIPT.replace(" COMMON", "", 1)

    assert lacking != SCRIPT
    assert pattern.strip("*") in refusal(static, compiled(tmp_path, RIGHT, "-fcommon"), lacking)


@pytest.mark.parametrize(
    ("source", "word"),
    [
        (RIGHT + "__thread int unknown;\n", "does not know: unknown;"),
        (RIGHT + "static __thread int hidden = 3;\nint *at(void) { return &hidden; }\n", "does not know: hidden;"),
        (RIGHT.replace("__thread void *_Py_tss_tstate;", ""), "that are gone: _Py_tss_tstate"),
    ],
)
def test_thread_local_variables_are_known(source: str, word: str, static: ModuleType, tmp_path: Path) -> None:
    """One that nothing sets at launch is refused, and so is an object without one that is to be set."""
    assert word in refusal(static, compiled(tmp_path, source))


@pytest.fixture(scope="session")
def python() -> tuple[list[str], dict[str, str]]:
    """Return what compiles for the Python that shims have inside, and the environment for it."""
    sys.path.insert(0, str(ROOT / "build/spec"))
    try:
        cpython = importlib.import_module("cpython")
    finally:
        sys.path.remove(str(ROOT / "build/spec"))
    compiler = cpython.Compiler(cpython.machine())
    includes = cpython.find(cpython.machine()).includes
    flags = ["-std=gnu11", "-DPy_BUILD_CORE=1", "-DNDEBUG", *includes]
    return [str(compiler.wrappers() / "cc"), *flags], compiler.environment()


@pytest.mark.timeout(600)  # the first test that needs that Python may have to wait for its build
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("0x030d", "0x030e"),
        ("sizeof(PyThreadState) == 304", "sizeof(PyThreadState) == 312"),
        ("sizeof(_PyThreadStateImpl) == 336", "sizeof(_PyThreadStateImpl) == 344"),
        ("native_thread_id), unsigned long", "native_thread_id), unsigned int"),
        ("current_frame), struct _PyInterpreterFrame *", "current_frame), struct _PyCFrame *"),
        ("autoTSSkey)", "autoTSSkeys)"),
        ("POOL_SIZE == 1 << 14", "POOL_SIZE == 1 << 12"),
        ("MAX_POOLS_IN_ARENA + 1 + 8", "MAX_POOLS_IN_ARENA + 1 + 9"),
        ("sizeof(PyCodeObject) == 208", "sizeof(PyCodeObject) == 216"),
        ("!WITH_PYMALLOC_RADIX_TREE", "WITH_PYMALLOC_RADIX_TREE"),
    ],
)
def test_a_structure_of_another_size_does_not_compile(
    old: str, new: str, python: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    """As it is the header compiles; where CPython is not as it says, it does not."""
    command, environment = python
    text = (ROOT / "build/launch/internals.h").read_text()
    (tmp_path / "made.c").write_text(text.replace(old, new, 1) if old else text)
    done = subprocess.run(
        [*command, "-c", str(tmp_path / "made.c"), "-o", str(tmp_path / "made.o")],
        env=environment,
        capture_output=True,
        check=False,
    )

    assert old in text
    assert (done.returncode == 0) == (old == new), done.stderr


def program(*places: tuple[int, int, int]) -> bytes:
    """Return an ELF file of nothing but program headers: of each segment the flags, the address and the size."""
    elf = importlib.import_module("elf")
    packed = [elf.Segment(elf.LOAD, flags, 0, start, start, size, size, 4096).pack() for flags, start, size in places]
    header = bytearray(b"\x7fELF\x02\x01".ljust(64, b"\0"))
    struct.pack_into("<Q", header, 32, len(header))
    struct.pack_into("<HH", header, 54, len(packed[0]), len(packed))
    return bytes(header) + b"".join(packed)


@pytest.mark.parametrize(
    ("word", "is_right"),
    [
        (0x2000000, False),
        (0x2000FFF, False),
        (0x2000100, True),  # the main thread's name
        (0x2001000, True),
        (0x1000010, True),  # a function
        (0x10000010, True),  # another object
        (7, True),
    ],
)
def test_a_pointer_into_libcs_data_is_found(word: int, is_right: bool, static: ModuleType) -> None:
    """Wherever it lies; what is alike in every process may be pointed to."""
    image = importlib.import_module("image")
    content = program((5, 0x1000000, 0x1000), (6, 0x2000000, 0x1000), (6, 0x10000000, 0x1000))
    part = image.Part(0x10000000, struct.pack("<2Q", 0, word).rstrip(b"\0"), 0x1000)
    try:
        image._check_pointers(content, [part], 0x2000100)
        refused = ""
    except static.BuildFailedError as error:
        refused = str(error)

    assert refused == ("" if is_right else f"the image points into libc's data: {word:#x} at 0x10000008")


def test_a_name_of_the_machine_that_builds_is_found(static: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the middle of a text."""
    image = importlib.import_module("image")
    monkeypatch.setenv("HOME", "/home/builder")
    image._check_text([image.Part(0x10000000, b"a text of nothing", 4096)])
    with pytest.raises(static.BuildFailedError, match="'/home/builder' of the machine that builds"):
        image._check_text([image.Part(0x10000000, b"in /home/builder/src", 4096)])


CONFIGURED: Final = """
#define HAVE_COMPUTED_GOTOS 1
#define PY_SUPPORT_TIER 2
/* #undef POSIX_SEMAPHORES_NOT_ENABLED */
#define SIZEOF_WCHAR_T 4
#define HAVE_GCC_ASM_FOR_X64 1
"""


def test_configurations_that_differ_in_the_processor_alone_are_let_through(static: ModuleType) -> None:
    """As those of both architectures do."""
    other = CONFIGURED.replace("#define HAVE_GCC_ASM_FOR_X64 1", "/* #undef HAVE_GCC_ASM_FOR_X64 */")

    static.check_configuration(other.replace("TIER 2", "TIER 0"), CONFIGURED)


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("#define HAVE_COMPUTED_GOTOS 1", "/* #undef HAVE_COMPUTED_GOTOS */", "HAVE_COMPUTED_GOTOS"),
        (
            "/* #undef POSIX_SEMAPHORES_NOT_ENABLED */",
            "#define POSIX_SEMAPHORES_NOT_ENABLED 1",
            "POSIX_SEMAPHORES_NOT_ENABLED",
        ),
        ("SIZEOF_WCHAR_T 4", "SIZEOF_WCHAR_T 2", "SIZEOF_WCHAR_T"),
        ("#define SIZEOF_WCHAR_T 4\n", "", "SIZEOF_WCHAR_T"),
    ],
)
def test_other_differences_of_configurations_are_refused(old: str, new: str, name: str, static: ModuleType) -> None:
    """A configure that can run nothing guesses, and some guesses are wrong."""
    assert old in CONFIGURED
    with pytest.raises(static.BuildFailedError, match=name):
        static.check_configuration(CONFIGURED.replace(old, new), CONFIGURED)


@pytest.fixture(scope="session")
def leaving() -> Path:
    """Return the program of frozen/leaving.py, which has no image yet."""
    return freeze("leaving", Path(__file__).parent / "frozen" / "leaving.py", "static")


def recorded(program: Path, what: str) -> subprocess.CompletedProcess[bytes]:
    """Let it write its image down, as the build does."""
    environment = {"SHIM_BUILD_IMAGE": "stdout", "LEAVE": what}
    return subprocess.run([str(program)], env=environment, capture_output=True, check=False)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("descriptor", "an open descriptor"),
        ("child", "a child process"),
        ("thread", "a second thread"),
    ],
)
def test_an_image_that_would_have_something_left_is_refused(what: str, complaint: str, leaving: Path) -> None:
    """Also what the warm-up leaves, or the shim's methods in it."""
    done = recorded(leaving, what)

    assert (1, b"") == (done.returncode, done.stdout)
    assert f"it has {complaint} that an image cannot hold\n" == done.stderr.decode()


@pytest.mark.timeout(600)
def test_an_image_differs_by_the_time_alone_that_it_has(leaving: Path) -> None:
    """Which is how the build finds out about it."""
    (nothing, again, time, later) = (recorded(leaving, what) for what in ("nothing", "nothing", "time", "time"))

    assert nothing.returncode == time.returncode == 0
    assert nothing.stdout == again.stdout
    assert time.stdout != later.stdout
