"""Checks of threads, processes, signals, and of what they share."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from tests.launch.frozen.registry import check, expect, raised


@check
def main_thread_is_this_thread() -> None:
    main = threading.main_thread()
    expect(threading.current_thread() is main and main.is_alive() and main.name == "MainThread")
    expect(main.ident == threading.get_ident())
    expect(main.native_id == threading.get_native_id() == os.getpid())
    expect(threading.enumerate() == [main])


@check
def pids_are_of_this_process() -> None:
    expect(os.getpid() == int(os.readlink("/proc/self")))
    with open("/proc/self/stat") as file:
        expect(os.getppid() == int(file.read().rpartition(")")[2].split()[1]))


@check
def threads_share_and_wait() -> None:
    out: list[int] = []
    lock, event = threading.Lock(), threading.Event()

    def work(number: int) -> None:
        for _ in range(2000):
            with lock:
                out.append(number)
        expect(event.wait(10))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    event.set()
    for thread in threads:
        thread.join(10)
    expect(len(out) == 16_000 and not any(thread.is_alive() for thread in threads))


@check
def conditions_barriers_semaphores_and_queues_work() -> None:
    import queue

    condition = threading.Condition()
    with condition:
        expect(not condition.wait(0.01))
    barrier = threading.Barrier(3, timeout=10)
    passed: queue.Queue[int] = queue.Queue()
    threads = [threading.Thread(target=lambda: passed.put(barrier.wait())) for _ in range(3)]
    for thread in threads:
        thread.start()
    expect(sorted(passed.get(timeout=10) for _ in threads) == [0, 1, 2])
    semaphore = threading.BoundedSemaphore(2)
    expect(semaphore.acquire(timeout=1) and semaphore.acquire(timeout=1) and not semaphore.acquire(timeout=0.01))
    semaphore.release(2)
    raised(ValueError, semaphore.release)
    recursive = threading.RLock()
    with recursive, recursive:
        pass
    raised(queue.Empty, passed.get, True, 0.01)


@check
def thread_locals_are_of_each_thread() -> None:
    import contextvars

    local, variable = threading.local(), contextvars.ContextVar("variable", default=0)
    local.x = 1
    variable.set(1)
    seen: list[object] = []

    def work() -> None:
        seen.extend([getattr(local, "x", None), variable.get()])
        local.x = 2

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    expect(seen == [None, 0] and local.x == 1 and variable.get() == 1)


@check
def exceptions_in_threads_are_shown() -> None:
    caught: list[threading.ExceptHookArgs] = []
    threading.excepthook = caught.append
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    expect([each.exc_type for each in caught] == [ZeroDivisionError])


def in_thread(function: object) -> object:
    """Return what a function returns or raises in a thread of its own."""
    results: list[object] = []

    def work() -> None:
        try:
            results.append(function())  # type: ignore[operator]
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return results[0]


@check
def threads_have_room_for_deep_recursion() -> None:
    import json
    import re

    sys.setrecursionlimit(20_000)

    def recurse(depth: int) -> int:
        return 0 if depth == 0 else 1 + recurse(depth - 1)

    expect(in_thread(lambda: recurse(15_000)) == 15_000)

    class Through:
        """Recursion through C."""

        def __init__(self, inner: object) -> None:
            self.inner = inner

        def __repr__(self) -> str:
            return repr(self.inner)

    def nest() -> int:
        value: object = 7
        for _ in range(2000):
            value = Through(value)
        return len(repr(value))

    expect(in_thread(nest) == 1, in_thread(nest))
    deep = "[" * 5000 + "]" * 5000
    expect(json.dumps(in_thread(lambda: json.loads(deep))).replace(" ", "") == deep)
    expect(isinstance(in_thread(lambda: json.loads("[" * 500_000)), RecursionError))
    expect(isinstance(in_thread(lambda: recurse(1_000_000)), RecursionError))
    expect(in_thread(lambda: re.fullmatch("(?:(?:(?:a)*)*)*", "a" * 10_000) is not None))
    compiled = in_thread(lambda: compile("(" * 10_000 + ")" * 10_000, "deep", "eval"))
    expect(isinstance(compiled, (SyntaxError, MemoryError, RecursionError)), compiled)


@check
def many_threads_can_live() -> None:
    event = threading.Event()
    threads = [threading.Thread(target=event.wait, args=(20,)) for _ in range(300)]
    for thread in threads:
        thread.start()
    expect(threading.active_count() == 301)
    event.set()
    for thread in threads:
        thread.join()
    old = threading.stack_size(256 << 10)
    expect(old == 0 and in_thread(lambda: 7) == 7)


@check
def a_fork_has_threads_of_its_own() -> None:
    event = threading.Event()
    other = threading.Thread(target=event.wait, args=(20,))
    other.start()
    reading, writing = os.pipe()
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        try:
            expect(threading.active_count() == 1)
            expect(threading.main_thread().native_id == os.getpid())
            answer = in_thread(lambda: os.getpid())
            os.write(writing, str(answer).encode())
        finally:
            os._exit(7)
    expect(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7)
    expect(int(os.read(reading, 100)) == pid)
    event.set()
    other.join()


@check
def forks_while_threads_allocate_do_not_hang() -> None:
    import warnings

    warnings.simplefilter("ignore")
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            [bytearray(size) for size in range(0, 100_000, 997)]
            {str(number): [number] for number in range(200)}

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(60):
        pid = os.fork()
        if pid == 0:
            kept = [bytearray(size) for size in range(0, 100_000, 997)]
            os._exit(len(kept) & 1)
        expect(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, 1))
    is_over.set()
    for thread in threads:
        thread.join()


@check
def signals_reach_their_handlers() -> None:
    got: list[int] = []
    old = signal.signal(signal.SIGUSR1, lambda number, _frame: got.append(number))
    expect(old == signal.SIG_DFL)
    signal.raise_signal(signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR1)
    expect(got == [signal.SIGUSR1] * 2)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.raise_signal(signal.SIGUSR1)
    expect(signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    expect(signal.getsignal(signal.SIGINT) == signal.SIG_DFL or callable(signal.getsignal(signal.SIGINT)))


@check
def signals_write_to_the_wakeup_descriptor() -> None:
    import socket

    one, other = socket.socketpair()
    one.setblocking(False)
    other.settimeout(5)
    signal.signal(signal.SIGUSR2, lambda *_: None)
    expect(signal.set_wakeup_fd(one.fileno()) == -1)
    os.kill(os.getpid(), signal.SIGUSR2)
    expect(other.recv(9) == bytes([signal.SIGUSR2]))
    expect(signal.set_wakeup_fd(-1) == one.fileno())


@check
def timers_interrupt_sleep() -> None:
    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    raised(TimeoutError, time.sleep, 5)
    expect(signal.getitimer(signal.ITIMER_REAL)[0] == 0)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    raised(TimeoutError, threading.Event().wait, 5)


@check
def signals_can_be_blocked_and_waited_for() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    os.kill(os.getpid(), signal.SIGUSR1)
    expect(signal.SIGUSR1 in signal.sigpending())
    expect(signal.sigwait({signal.SIGUSR1}) == signal.SIGUSR1)
    expect(signal.sigtimedwait({signal.SIGUSR1}, 0.01) is None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


@check
def a_broken_pipe_is_an_exception() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    raised(BrokenPipeError, os.write, writing, b"x")


@check
def children_are_spawned_waited_for_and_read() -> None:
    import subprocess

    run = subprocess.run
    expect(run(["cat"], input=b"abc" * 50_000, capture_output=True, check=True).stdout == b"abc" * 50_000)
    expect(run(["sh", "-c", "exit 3"], check=False).returncode == 3)
    expect(run(["sh", "-c", "kill -9 $$"], check=False).returncode == -9)
    expect(run(["pwd"], cwd="/", capture_output=True, text=True, check=True).stdout == "/\n")
    expect(
        run(["sh", "-c", "echo $A"], env={"A": "é", "PATH": os.defpath}, capture_output=True, check=True).stdout
        == ("é\n".encode())
    )
    raised(FileNotFoundError, run, ["/nonexistent/x"])
    raised(subprocess.TimeoutExpired, lambda: run(["sleep", "9"], timeout=0.05, check=False))
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 4"], os.environ)
    expect(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4)
    expect(os.system("exit 5") >> 8 == 5)  # noqa: S605
    ignoring = run(["sh", "-c", "grep SigIgn /proc/$$/status"], capture_output=True, text=True, check=True).stdout
    expect(int(ignoring.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0, ignoring)


@check
def children_get_what_was_set_in_the_environment() -> None:
    import subprocess

    os.environ["CHECK_ADDED"] = "é"
    del os.environ["CHECK_REMOVED"]
    os.putenv("CHECK_PUT", "p")
    shown = subprocess.run(["env"], capture_output=True, check=True).stdout.splitlines()
    expect("CHECK_ADDED=é".encode() in shown and b"CHECK_PUT=p" in shown)
    expect(not [line for line in shown if line.startswith(b"CHECK_REMOVED")])
    os.environ.pop("CHECK_ADDED")
    raised(KeyError, os.environ.__getitem__, "CHECK_ADDED")
    os.unsetenv("CHECK_PUT")
    os.environ.clear()
    expect(subprocess.run(["/usr/bin/env"], capture_output=True, check=True).stdout == b"")


@check
def asyncio_runs_tasks_and_children() -> None:
    import asyncio

    async def main() -> list[object]:
        process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
        said, _ = await process.communicate(b"abc")
        results: list[object] = list(await asyncio.gather(asyncio.sleep(0.01, 1), asyncio.to_thread(lambda: 2)))
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(5)
        except TimeoutError:
            results.append("timeout")
        loop, caught = asyncio.get_running_loop(), asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, caught.set)
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.wait_for(caught.wait(), 5)

        async def greet(_: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
            client.write(b"hi")
            client.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        results.append(await reader.read())
        writer.close()
        server.close()
        return [said, process.returncode, *results]

    expect(asyncio.run(main()) == [b"abc", 0, 1, 2, "timeout", b"hi"])


@check
def pools_of_threads_work() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        expect(sum(pool.map(lambda x: x * x, range(100))) == 328_350)
        expect(isinstance(pool.submit(lambda: 1 / 0).exception(), ZeroDivisionError))


@check
def processes_can_be_pooled_by_fork() -> None:
    import multiprocessing

    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        expect(pool.map(abs, [-1, 2, -3]) == [1, 2, 3])


@check
def pidfds_and_the_shims_own_calls_work() -> None:
    import select

    import _shim_libc  # type: ignore[import-not-found]  # build/launch/libc.c

    from shim.host import libc

    expect(_shim_libc is not None and libc is not None)
    pid = os.fork()
    if pid == 0:
        time.sleep(0.02)
        os._exit(3)
    fd = os.pidfd_open(pid)
    polled = select.poll()
    polled.register(fd, select.POLLIN)
    expect(polled.poll(5000))
    expect(os.waitid(os.P_PIDFD, fd, os.WEXITED).si_status == 3)  # type: ignore[union-attr]
