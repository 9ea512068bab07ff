"""The static bootloader: PyInstaller's own, with Python, all modules of cpython.py, upb and build/launch/*.c inside.

Rule: PyInstaller's sources are compiled as they are; the few functions of theirs and of libc that build/launch/boot.c
takes over are renamed by the compiler's command line.  What Python writes to lies in one object, python.o, whose data
build/launch/image.ld gathers; a build in which some of it is left out fails, and so does one whose thread-local
variables, or whose configuration for another architecture, are not those that image.c and cpython.py know.
Spec: PyInstaller's bootloader/wscript (which files, which definitions); protobuf's setup.py; ld's manual, INSERT.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple

import cpython  # beside this file
import elf
import sources
from bootloader import EMBEDDED, module_table
from cpython import FLAGS, BuildFailedError, Compiler, Python, Steps, locked, unpack

HERE: Final = Path(__file__).resolve().parent
LAUNCH: Final = HERE.parent / "launch"
ORDER: Final = HERE.parent / "order" / "functions.txt"
# As PyInstaller's build finds out about musl.
_DEFINITIONS: Final = (
    *("_REENTRANT", "_BSD_SOURCE", "_DEFAULT_SOURCE", "HAVE_STDBOOL_H=1", "HAVE_UNSETENV=1", "HAVE_MKDTEMP=1"),
    *("HAVE_DIRNAME=1", "HAVE_BASENAME=1", "HAVE_WCSDUP=1", "SEMAPHORE_API_POSIX=1", "PYI_SEMAPHORE_API_POSIX=1"),
)
# What boot.c takes over, by the source that calls it.
_RENAMED: Final = {
    "main.c": {"pyi_main": "boot_main"},
    "pyi_main.c": {"pyi_archive_open": "boot_archive_open", "realpath": "boot_realpath"},
    "pyi_dylib_python.c": {"dlopen": "boot_dlopen", "dlsym": "boot_dlsym", "dlclose": "boot_dlclose"},
}
_STRICT: Final = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")
# malloc is ours: without these the compiler takes malloc and memset, in calloc, for calloc.
_OWN_MALLOC: Final = ("-fno-builtin-malloc", "-fno-builtin-calloc", "-fno-builtin-realloc", "-fvisibility=hidden")
_THREAD_STACK: Final = 8 << 20  # as glibc's; musl's own 128 KiB are too few for Python
_TLS: Final = frozenset({"_Py_tss_tstate", "pkgcontext"})  # what image.c sets, and what is NULL between two imports
_KINDS: Final = elf.ALLOCATED | elf.WRITABLE | elf.THREAD_LOCAL
# What of pyconfig.h tells processors apart: how to set the x87's rounding, and how well python.org supports them.
_OF_PROCESSOR: Final = frozenset({"HAVE_GCC_ASM_FOR_X64", "HAVE_GCC_ASM_FOR_X87", "PY_SUPPORT_TIER"})


class Bootloader(NamedTuple):
    """A bootloader for one architecture, and where the packages lie that PyInstaller freezes with it."""

    program: Path
    python: Python  # which it has inside
    build_python: Path  # the same version, for the machine that builds
    protobuf: Path  # google/protobuf/*.py, by the sdist
    pyinstaller: Path  # PyInstaller and what it imports

    @property
    def fingerprint(self) -> str:
        """What a binary that is made with it depends on."""
        return self.program.parent.name


def find(architecture: str) -> Bootloader:
    """Return the bootloader for an architecture, built first if it has not been yet.

    Raises:
        SourceError: An input cannot be had.
        BuildFailedError: It cannot be compiled or linked.
    """
    python = cpython.find(architecture)
    native = cpython.find(cpython.machine())
    configured, natively = ((each.folder / "build" / "pyconfig.h").read_text() for each in (python, native))
    check_configuration(configured, natively)
    compiler = Compiler(architecture)
    tools = _tools()
    protobuf = _unpacked(sources.PROTOBUF)
    inputs = (sources.PROTOBUF, sources.PYINSTALLER, sources.DLMALLOC)
    digest = hashlib.sha256(f"{python.folder.name}\0".encode())
    for path in [*sorted(LAUNCH.iterdir()), ORDER, Path(__file__)]:
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    digest.update(" ".join(source.sha256 for source in inputs).encode())
    folder = sources.cache() / f"bootloader-{architecture}" / digest.hexdigest()[:16]
    with locked(folder):
        if not (folder / "complete").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _build(folder, python, native, compiler, protobuf)
            (folder / "complete").touch()
    return Bootloader(folder / "bootloader", python, native.executable, protobuf, tools)


def _unpacked(source: sources.Source) -> Path:
    """Return the folder of an unpacked input."""
    folder = sources.cache() / "unpacked" / source.sha256[:16]
    with locked(folder):
        if not folder.is_dir():
            unpack(sources.get(source), folder)
    return folder


def _tools() -> Path:
    """Return a folder for PYTHONPATH with PyInstaller as its sdist has it and with what it imports."""
    digest = hashlib.sha256("".join(tool.sha256 for tool in (sources.PYINSTALLER, *sources.TOOLS)).encode())
    folder = sources.cache() / "tools" / digest.hexdigest()[:16]
    unpacked = _unpacked(sources.PYINSTALLER)
    with locked(folder):
        if not folder.is_dir():
            half = folder.with_name(f".{folder.name}.half")
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(unpacked / "PyInstaller", half / "PyInstaller")
            for tool in sources.TOOLS:
                shutil.unpack_archive(sources.get(tool), half, "zip")
            half.rename(folder)
    return folder


def _build(folder: Path, python: Python, native: Python, compiler: Compiler, protobuf: Path) -> None:
    bootloader = _unpacked(sources.PYINSTALLER) / "bootloader"
    malloc = _unpacked(sources.DLMALLOC) / "src"
    code = folder / "objects"
    code.mkdir()
    _write_modules(native, code / "modules.c")
    _write_functions(bootloader / "src" / "pyi_dylib_python.c", code / "functions.inc")
    jobs: list[tuple[Path, list[str]]] = []
    includes = [*python.includes, f"-I{python.folder / 'source' / 'Python'}", f"-I{bootloader / 'src'}"]
    headers = [flag.replace("-I", "-isystem", 1) for flag in includes]
    own = [*_STRICT, *_OWN_MALLOC, "-fno-strict-overflow", *headers, f"-I{malloc}", f"-I{code}"]
    own += ["-DPy_BUILD_CORE=1", "-DHAVE_STDBOOL_H=1", "-DNDEBUG"]
    jobs += [(path, own) for path in [*sorted(LAUNCH.glob("*.c")), code / "modules.c"]]
    upb = [f"-I{protobuf}", f"-I{protobuf / 'utf8_range'}", *python.includes[:2], "-DNDEBUG", "-fvisibility=hidden"]
    places = ("google/protobuf/*.c", "python/*.c", "upb/**/*.c", "utf8_range/*.c")
    upb_files = sorted(path for place in places for path in protobuf.glob(place))
    jobs += [(path, ["-std=gnu11", *upb, f"-ffile-prefix-map={protobuf}=."]) for path in upb_files]
    pyinstaller = [f"-D{definition}" for definition in _DEFINITIONS]
    pyinstaller += [f"-I{bootloader / 'zlib'}", f"-I{bootloader / 'src'}", f"-ffile-prefix-map={bootloader}=."]
    theirs = sorted([*bootloader.glob("src/*.c"), *bootloader.glob("zlib/*.c")])
    for path in (path for path in theirs if "win32" not in path.name and "apple" not in path.name):
        renamed = [f"-D{old}={new}" for old, new in _RENAMED.get(path.name, {}).items()]
        jobs.append((path, [*pyinstaller, *renamed]))
    objects = {path: code / f"{number}-{path.stem}.o" for number, (path, _) in enumerate(jobs)}
    what = f"bootloader for {python.architecture}"
    with Steps(what, folder / "log", compiler.environment()) as steps:
        with ThreadPoolExecutor() as pool:
            compiled = [
                pool.submit(
                    steps.run, "compile", ["cc", *FLAGS, *flags, "-c", str(path), "-o", str(objects[path])], folder
                )
                for path, flags in jobs
            ]
            for each in compiled:
                each.result()
        mine = [str(objects[path]) for path, _ in jobs if path not in theirs]
        # Their zlib is part of Python's, in which there is more.
        rest = [str(objects[path]) for path in objects if path in theirs and path.parent.name != "zlib"]
        library, *rest_of_python = python.libraries
        shutil.copyfile(library, folder / library.name)
        steps.run("link", ["ar", "d", library.name, "ceval.o"], folder)  # both of ours take its place
        whole = [library.name, str(rest_of_python[0])]
        partly = [str(each) for each in (*rest_of_python[1:], *python.more_libraries)]
        # Of the second main loop, whatever the first one has too is left out.
        link = ["ld", "-r", "-z", "muldefs", "-o", "python.o", *mine, "--whole-archive", *whole, "--no-whole-archive"]
        steps.run("link", [*link, *partly], folder)
        check_object((folder / "python.o").read_bytes(), (LAUNCH / "image.ld").read_text())
        program = ["cc", "-static", "-no-pie", *rest, "python.o"]
        _write_script(code / "program.ld")
        program += [f"-Wl,-T,{code / 'program.ld'}", "-Wl,--build-id=none", "-Wl,-z,norelro", "-Wl,--gc-sections"]
        program += [f"-Wl,-z,stack-size={_THREAD_STACK}"]
        steps.run("link", [*program, "-s", "-o", "bootloader"], folder)
        # The same at the same addresses with its symbols, for a debugger.
        steps.run("link", [*program, "-o", "bootloader.debug"], folder)


def check_configuration(text: str, native: str) -> None:
    """Compare the pyconfig.h of one architecture with that of the machine that builds.

    Raises:
        BuildFailedError: They differ in more than what tells the processors apart; a configure that can run nothing
            takes semaphores for broken, and others to be there.
    """
    pattern = re.compile(r"^(?:#define (\w+)(.*)|/\* #undef (\w+) \*/)$", re.MULTILINE)
    one, other = (
        {defined or undefined: value if defined else None for defined, value, undefined in pattern.findall(each)}
        for each in (text, native)
    )
    different = {name for name in one.keys() | other.keys() if one.get(name, "") != other.get(name, "")} - _OF_PROCESSOR
    if different:
        raise BuildFailedError(f"Python is configured otherwise than here: {', '.join(sorted(different))}")


def check_object(content: bytes, script: str) -> None:
    """Look at python.o: all that Python can write to has to be in its image.

    Raises:
        BuildFailedError: It has a writable section that the linker's script does not gather, or a thread-local variable
            that image.c does not know.
    """
    gathered = " ".join(re.findall(r"\*python\.o\(([^)]*)\)", script)).split()
    symbols = elf.symbols(content)
    names = {each.name for each in elf.sections(content) if each.flags & _KINDS == elf.ALLOCATED | elf.WRITABLE}
    names |= {"COMMON" for each in symbols if each.section == elf.COMMON}
    left_out = sorted(name for name in names if not any(fnmatchcase(name, pattern) for pattern in gathered))
    if left_out:
        raise BuildFailedError(f"image.ld leaves out what Python writes to in {', '.join(left_out)}")
    variables = {each.name for each in symbols if each.is_thread_local}
    if variables != _TLS:
        unknown, gone = ", ".join(sorted(variables - _TLS)), ", ".join(sorted(_TLS - variables))
        raise BuildFailedError(f"thread-local variables that image.c does not know: {unknown}; that are gone: {gone}")


def _write_script(path: Path) -> None:
    """Write the linker script: image.ld, and the functions that a shim calls side by side.

    The kernel maps sixteen pages of a file around each that is touched, so what lies between would be in memory too.
    """
    functions = [line for line in ORDER.read_text().splitlines() if line and not line.startswith("#")]
    wanted = "".join(f"    *(.text.{name})\n" for name in functions)
    called = f"SECTIONS {{\n  .text.called : {{\n{wanted}  }}\n}} INSERT BEFORE .text;\n"
    path.write_text((LAUNCH / "image.ld").read_text() + called)


def _write_modules(native: Python, path: Path) -> None:
    """Write the table of the modules that are compiled in, by the Python that will run them."""
    program = (
        "import marshal, pathlib, sys\n"
        "folder, *names = sys.argv[1:]\n"
        "for name in names:\n"
        "    file = pathlib.Path(folder, 'encodings', (name.partition('.')[2] or '__init__') + '.py')\n"
        "    code = compile(file.read_bytes(), f'<frozen {name}>', 'exec', dont_inherit=True, optimize=2)\n"
        "    print(name, marshal.dumps(code).hex())\n"
    )
    library = native.folder / "lib" / f"python{cpython.VERSION}"
    command = [str(native.executable), "-I", "-S", "-c", program, str(library), *EMBEDDED]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = (line.partition(" ") for line in said.splitlines())
    path.write_text(module_table({name: bytes.fromhex(code) for name, _, code in lines}))


def _write_functions(source: Path, path: Path) -> None:
    """Write the table of what the bootloader looks up in Python's library, of what Python 3.13 has of it."""
    names = re.findall(r"^\s*_IMPORT_FUNCTION\((\w+)\)", source.read_text(), re.MULTILINE)
    absent = {"PyEval_EvalCode", "Py_InitializeFromInitConfig"}  # boot.c's own; since 3.14, like the next
    names = [name for name in names if name not in absent and not name.startswith("PyInitConfig_")]
    path.write_text("".join(f"FUNCTION({name}),\n" for name in dict.fromkeys(names)))
