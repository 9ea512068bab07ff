"""A start from an image sees its own surroundings, as an ordinary start does, and nothing of the build's."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pty
import re
import select
import signal
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.launch.field import Program, in_mounts

# By its name, its place, and what PyInstaller's bootloader says to itself.
_OWN: Final = ("argv", "orig_argv", "executable", "prefix")
_BOOTLOADERS: Final = ("_PYI_", "PYINSTALLER_RESET_ENVIRONMENT")

_PYTHONS: Final = {
    "PYTHONHOME": "/nonexistent",
    "PYTHONPATH": "/nonexistent",
    "PYTHONUTF8": "0",
    "PYTHONIOENCODING": "latin-1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDEVMODE": "1",
    "PYTHONMALLOC": "debug",
    "PYTHONHASHSEED": "7",
    "PYTHONOPTIMIZE": "0",
    "PYTHONWARNINGS": "error",
    "PYTHONTRACEMALLOC": "5",
    "PYTHONFAULTHANDLER": "1",
    "PYTHONINSPECT": "1",
    "PYTHONSTARTUP": "/nonexistent",
    "PYTHONVERBOSE": "1",
    "PYTHONDUMPREFS": "1",
    "PYTHON_GIL": "0",
}
_ENVIRONMENTS: Final[dict[str, dict[str, str]]] = {
    "empty": {},
    "zone": {"TZ": "Europe/Berlin"},
    "odd zone": {"TZ": "no such zone"},
    "empty zone": {"TZ": ""},
    "C": {"LANG": "C"},
    "foreign": {"LANG": "de_DE.ISO-8859-1", "LC_NUMERIC": "de_DE"},
    "POSIX": {"LC_ALL": "POSIX", "LANG": "C.UTF-8"},
    "no UTF-8": {"A": os.fsdecode(b"\xff"), "ä": "ö"},
    "loader": {"LD_PRELOAD": "/x.so", "LD_LIBRARY_PATH": "/x", "LD_AUDIT": "/x.so", "LD_BIND_NOW": "1"},
    "malloc": {"MALLOC_PERTURB_": "7", "MALLOC_CHECK_": "3", "GLIBC_TUNABLES": "glibc.malloc.check=3"},
    "python": _PYTHONS,
    "bootloader": {
        "_PYI_ARCHIVE_FILE": "/bin/true",
        "_PYI_PARENT_PROCESS_LEVEL": "2",
        "_PYI_APPLICATION_HOME_DIR": "/nonexistent",
        "_PYI_LINUX_PROCESS_NAME": "another",
        "PYINSTALLER_RESET_ENVIRONMENT": "1",
        "PYINSTALLER_STRICT_UNPACK_MODE": "1",
        "_MEIPASS2": "/nonexistent",
    },
    "large": {f"VARIABLE_{number}": "x" * 1000 for number in range(1000)},
}
_IGNORED: Final = {
    "nothing": [],
    "signals": [signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD, signal.SIGRTMIN],
}


def facts(program: Program, environment: dict[str, str], ignored: list[int]) -> dict[str, Any]:
    """Return what a start knows, less what is another program's anyway."""

    def ignore() -> None:
        for signum in ignored:
            signal.signal(signum, signal.SIG_IGN)

    found: dict[str, Any] = program.ask("facts", environment=environment, preexec_fn=ignore)
    for name in _OWN:
        del found[name]
    for name in [name for name in found["environ"] if name.startswith(_BOOTLOADERS)]:
        del found["environ"][name]
    del found["environb"]
    return found


@pytest.mark.parametrize("ignored", _IGNORED.values(), ids=_IGNORED)
@pytest.mark.parametrize("environment", _ENVIRONMENTS.values(), ids=_ENVIRONMENTS)
def test_start_from_an_image_knows_what_an_ordinary_start_knows(
    image_program: Program, static_program: Program, environment: dict[str, str], ignored: list[int]
) -> None:
    """Flags, signals, streams, time zone, locale, environment and all else that Python reads at its start."""
    expected = facts(static_program, environment, ignored)

    assert expected == facts(image_program, environment, ignored)
    assert environment.items() - {item for item in environment.items() if item[0].startswith(_BOOTLOADERS)} <= (
        expected["environ"].items()
    )


def test_environment_reaches_a_start_whole(image_program: Program) -> None:
    """The first of two of one name counts, words without `=` are none, as for every Python."""
    script = "import ctypes, os\n" + (
        "words = [b'A=1', b'A=2', b'B=', b'=x', b'none', b'C=a=b', None]\n"
        f"ctypes.CDLL(None).execve({os.fsencode(image_program.path)!r},"
        " (ctypes.c_char_p * 3)(b'p', b'facts', None), (ctypes.c_char_p * 7)(*words))\n"
    )
    done = subprocess.run(["/usr/bin/python3", "-c", script], capture_output=True, check=True)

    assert {"A": "1", "B": "", "C": "a=b"} == json.loads(done.stdout)["environ"]


def test_command_line_reaches_a_start_whole(image_program: Program) -> None:
    """Empty words, odd bytes, and a name that is not the program's."""
    words = [b"another name", b"facts", b"", b"-X", b"\xff", "é".encode(), b"x" * 100_000]
    done = subprocess.run(words, executable=image_program.path, env={}, capture_output=True, check=True)
    found = json.loads(done.stdout)

    assert [os.fsdecode(word) for word in words] == found["argv"] == found["orig_argv"]
    assert str(image_program.path) == found["executable"]


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York", "UTC"])
def test_time_zone_is_that_of_the_host(program: Program, zone: str) -> None:
    """Read from /etc/localtime where TZ is not set, not the one of the machine that builds."""
    source = f"/usr/share/zoneinfo/{zone}"
    if not os.path.exists(source):
        pytest.fail(f"there is no {source}: install the Debian package tzdata", pytrace=False)
    environment = {"PATH": os.defpath}
    wrapper = in_mounts(
        "mount -t tmpfs shim-test /mnt", f"cp {source} /mnt/zone", *_bind("/mnt/zone", "/etc/localtime")
    )
    names, timezone, _, _ = program.ask("facts", environment=environment, wrapper=wrapper)["tz"]
    script = "import json, time; print(json.dumps([time.tzname, time.timezone]))"
    expected = subprocess.run(
        ["/usr/bin/python3", "-c", script], env={"TZ": zone}, capture_output=True, check=True
    ).stdout

    assert json.loads(expected) == [names, timezone]


def _bind(source: str, target: str) -> list[str]:
    real = os.path.realpath(target)
    return [f"mount --bind {source} {real}"] if os.path.exists(real) else [f"cp {source} {target}"]


def test_nothing_of_chance_is_shared(program: Program) -> None:
    """Numbers, tokens, identifiers and names of temporary files differ in every two starts."""
    answers = [program.ask("chance") for _ in range(4)]

    for one, other in itertools.combinations(answers, 2):
        assert {} == {name: value for name, value in one.items() if value == other[name]}


def test_hashes_are_the_same_in_every_start(image_program: Program, static_program: Program) -> None:
    """Whatever PYTHONHASHSEED says, since dictionaries of the image were made with them."""
    found = {
        each.ask("facts", environment={"PYTHONHASHSEED": seed})["hash"]
        for each in (image_program, static_program)
        for seed in ("random", "1", "0")
    }

    assert 1 == len(found)


# The streams.


@pytest.mark.parametrize("closed", [[*each] for size in range(4) for each in itertools.combinations(range(3), size)])
def test_closed_descriptors_are_no_streams(program: Program, closed: list[int]) -> None:
    """Each combination of 0, 1 and 2; nothing is written into a file that got one of these numbers."""
    redirections = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in closed)
    done = program.run("stdio", wrapper=["sh", "-c", f'exec "$@" {redirections}', "sh"])

    assert 40 + sum(1 << number for number in range(3) if number not in closed) == done.returncode
    assert (b"" if 1 in closed else b"to stdout\n") == done.stdout
    assert (b"" if 2 in closed else b"to stderr\n") == done.stderr


def test_a_terminal_gets_each_line_at_once(program: Program) -> None:
    """A stdout that is a terminal is buffered by lines, though the one of the build was none."""
    main, other = pty.openpty()
    process = subprocess.Popen([str(program.path), "buffered"], stdin=other, stdout=other, stderr=other)
    try:
        assert select.select([main], [], [], 20)[0]
        assert os.read(main, 100).startswith(b"a line\r\n")
    finally:
        process.kill()
        process.wait()
        os.close(main)
        os.close(other)


def test_a_terminal_is_read_by_lines(program: Program) -> None:
    """And each is answered before the next comes."""
    with subprocess.Popen([str(program.path), "read"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for word in (b"one\n", "zwölf\n".encode(), b"\xff\n"):
            process.stdin.write(word)
            process.stdin.flush()
            assert b"got " + word == process.stdout.readline()
        process.stdin.close()
        assert 0 == process.wait(20)


def test_a_full_disk_is_an_error_and_no_crash(program: Program) -> None:
    """What cannot be written is said on stderr, with an exit code that is not 0."""
    with open("/dev/full", "wb") as full:
        done = program.run("facts", stdout=full, stderr=subprocess.PIPE)

    assert 1 == done.returncode
    assert os.strerror(errno.ENOSPC).encode() in done.stderr


def test_a_reader_that_went_is_an_error_and_no_signal(program: Program) -> None:
    """SIGPIPE is ignored, as in every Python."""
    reading, writing = os.pipe()
    os.close(reading)
    done = program.run("facts", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)

    assert 1 == done.returncode
    assert b"BrokenPipeError" in done.stderr


# Ends.


@pytest.mark.parametrize(
    ("how", "code", "output", "errors"),
    [
        ("code", 3, "before\natexit\n", ""),
        ("text", 1, "before\natexit\n", "a text\n"),
        ("none", 0, "before\natexit\n", ""),
        ("raise", 1, "before\natexit\n", r"Traceback .*ValueError: an error of the author's\n(\[PYI-.*\n)?"),
        ("interrupt", 1, "before\natexit\n", r"Traceback .*KeyboardInterrupt.*\n(\[PYI-.*\n)?"),
        ("abort", -signal.SIGABRT, "", ""),
        ("thread", 4, "before\nthread\natexit\n", ""),
    ],
)
def test_ends_are_those_of_every_python(program: Program, how: str, code: int, output: str, errors: str) -> None:
    """Codes, texts, what is still buffered, `atexit`, threads that are waited for, and tracebacks."""
    done = program.run("end", how)

    assert (code, output) == (done.returncode, done.stdout.decode())
    assert re.fullmatch(errors, done.stderr.decode(), re.DOTALL), done.stderr


def test_sigint_ends_a_start_as_every_python(program: Program) -> None:
    """By KeyboardInterrupt, unless the parent ignores it."""
    with subprocess.Popen([str(program.path), "idle"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"idle\n" == process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in process.stderr.read()
        assert process.wait(20) in (1, -signal.SIGINT)


def test_a_start_needs_no_proc(image_program: Program) -> None:
    """Its own name is then what it was called by."""
    found = image_program.ask("facts", wrapper=in_mounts("mount -t tmpfs shim-test /proc"))

    assert str(image_program.path) == found["executable"]


def test_image_is_shared_and_stays_as_the_file_has_it(image_program: Program) -> None:
    """Most of it is never written to, so that many processes have it once."""
    with subprocess.Popen([str(image_program.path), "idle"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        rollup = Path(f"/proc/{process.pid}/smaps").read_text()
        process.kill()
    name, dirty, total = "", 0, 0
    for line in rollup.splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            name = words[5] if len(words) > 5 else ""
        elif words[0] == "Size:" and name == str(image_program.path):
            total += int(words[1])
        elif words[0] == "Private_Dirty:" and name == str(image_program.path):
            dirty += int(words[1])

    assert total > 8000
    assert dirty < total / 5, f"{dirty} of {total} KiB"
