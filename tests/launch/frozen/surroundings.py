"""Checks of what Python sees of its machine: clocks, files, sockets, chance, and all that it reads when it starts."""

from __future__ import annotations

import os
import sys
import time

from tests.launch.frozen.registry import check, expect, raised


@check
def clocks_run() -> None:
    import datetime
    import subprocess

    begun, cpu = time.monotonic(), time.process_time()
    time.sleep(0.01)
    expect(0.009 < time.monotonic() - begun < 2)
    expect(time.process_time() >= cpu)
    expect(time.perf_counter_ns() < time.perf_counter_ns() + 1)
    expect(abs(time.time() - float(subprocess.check_output(["date", "+%s.%N"]))) < 1)
    expect(abs(datetime.datetime.now(datetime.UTC).timestamp() - time.time()) < 1)
    expect(time.thread_time() < 60)


@check
def cpu_time_is_of_this_process_alone() -> None:
    expect(time.process_time() < 1.5, time.process_time())
    expect(sum(os.times()[:4]) < 1.5, os.times())


@check
def time_zones_follow_the_environment() -> None:
    import datetime

    for zone, names, offset in (
        ("UTC", ("UTC", "UTC"), 0),
        ("XYZ-5", ("XYZ", "XYZ"), 5),
        ("AAA3BBB,M3.2.0,M11.1.0", ("AAA", "BBB"), -3),
    ):
        os.environ["TZ"] = zone
        time.tzset()
        expect(time.tzname == names, (zone, time.tzname))
        expect(time.localtime(1_700_000_000).tm_gmtoff == offset * 3600, zone)
        expect(
            datetime.datetime.fromtimestamp(1_700_000_000).astimezone().utcoffset() == datetime.timedelta(hours=offset)
        )


@check
def temporary_files_are_made() -> None:
    import tempfile

    with tempfile.TemporaryFile("w+") as file:
        file.write("é\n" * 1000)
        file.seek(0)
        expect(file.read() == "é\n" * 1000)
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile(dir=folder) as named:
        expect(os.path.dirname(named.name) == folder)
    expect(tempfile.gettempdir() == os.environ.get("TMPDIR", "/tmp"))  # noqa: S108


@check
def files_are_written_read_and_watched() -> None:
    import mmap
    import shutil
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "größe"
        path.write_text("one\ntwo\r\nthree", newline="")
        expect(path.read_bytes() == b"one\ntwo\r\nthree" and path.read_text().splitlines() == ["one", "two", "three"])
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[:3] = b"ONE"
        expect(path.read_bytes()[:3] == b"ONE")
        (folder / os.fsdecode(b"\xff")).touch()
        expect(sorted(os.listdir(os.fsencode(folder))) == sorted([b"\xff", "größe".encode()]))
        expect([each.name for each in folder.glob("gr*")] == ["größe"])
        expect(raised(FileNotFoundError, open, folder / "none").filename == str(folder / "none"))  # type: ignore[attr-defined]
        raised(IsADirectoryError, open, folder)
        expect(os.stat(path).st_size == 14 and time.time() - path.stat().st_mtime < 60)
    finally:
        shutil.rmtree(folder)


@check
def sockets_connect_and_are_polled() -> None:
    import array
    import select
    import selectors
    import socket
    import tempfile

    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{folder}/s")
        listening.listen()
        with selectors.EpollSelector() as selector, socket.socket(socket.AF_UNIX) as client:
            selector.register(listening, selectors.EVENT_READ)
            expect(selector.select(0) == [])
            client.connect(f"{folder}/s")
            expect(len(selector.select(5)) == 1)
            accepted, _ = listening.accept()
            with accepted:
                client.sendall(b"q")
                expect(accepted.recv(1) == b"q")
                with open("/dev/null") as file:
                    socket.send_fds(client, [b"f"], [file.fileno()])
                _, fds, _, _ = socket.recv_fds(accepted, 1, 1)
                os.close(fds[0])
                credentials = array.array("i", accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                expect(credentials[0] == os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        server.settimeout(5)
        accepted, _ = server.accept()
        accepted.close()
        expect(client.recv(1) == b"")
    one, other = socket.socketpair()
    expect(select.select([], [one], [], 1)[1] == [one] and select.select([other], [], [], 0.01)[0] == [])
    with one, other:
        other.settimeout(0.01)
        raised(TimeoutError, other.recv, 1)
    raised(ConnectionRefusedError, socket.create_connection, ("127.0.0.1", 1))
    expect(socket.gethostname() == os.uname().nodename)
    expect(socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)[0][4] == ("127.0.0.1", 80))


@check
def users_and_groups_are_looked_up() -> None:
    import grp
    import pwd

    expect(pwd.getpwuid(0).pw_name == "root" and grp.getgrgid(0).gr_name == "root")
    raised(KeyError, pwd.getpwnam, "no-such-user")
    expect(os.path.expanduser("~root") == pwd.getpwnam("root").pw_dir)


@check
def logging_writes() -> None:
    import io
    import logging

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(process)d %(threadName)s %(message)s"))
    logger = logging.getLogger("check")
    logger.addHandler(handler)
    logger.warning("é %d", 5)
    expect(stream.getvalue() == f"{os.getpid()} MainThread é 5\n")


@check
def locale_is_c_and_text_is_utf8() -> None:
    import locale

    expect(sys.flags.utf8_mode == 1)
    expect(sys.getfilesystemencoding() == locale.getencoding().lower() == "utf-8" or locale.getencoding() == "UTF-8")
    expect(locale.getpreferredencoding(False).lower() == "utf-8")
    expect(locale.setlocale(locale.LC_ALL))
    expect(locale.localeconv()["decimal_point"] == ".")


@check
def the_command_line_is_known() -> None:
    expect(sys.argv[0] == sys.orig_argv[0] and sys.argv[1:] == sys.orig_argv[1:])
    with open("/proc/self/cmdline", "rb") as file:
        expect(file.read().split(b"\0")[:-1] == [os.fsencode(word) for word in sys.argv])
    expect(os.path.samefile(sys.executable, "/proc/self/exe"))
    expect(sys.path == [])
    expect(sys.frozen is True)  # type: ignore[attr-defined]
    expect(sys.warnoptions == [] and sys.dont_write_bytecode)


@check
def resources_are_limited_and_counted() -> None:
    import resource

    expect(resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0)
    expect(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 1000)
    expect(len(os.sched_getaffinity(0)) >= 1 and (os.cpu_count() or 0) >= 1)


@check
def warnings_are_shown_once() -> None:
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("x", DeprecationWarning, stacklevel=1)
    expect([str(each.message) for each in caught] == ["x"])
