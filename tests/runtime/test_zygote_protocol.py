"""What a zygote makes of a caller's arguments and environment, and where it listens."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.runtime import zygote_protocol
from shim.runtime.zygote_protocol import IDLE_S, IDLE_VARIABLE, RefusedError

WORDS = st.lists(st.binary().map(lambda word: word.replace(b"\0", b"")), min_size=1)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: "=" not in name and "\0" not in name
)
VALUES = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda value: "\0" not in value)


@given(WORDS)
def test_words_come_back_as_they_were_whatever_is_in_them(words: list[bytes]) -> None:
    """Also empty ones, and bytes that are no text."""
    data = b"".join(word + b"\0" for word in words)

    assert words == [os.fsencode(word) for word in zygote_protocol.split_words(data)]


@given(st.dictionaries(NAMES, VALUES))
def test_environment_comes_back_as_it_was(environment: dict[str, str]) -> None:
    """In its order, which a child's environment keeps."""
    data = "".join(f"{name}={value}\0" for name, value in environment.items()).encode()

    assert list(environment.items()) == list(zygote_protocol.split_environment(data).items())


def test_first_of_a_name_counts() -> None:
    """As in a Python that was started with both."""
    assert {"a": "1", "b": "="} == zygote_protocol.split_environment(b"a=1\0b==\0a=2\0")


@pytest.mark.parametrize("data", [b"", b"a", b"a\0b"])
def test_words_without_an_end_are_refused(data: bytes) -> None:
    """The caller is gone, or has changed what /proc shows."""
    with pytest.raises(RefusedError):
        zygote_protocol.split_words(data)


@pytest.mark.parametrize("data", [b"a=1", b"\0", b"a\0", b"=1\0", b"a=1\0\0"])
def test_odd_environment_is_refused(data: bytes) -> None:
    """What Python leaves out and a C program would see."""
    with pytest.raises(RefusedError):
        zygote_protocol.split_environment(data)


@pytest.mark.parametrize("words", [["start"], ["-id", "c", "delete"], ["-v"], ["-v", "-id", "c"], ["--version"]])
def test_actions_of_short_processes_are_wanted(words: list[str]) -> None:
    """What a worker can do in the place of a process of its own."""
    zygote_protocol.check_words(words)


@pytest.mark.parametrize("words", [[], ["-info"], ["-id", "start"], ["-x", "start"], ["-h"], ["stop"], ["-id"]])
def test_other_arguments_are_refused(words: list[str]) -> None:
    """A daemon, -info, and what is wrong: a process of its own does that, or says so."""
    with pytest.raises(RefusedError):
        zygote_protocol.check_words(words)


@pytest.mark.parametrize(
    ("said", "expected"), [("5", 5.0), ("0.5", 0.5), *((word, IDLE_S) for word in ("", "x", "-1", "0", "nan", "inf"))]
)
def test_idle_time_is_a_positive_number(said: str, expected: float) -> None:
    """Anything else is the default."""
    assert expected == zygote_protocol.idle_s({IDLE_VARIABLE: said})


def test_folder_follows_the_user() -> None:
    """root's is in /run, another user's where that may write; a variable moves either."""
    assert "/run/containerd-shim-0" == zygote_protocol.folder(0, {})
    assert "/run/user/1000/containerd-shim" == zygote_protocol.folder(1000, {})
    assert "/x" == zygote_protocol.folder(0, {zygote_protocol.FOLDER_VARIABLE: "/x"})


@given(st.lists(st.integers(min_value=0, max_value=2**64 - 1)), st.integers(min_value=0), st.integers(min_value=1))
def test_name_changes_with_each_number(numbers: list[int], index: int, change: int) -> None:
    """Sixteen digits, and other ones for anything else."""
    name = zygote_protocol.socket_name(numbers)

    assert len(name) == 16
    if numbers:
        other = list(numbers)
        other[index % len(numbers)] ^= change % (2**64 - 1) + 1
        assert name != zygote_protocol.socket_name(other) or other == numbers


def test_name_is_fnv_1a() -> None:
    """The published value for no bytes, and for the bytes of `foobar` and two zeros."""
    assert "cbf29ce484222325" == zygote_protocol.socket_name([])
    expected = 0x85944171F73967E8  # of "foobar"
    for _ in range(2):
        expected = expected * 0x100000001B3 % 2**64

    assert f"{expected:016x}" == zygote_protocol.socket_name([int.from_bytes(b"foobar", "little")])


def test_python_seeds_random_anew_in_a_fork() -> None:
    """Workers rely on it: two of them never draw the same numbers."""
    program = (
        "import os, random\n"
        "for _ in range(2):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        print(random.random(), flush=True); os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)

    assert 2 == len(set(done.stdout.split()))
