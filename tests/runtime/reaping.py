"""What a reaper does, in processes of its own, since it reaps every child: `python -m tests.runtime.reaping FOLDER`.

Each scenario runs in a fork and leaves its error output, empty if all is well, in a file of its name.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from shim.host import libc, process
from shim.runtime.reaper import Child, Exit, ForegroundReaper, Reaper
from shim.ttrpc.loop import Loop
from tests.fakes import PATIENCE_S, open_descriptors, wait_until


def reap_until(reaper: Reaper, condition: Callable[[], object]) -> None:
    """Reap, as the loop would on each SIGCHLD, until something holds."""

    def is_so() -> object:
        reaper.reap()
        return condition()

    assert wait_until(is_so)


def end_of(child: Child) -> Exit:
    """Return the exit of a child that has been reaped."""
    exit_ = child.wait(PATIENCE_S)
    assert exit_ is not None
    return exit_


def state_of(pid: int) -> str:
    """Return the letter that /proc has for a process's state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def each_child_gets_its_own_exit() -> None:
    """By pid, whatever the order of their ends; none of them is anybody else's business."""
    others: list[Exit] = []
    reaper = Reaper(others.append)
    window = reaper.open_window()
    children = [reaper.spawn(["sh", "-c", f"sleep 0.0{9 - number}; exit {number}"]) for number in range(8)]
    waited: list[tuple[int, int, bool]] = []

    def wait(number: int) -> None:
        exit_ = end_of(children[number])
        waited.append((number, exit_.status, exit_.pid == children[number].pid))

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    reap_until(reaper, lambda: len(waited) == 8)

    assert [(number, number, True) for number in range(8)] == sorted(waited)
    assert [] == others
    assert {} == window.exits
    assert all(abs(end_of(child).at - time.time()) < 60 for child in children)


def an_exit_before_anybody_waits_is_kept() -> None:
    """And may be asked for again and again."""
    reaper = Reaper()
    child = reaper.spawn(["true"])
    assert child.wait(0.0) is None
    reap_until(reaper, lambda: child.wait(0.0) is not None)

    assert [(child.pid, 0)] * 2 == [end_of(child)[:2] for _ in range(2)]


def an_exit_calls_back_once() -> None:
    """Whether it comes before somebody asks for the call, or after."""
    reaper = Reaper()
    calls: list[str] = []
    child = reaper.spawn(["true"])
    child.on_exit(lambda _exit: calls.append("early"))
    reap_until(reaper, lambda: child.wait(0.0) is not None)
    child.on_exit(lambda _exit: calls.append("late"))

    assert ["early", "late"] == calls


def only_a_child_that_lives_is_killed() -> None:
    """Another process with the pid of one that was reaped is safe; this process stands in for it."""
    reaper = Reaper()
    child = reaper.spawn(["sleep", "60"])
    child.kill(signal.SIGTERM)
    reap_until(reaper, lambda: child.wait(0.0) is not None)
    child.pid = os.getpid()
    child.kill(signal.SIGKILL)

    assert 128 + signal.SIGTERM == end_of(child).status


def a_reaped_pid_gets_no_signal() -> None:
    """From the moment that it is reaped, before anybody has heard of it: it may be another process's by then."""
    sent: list[tuple[int, int]] = []
    refused: list[int] = []
    reaper = Reaper()

    def told(exit_: Exit) -> None:
        try:
            reaper.kill_adopted(exit_.pid, signal.SIGKILL, lambda: False)
        except ProcessLookupError:
            refused.append(exit_.pid)

    reaper.listener = told
    real, os.kill = os.kill, lambda pid, signum: sent.append((pid, signum))
    try:
        pid = os.posix_spawn("/bin/true", ["true"], {})
        reaper.kill_adopted(pid, signal.SIGTERM, lambda: False)
        reap_until(reaper, lambda: refused)
        reaper.kill_adopted(pid, signal.SIGINT, lambda: False)  # whoever has the number next
    finally:
        os.kill = real

    assert [pid] == refused
    assert [(pid, signal.SIGTERM), (pid, signal.SIGINT)] == sent


def hundreds_of_exits_at_once_are_all_told() -> None:
    """However slow who listens is, each is told once, with its own status, and none waits for a reader of a queue."""
    others: list[Exit] = []
    window_seen: list[int] = []
    reaper = Reaper()
    window = reaper.open_window()

    def told(exit_: Exit) -> None:
        if len(others) % 50 == 0:
            time.sleep(0.01)
        others.append(exit_)
        window_seen.append(window.exits[exit_.pid].status)

    reaper.listener = told
    wanted = {
        os.posix_spawn("/bin/sh", ["sh", "-c", f"exit {number % 256}"], {}): number % 256 for number in range(300)
    }
    for pid in wanted:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # has ended, and is still to be reaped
    reaper.reap()

    assert wanted == {exit_.pid: exit_.status for exit_ in others}
    assert 300 == len(others)
    assert window_seen == [exit_.status for exit_ in others]


def a_child_outlives_the_thread_that_spawned_it() -> None:
    """A signal at the parent's death would come at the end of the thread that was the parent."""
    reaper = Reaper()
    read_end, write_end = os.pipe()
    children: list[Child] = []

    def spawn() -> None:
        children.append(reaper.spawn(["cat"], stdin=read_end))

    thread = threading.Thread(target=spawn)
    thread.start()
    thread.join()
    os.close(read_end)
    assert wait_until(lambda: len(os.listdir("/proc/self/task")) == 1)
    is_alive = children[0].wait(0.0) is None
    os.close(write_end)
    reap_until(reaper, lambda: children[0].wait(0.0) is not None)

    assert is_alive
    assert 0 == end_of(children[0]).status


def a_wait_may_give_up() -> None:
    """The exit is not lost by that."""
    reaper = Reaper()
    child = reaper.spawn(["sleep", "60"])
    start = time.monotonic()
    assert child.wait(0.05) is None
    assert time.monotonic() - start >= 0.05
    os.kill(child.pid, signal.SIGKILL)
    reap_until(reaper, lambda: child.wait(0.0) is not None)

    assert 137 == end_of(child).status


def signals_count_from_128() -> None:
    """As shells and Go's shim have it."""
    reaper = Reaper()
    for name, expected in {"KILL": 137, "TERM": 143, "SEGV": 139}.items():
        child = reaper.spawn(["sh", "-c", f"ulimit -c 0; kill -{name} $$"])
        reap_until(reaper, lambda child=child: child.wait(0.0) is not None)  # type: ignore[misc]

        assert expected == end_of(child).status


def stopped_and_continued_is_no_exit() -> None:
    """Only ends are."""
    others: list[Exit] = []
    reaper = Reaper(others.append)
    child = reaper.spawn(["sleep", "60"])
    for signum in (signal.SIGSTOP, signal.SIGCONT):
        os.kill(child.pid, signum)
        is_stopped = signum == signal.SIGSTOP
        assert wait_until(lambda stopped=is_stopped: (state_of(child.pid) == "T") is stopped)  # type: ignore[misc]
        reaper.reap()

        assert child.wait(0.0) is None
    os.kill(child.pid, signal.SIGKILL)
    reap_until(reaper, lambda: child.wait(0.0) is not None)
    assert [] == others


def orphans_go_to_the_windows_and_the_listener() -> None:
    """Processes that others started and left to us; a window sees those since its opening, until its close."""
    libc.set_child_subreaper()
    others: list[Exit] = []
    reaper = Reaper(others.append)

    def orphan(status: int) -> int:
        """Let a child leave a grandchild that ends with a status, and wait until that has been reaped."""
        read_end, write_end = os.pipe()
        child = reaper.spawn(["sh", "-c", f"(sleep 0.01; exit {status}) & echo $!"], stdout=write_end)
        os.close(write_end)
        with open(read_end) as file:
            pid = int(file.read())
        reap_until(reaper, lambda: child.wait(0.0) and pid in [exit_.pid for exit_ in others])
        return pid

    before = orphan(3)
    first, second = reaper.open_window(), reaper.open_window()
    both = orphan(4)
    first.close()
    first.close()
    one = orphan(5)
    second.close()

    assert [(before, 3), (both, 4), (one, 5)] == [exit_[:2] for exit_ in others]
    assert {both: 4} == {pid: exit_.status for pid, exit_ in first.exits.items()}
    assert {both: 4, one: 5} == {pid: exit_.status for pid, exit_ in second.exits.items()}


def spawns_and_reaps_may_race() -> None:
    """A child that ends before spawn returns still is that spawn's."""
    others: list[Exit] = []
    reaper = Reaper(others.append)
    stop = threading.Event()
    statuses: list[tuple[int, int]] = []

    def reap() -> None:
        while not stop.wait(0.0005):
            reaper.reap()

    def work(number: int) -> None:
        for step in range(12):
            status = number * 12 + step
            statuses.append((status, end_of(reaper.spawn(["sh", "-c", f"exit {status}"])).status))

    reaping = threading.Thread(target=reap)
    reaping.start()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    reaping.join()

    assert [(number, number) for number in range(48)] == sorted(statuses)
    assert [] == others


def the_loop_reaps_on_sigchld() -> None:
    """Many ends may come with one signal."""
    loop, reaper = Loop(), Reaper()
    loop.on_signal(signal.SIGCHLD, reaper.reap)
    children = [reaper.spawn(["sh", "-c", "exit 9"]) for _ in range(10)]

    def wait() -> None:
        for child in children:
            child.wait(PATIENCE_S)
        loop.stop()

    threading.Thread(target=wait).start()
    loop.run()
    loop.close()

    assert [9] * 10 == [end_of(child).status for child in children]


def a_spawned_child_starts_clean() -> None:
    """Default signals, nothing blocked, no descriptor but the three, and none of the freezer's and systemd's words."""
    for signum in (signal.SIGPIPE, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGCHLD})
    os.environ.update(NOTIFY_SOCKET="/x", _PYI_APPLICATION_HOME_DIR="/x", KEPT="yes", LD_LIBRARY_PATH_ORIG="/own")
    leaked = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaked, False)
    reaper = Reaper()
    read_end, write_end = os.pipe()
    program = "grep -E 'Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd; env"
    child = reaper.spawn(["sh", "-c", program], stdout=write_end)
    os.close(write_end)
    with open(read_end) as file:
        lines = file.read().split("\n")
    reap_until(reaper, lambda: child.wait(0.0) is not None)
    names = {line.partition("=")[0] for line in lines[6:]}

    blocked, ignored = (int(line.split()[1], 16) for line in lines[:2])

    assert 0 == blocked
    assert 0 == ignored
    assert ["0", "1", "2", "3"] == lines[2:6]  # 3 is ls's own
    assert {"KEPT", "LD_LIBRARY_PATH"} <= names
    assert set() == names & {"NOTIFY_SOCKET", "_PYI_APPLICATION_HOME_DIR", "LD_LIBRARY_PATH_ORIG"}


def what_cannot_be_started_says_why() -> None:
    """And leaves no child in the books."""
    reaper = Reaper()
    for spawner in (reaper, ForegroundReaper()):
        told: list[str] = []
        try:
            spawner.spawn(["no-such-program"])
        except FileNotFoundError as error:
            told.append(str(error))

        assert ["[Errno 2] executable file not found in $PATH: 'no-such-program'"] == told
    reaper.reap()


def descriptors_reach_the_child() -> None:
    """The three, and those passed by number."""
    reaper = Reaper()
    read_end, write_end = os.pipe()
    with open("/proc/self/cmdline", "rb") as own:
        child = reaper.spawn(
            ["sh", "-c", "cat <&7 | wc -c; cat; echo err >&2"],
            stdout=write_end,
            stderr=write_end,
            pass_fds={7: own.fileno()},
            env={"PATH": os.environ["PATH"]},
        )
    os.close(write_end)
    with open(read_end) as file:
        lines = file.read().split()
    reap_until(reaper, lambda: child.wait(0.0) is not None)

    assert [str(len(Path("/proc/self/cmdline").read_bytes())), "err"] == lines
    assert 0 == end_of(child).status


def the_foreground_waits_for_its_own_child() -> None:
    """No other's; it may give up, and kills none but its own."""
    spawner = ForegroundReaper()
    before = open_descriptors()
    other = os.posix_spawn("/bin/true", ["true"], {})
    quick, slow = spawner.spawn(["sh", "-c", "exit 7"]), spawner.spawn(["sleep", "60"])
    exits = [quick.wait(), slow.wait(0.05)]
    slow.kill(signal.SIGKILL)
    exits += [slow.wait(), slow.wait(0.0)]
    slow.kill(signal.SIGKILL)
    late = spawner.spawn(["sh", "-c", "exit 8"]).wait(PATIENCE_S)

    assert exits[1] is None
    assert [(quick.pid, 7), *[(slow.pid, 137)] * 2] == [exit_[:2] for exit_ in exits if exit_ is not None]
    assert late is not None
    assert 8 == late.status
    assert (other, 0) == os.waitpid(other, 0)
    assert before == open_descriptors()


def the_foreground_waits_without_a_pidfd() -> None:
    """As on a kernel that has none."""
    real = process.spawn

    def spawn_without(*arguments: Any, **rest: Any) -> process.Spawned:
        spawned = real(*arguments, **rest)
        os.close(spawned.pidfd)
        return spawned._replace(pidfd=-1)

    process.spawn = spawn_without
    the_foreground_waits_for_its_own_child()


SCENARIOS: Final[list[Callable[[], None]]] = [
    each_child_gets_its_own_exit,
    an_exit_before_anybody_waits_is_kept,
    an_exit_calls_back_once,
    only_a_child_that_lives_is_killed,
    a_reaped_pid_gets_no_signal,
    hundreds_of_exits_at_once_are_all_told,
    a_child_outlives_the_thread_that_spawned_it,
    a_wait_may_give_up,
    signals_count_from_128,
    stopped_and_continued_is_no_exit,
    orphans_go_to_the_windows_and_the_listener,
    spawns_and_reaps_may_race,
    the_loop_reaps_on_sigchld,
    a_spawned_child_starts_clean,
    what_cannot_be_started_says_why,
    descriptors_reach_the_child,
    the_foreground_waits_for_its_own_child,
    the_foreground_waits_without_a_pidfd,
]


def run(scenario: Callable[[], None], folder: str) -> None:
    """Run a scenario in a fork, and wait for its end."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        with open(os.path.join(folder, scenario.__name__), "w") as file:
            os.dup2(file.fileno(), 2)
        scenario()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    from tests.runtime.reaping_spawns import SCENARIOS as SPAWNS

    for each in [*SCENARIOS, *SPAWNS]:
        run(each, sys.argv[1])
