"""libc.spawn, in both of its makings: what a child gets, what a failure says; no thread waits, and nothing is left."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from shim.host import process
from tests.fakes import PATIENCE_S, open_descriptors, wait_until
from tests.libc_calls import Calls
from tests.slow_exec import SlowProgram

STATUS: Final = ("cat", "/proc/self/status")

# Sets what a new program should not inherit: all that can be ignored is, also what libc keeps to itself; two handlers,
# and two signals that are held back.
SPOIL: Final = """
import ctypes, platform, signal
number = {"x86_64": 13, "aarch64": 134}[platform.machine()]
for each in {*range(1, 65)} - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
    ignore = (ctypes.c_ulong * 8)(1)
    assert ctypes.CDLL(None).syscall(number, each, ignore, None, ctypes.c_long(8)) == 0
for each in (signal.SIGUSR1, signal.SIGALRM):
    signal.signal(each, print)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGCHLD})
def masks():
    names = ("SigBlk", "SigIgn", "SigCgt")
    return [line for line in open("/proc/self/status").read().splitlines() if line.startswith(names)]
spoilt = masks()
assert int(spoilt[1].split()[1], 16) >> 31 & 0b11 == 0b11
"""


def masks_of(status: str) -> dict[str, int]:
    """Return the signal masks that a /proc/PID/status has."""
    pairs = [line.split(":") for line in status.splitlines() if line.startswith("Sig") and "/" not in line]
    return {name: int(value, 16) for name, value in pairs}


def end_of(child: tuple[int, int]) -> int:
    """Wait for a child, forget its pidfd, and return its exit code, or minus its signal."""
    pid, pidfd = child
    os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


_OTHERS: Final[set[int]] = set()


@pytest.fixture(autouse=True)
def others() -> None:
    """Know the children of other tests' fixtures, such as a containerd that serves until the end."""
    _OTHERS.clear()
    _OTHERS.update(children())


def children() -> set[int]:
    """Return the pids of this process's children, those that have ended and are not collected too."""
    found = process.find_descendants(os.getpid())
    return {pid for pid in found if f"PPid:\t{os.getpid()}\n" in Path(f"/proc/{pid}/status").read_text()}


def own_children() -> list[int]:
    """Return those that the test has started."""
    return sorted(children() - _OTHERS)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[SlowProgram]:
    """Return a program whose exec has to be let go."""
    program = SlowProgram(tmp_path)
    yield program
    program.let_go()


class SpawnThread(threading.Thread):
    """Spawns in a thread of its own."""

    def __init__(self, calls: Calls, program: Path) -> None:
        super().__init__()
        self.told = bytearray(4)
        self.child = (0, 0)
        self._calls, self._program = calls, program

    def run(self) -> None:
        """Spawn."""
        self.child = self._calls.spawn([str(self._program)], told=self.told)

    @property
    def told_pid(self) -> int:
        """The pid that others are told."""
        return int.from_bytes(self.told, sys.byteorder, signed=True)


def test_arguments_and_environment_are_those_given(calls: Calls) -> None:
    """Also empty ones and such as are no UTF-8; nothing of ours is added."""
    odd = os.fsdecode(b"\xff")
    argv = ["sh", "-c", "cat /proc/$$/cmdline /proc/$$/environ; :", "", "two words", odd]
    env = ["B=", f"C={odd}", "D=a=b"]
    found = calls.output(argv, file="/bin/sh", env=env)

    assert [*argv, *env, ""] == found.split("\0")


def test_descriptors_may_have_any_number(calls: Calls) -> None:
    """Ours may be another's number in the child, or already have the right one; no other reaches it."""
    files = []
    for number in (207, 208, 209, 210):
        fd = os.memfd_create("")
        os.write(fd, b"%d" % number)
        files.append(os.dup2(fd, number, inheritable=False))
        os.close(fd)
    program = "cd /dev/fd; cat 207 208 209; readlink 0; exec ls"
    try:
        found = calls.output(["/bin/sh", "-c", program], fds=[(207, 208), (208, 207), (209, 209)])

        assert [b"207", b"210"] == [os.pread(fd, 9, 0) for fd in (207, 210)]
        assert not any(os.get_inheritable(fd) for fd in files)
    finally:
        for fd in files:
            os.close(fd)

    contents, *names = found.splitlines()
    assert "208207209/dev/null" == contents
    assert ["207", "208", "209"] == [name for name in names if name in ("207", "208", "209", "210")]


def test_standard_descriptors_may_change_places(calls: Calls) -> None:
    """As where a process was started with some of them closed, and has opened others there."""
    found = calls.run(
        "data = os.memfd_create(''); os.write(data, b'data'); out = os.dup(1)\n"
        "os.dup2(data, 1); os.dup2(out, 0)\n"
        "fds = [(0, 1), (1, 0), (2, 0)]\n"
        "program = 'cat /dev/stdin; echo; echo more >&2'\n"
        "pid, _ = calls.spawn('/bin/sh', ['sh', '-c', program], [], fds=fds, folder=None, blocked=0, new_group=False,\n"
        "    new_session=False, told=bytearray(4))\n"
        "os.waitpid(pid, 0)"
    )

    assert "data\nmore" == found


def test_folder_is_the_childs_alone(calls: Calls, tmp_path: Path) -> None:
    """A program may be named as seen from there; ours is as before, in each thread."""
    (tmp_path / "program").write_text("#!/bin/sh\npwd -P\n")
    (tmp_path / "program").chmod(0o755)
    before = os.getcwd()
    found = calls.output(["./program"], folder=str(tmp_path))

    assert os.path.realpath(tmp_path) == found.strip()
    assert [before] == [*{os.readlink(f"/proc/self/task/{thread}/cwd") for thread in os.listdir("/proc/self/task")}]


def test_session_and_group_are_ours_or_the_childs_own(calls: Calls) -> None:
    """And the pidfd is the child's: close-on-exec, and a way to end it."""
    found = []
    for new_group, new_session in ((False, False), (True, False), (False, True)):
        pid, pidfd = calls.spawn(["/bin/sleep", "60"], new_group=new_group, new_session=new_session)
        found.append((os.getpgid(pid) == pid, os.getsid(pid) == pid))
        described = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
        is_inheritable = os.get_inheritable(pidfd)
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)

        assert -signal.SIGTERM == end_of((pid, pidfd))
        assert f"Pid:\t{pid}\n" in described
        assert not is_inheritable

    assert [(False, False), (True, False), (True, True)] == found


def test_signals_are_as_the_system_has_them(calls: Calls) -> None:
    """Whatever is ignored, caught or held back here: also 32 and 33, which libc keeps to itself."""
    text = calls.run(
        f"{SPOIL}\nread_end, write_end = os.pipe()\n"
        "pid, _ = calls.spawn('/bin/cat', ['cat', '/proc/self/status'], [], fds=[(0, -1), (1, write_end), (2, 2)],\n"
        "    folder=None, blocked=0, new_group=False, new_session=False, told=bytearray(4))\n"
        "os.close(write_end); print(open(read_end).read())\n"
        "assert masks() == spoilt"
    )

    assert {"SigBlk": 0, "SigCgt": 0, "SigIgn": 0, "SigPnd": 0} == masks_of(text)


def test_blocked_signals_wait(calls: Calls) -> None:
    """Those and no others; ours are as before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    blocked = [signal.SIGTERM, signal.SIGINT, 34, 64]
    mask = sum(1 << (signum - 1) for signum in blocked)
    text = calls.output(STATUS, file="/bin/cat", blocked=mask)

    assert mask == masks_of(text)["SigBlk"]
    assert before == signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize(
    ("code", "file", "folder"),
    [
        (errno.ENOENT, "missing", None),
        (errno.EACCES, "data", None),
        (errno.ENOEXEC, "nonsense", None),
        (errno.ENOTDIR, "data/program", None),
        (errno.ENOENT, "nonsense", "missing"),
        (errno.ENOTDIR, "nonsense", "data"),
    ],
)
def test_a_failure_tells_errno_and_path_and_leaves_nothing(
    calls: Calls, tmp_path: Path, code: int, file: str, folder: str | None
) -> None:
    """The path of the folder where that is what cannot be had."""
    for name in ("data", "nonsense"):
        (tmp_path / name).write_text("no program")
    (tmp_path / "nonsense").chmod(0o755)
    before = open_descriptors()
    with pytest.raises(OSError, match=str(tmp_path)) as caught:
        calls.spawn([str(tmp_path / file)], folder=None if folder is None else str(tmp_path / folder))

    assert (code, os.strerror(code)) == (caught.value.errno, caught.value.strerror)
    assert str(tmp_path / (folder or file)) == caught.value.filename
    assert before == open_descriptors()
    assert [] == own_children()


def test_too_many_arguments_are_refused(calls: Calls) -> None:
    """By the kernel, in words of its own."""
    with pytest.raises(OSError, match="too long") as caught:
        calls.spawn(["/bin/true", *["x" * 100_000] * 200])

    assert errno.E2BIG == caught.value.errno
    assert [] == own_children()


def test_a_descriptor_that_is_not_open_is_refused(calls: Calls) -> None:
    """It is no word about the program, but about what it should get."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        calls.spawn(["/bin/true"], fds=[(5, 987)])


@pytest.mark.parametrize("where", ["file", "argv", "env", "folder"])
def test_a_null_byte_is_no_end_of_a_word(calls: Calls, where: str) -> None:
    """What follows would be lost."""
    given = {"argv": ["true"], "env": [], "file": "/bin/true", "folder": "/"}
    given[where] = ["a\0b"] if where in ("argv", "env") else "a\0b"

    with pytest.raises(ValueError, match="embedded null"):
        calls.spawn(**given)  # type: ignore[arg-type]


def test_wrong_arguments_are_refused(calls: Calls) -> None:
    """Before anything is started."""
    for given in ({"argv": [7]}, {"env": [7]}, {"fds": [(5, "x")]}):
        with pytest.raises((TypeError, ValueError)):
            calls.spawn(**{"argv": ["true"], "file": "/bin/true", **given})  # type: ignore[arg-type]

    assert [] == own_children()


def test_other_threads_go_on_while_an_exec_is_slow(calls: Calls, slow: SlowProgram) -> None:
    """This one would not get to know that the exec waits, and could not let it go on."""
    thread = SpawnThread(calls, slow.path)
    thread.start()
    assert wait_until(slow.is_waiting)
    told, children = thread.told_pid, own_children()
    is_alive = thread.is_alive()
    slow.let_go()
    thread.join(PATIENCE_S)

    assert is_alive
    assert [thread.child[0]] == children
    assert told == (thread.child[0] if calls.is_builtin else -1)
    assert 0 == end_of(thread.child)


def test_a_child_that_is_killed_before_its_exec_is_a_child_that_was_killed(calls: Calls, slow: SlowProgram) -> None:
    """There is no failure to tell of, and its exit has yet to be collected."""
    thread = SpawnThread(calls, slow.path)
    thread.start()
    assert wait_until(slow.is_waiting)
    (pid,) = own_children()
    os.kill(pid, signal.SIGKILL)
    thread.join(PATIENCE_S)

    assert pid == thread.child[0]
    assert -signal.SIGKILL == end_of(thread.child)


def test_a_thousand_spawns_leave_nothing(calls: Calls) -> None:
    """In eight threads at once; each child is its own thread's."""
    before = open_descriptors()
    codes: list[int] = []

    def work(number: int) -> None:
        for step in range(125):
            wanted = (number * 125 + step) % 100
            codes.append(end_of(calls.spawn(["/bin/sh", "-c", f"exit {wanted}"])) - wanted)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [0] * 1000 == codes
    assert before == open_descriptors()
    assert [] == own_children()


def test_a_spawn_needs_no_free_descriptor(calls: Calls) -> None:
    """There is no pidfd then."""
    found = calls.run(
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "try:\n    while True: os.dup(0)\nexcept OSError: pass\n"
        "pid, pidfd = calls.spawn('/bin/true', ['true'], [], fds=[(0, -1), (1, -1), (2, -1)], folder=None, blocked=0,\n"
        "    new_group=False, new_session=False, told=bytearray(4))\n"
        "print(pidfd, os.waitpid(pid, 0)[1])"
    )

    assert "-1 0" == found


def test_process_spawn_hands_everything_on(tmp_path: Path) -> None:
    """Numbers of signals and descriptors, and names of variables, in the form that libc wants."""
    read_end, write_end = os.pipe()
    program = (
        "import os, signal; print(os.getcwd(), os.environ['A'], *map(os.readlink, ('/dev/fd/0', '/dev/fd/2')),"
        "*signal.pthread_sigmask(0, ()), os.getsid(0) == os.getpid(), flush=True); os.write(7, b'last')"
    )
    under_way = process.Spawning()
    child = process.spawn(
        sys.executable,
        ["python", "-I", "-S", "-c", program],
        {"A": "1"},
        stdout=write_end,
        pass_fds={7: write_end},
        blocked=(signal.SIGTERM, signal.SIGTERM),
        folder=str(tmp_path),
        new_session=True,
        under_way=under_way,
    )
    os.close(write_end)
    with open(read_end) as file:
        words = file.read().split()

    assert 0 == end_of(child)
    assert [str(tmp_path), "1", "/dev/null", "/dev/null", "15", "True", "last"] == words
    assert under_way.pid in (child.pid, -1)
