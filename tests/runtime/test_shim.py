"""What shim authors are promised: classes as programs, both ways to a daemon, called through their sockets."""

import contextlib
import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf.empty_pb2 import Empty

from shim.api import task_v2_pb2, task_v3_pb2
from shim.api.bootstrap_pb2 import BootstrapParams
from shim.api.sandbox_ttrpc import SANDBOX_RPCS, SandboxRpcs
from shim.api.task_v3_ttrpc import TASK_RPCS, TaskRpcs
from shim.runtime.address import socket_path
from shim.ttrpc import Client, Code, Rpc, RpcError, connect
from tests.fakes import PATIENCE_S, wait_until
from tests.runtime.home import Home, Make, ask, facts_of

RUNTIME: Final = "io.containerd.test.v1"
# Both ways to a daemon are the same from its first call on.
once = pytest.mark.parametrize("spawn", ["fork"], indirect=True)
END: Final = [
    "serving api on socket",
    "shutting down shim instance",
    "server stopped, connections closed",
    "publisher stopped",
    "reaper stopped",
]


def refusal(client: Client, rpc: Rpc[Any, Any], **fields: Any) -> tuple[int, str]:
    """Return how a call fails."""
    with pytest.raises(RpcError) as caught:
        ask(client, rpc, **fields)
    return caught.value.code, caught.value.message


def second_version(rpc: Rpc[Any, Any]) -> Rpc[Any, Any]:
    """Return the same method of task v2."""
    response = Empty if rpc.response is Empty else getattr(task_v2_pb2, rpc.response.__name__)
    return Rpc("containerd.task.v2.Task", rpc.name, getattr(task_v2_pb2, rpc.request.__name__), response)


def later(client: Client, rpc: Rpc[Any, Any], **fields: Any) -> threading.Thread:
    """Call a method in a thread."""
    thread = threading.Thread(target=lambda: ask(client, rpc, **fields))
    thread.start()
    return thread


def last_dump(home: Home) -> str:
    """Return what the last SIGUSR1 has brought to the log."""
    return home.log().rpartition("=== BEGIN goroutine stack dump ===\n")[2].partition("=== END")[0]


@once
def test_what_a_task_leaves_out_is_unimplemented(make: Make) -> None:
    """In containerd's words, by v2 and by v3; so is a whole service that is not there."""
    with make("bare").connect() as client:
        for rpc in TASK_RPCS:
            if rpc.name != "Shutdown":
                expected = (Code.UNIMPLEMENTED, f"method {rpc.name}")
                assert expected == refusal(client, rpc)
                assert expected == refusal(client, second_version(rpc))
        unknown = refusal(client, SANDBOX_RPCS[0])
        ask(client, second_version(TaskRpcs.SHUTDOWN))

    assert (Code.UNIMPLEMENTED, "service containerd.runtime.sandbox.v1.Sandbox") == unknown


@once
def test_one_class_may_be_three_services(make: Make) -> None:
    """Shim, Task and Sandbox: task v2, task v3, and the sandbox service with what it leaves out."""
    with make("pod").connect() as client:
        third = ask(client, TaskRpcs.STATE, id="c")
        second = ask(client, second_version(TaskRpcs.STATE), id="c")
        ask(client, SandboxRpcs.CREATE_SANDBOX, sandbox_id="s")
        ask(client, SandboxRpcs.PING_SANDBOX, sandbox_id="s")
        left_out = refusal(client, SandboxRpcs.PLATFORM)

    assert task_v3_pb2.StateResponse(id="c") == third
    assert task_v2_pb2.StateResponse(id="c") == second
    assert (Code.UNIMPLEMENTED, "method Platform") == left_out


@once
def test_inline_methods_run_on_the_loop(make: Make, style: str) -> None:
    """Others of a blocking shim in a thread of their own, of an asyncio shim on the loop as well."""
    with make("plain").connect() as client:
        on_loop = [ask(client, rpc).processes[0].pid for rpc in (TaskRpcs.PIDS, second_version(TaskRpcs.PIDS))]
        thread = facts_of(client)["thread"]

    assert [1, 1] == on_loop
    assert ("worker" if style == "blocking" else "MainThread") == thread


@once
def test_a_bug_in_a_handler_ends_its_call_alone(make: Make) -> None:
    """It is told to the caller and to the log."""
    home = make("plain")
    with home.connect() as client:
        told = refusal(client, TaskRpcs.STATS)
        ask(client, TaskRpcs.CONNECT)

    assert (Code.UNKNOWN, "a bug") == told
    assert 'msg="error in containerd.task.v3.Task/Stats" error="ZeroDivisionError: a bug" trace="' in home.log()


@pytest.mark.parametrize("way", ["Shutdown", "SIGTERM", "SIGINT"])
def test_the_daemon_ends_in_good_order(make: Make, way: str) -> None:
    """By the call, or by signals; a Wait that is never answered does not keep it."""
    home = make("plain")
    client = home.connect()
    (pid,) = home.daemons()
    if way == "Shutdown":
        ask(client, TaskRpcs.SHUTDOWN)
    else:
        os.kill(pid, getattr(signal, way))

    assert home.has_ended()
    messages = re.findall(r'level=info msg="?([^"=]*)"? ', home.log())
    assert ["serving api on socket", "shutting down shim instance", "server stopped, connections closed"] == messages[
        :3
    ]
    assert ["publisher stopped", "reaper stopped"] == messages[3:]
    client.close()


@once
def test_wait_shim_may_be_the_shims_own(make: Make) -> None:
    """The daemon ends when it returns, and not by the latch, which it does not ask."""
    home = make("waiting")
    with home.connect() as client:
        ask(client, TaskRpcs.SHUTDOWN)
        ask(client, TaskRpcs.CONNECT)
        (home.bundle / "end").touch()

        assert home.has_ended()


def test_sigterm_ends_a_daemon_whose_wait_shim_does_not_return(make: Make) -> None:
    """Whatever it waits for."""
    home = make("waiting")
    home.connect().close()
    os.kill(home.daemons()[0], signal.SIGTERM)

    assert home.has_ended()


@once
def test_a_wait_shim_that_fails_ends_the_daemon(make: Make) -> None:
    """And says so."""
    home = make("waiting")
    home.connect().close()
    (home.bundle / "fail").touch()

    assert home.has_ended()
    assert 'msg="error in wait_shim" error="ZeroDivisionError: a bug in wait_shim" trace="' in home.log()


def test_a_daemon_that_cannot_make_its_services_says_so_and_goes(make: Make) -> None:
    """The reason is in the log, and the socket is removed."""
    home = make("broken")

    assert 0 == home.start().returncode
    assert home.has_ended()
    assert "ZeroDivisionError: a bug in create_task_service" in home.log()


@once
def test_a_shim_without_a_task_says_what_is_missing(make: Make) -> None:
    """In the log of the daemon that goes."""
    home = make("nothing")

    assert 0 == home.start().returncode
    assert home.has_ended()
    assert "Nothing serves nothing: override create_task_service()" in home.log()


@once
@pytest.mark.parametrize("way", ["Shutdown", "SIGTERM"])
def test_a_bug_at_the_end_does_not_keep_the_daemon(make: Make, way: str) -> None:
    """The shim's own callback failed; the daemon's comes after it."""
    home = make("deaf")
    with home.connect() as client:
        if way == "SIGTERM":
            os.kill(home.daemons()[0], signal.SIGTERM)
        else:
            refusal(client, TaskRpcs.SHUTDOWN)

        assert home.has_ended()


def test_spawn_twice_for_one_group_is_once(make: Make) -> None:
    """The same address; the environment that it was given is the daemon's."""
    home = make("spawning")
    home.environment["SPAWNING"] = "same"
    with home.connect() as client:
        environment = facts_of(client)["environment"]

    assert ("hello", "/bin:/usr/bin") == (environment["GREETING"], environment["PATH"])
    assert 1 == len(home.daemons())


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("other", "{runtime}: one start makes one daemon, and {socket} is bound already"),
        ("fails", "{runtime}: no way"),
        ("bug", "ZeroDivisionError: a bug in start_shim"),
        ("environment", "TypeError: str expected, not int"),
    ],
)
def test_a_start_that_fails_after_spawn_leaves_nothing(make: Make, how: str, text: str) -> None:
    """No process, no socket, nothing on stdout."""
    home = make("spawning")
    home.environment["SPAWNING"] = how
    result = home.start()

    assert (1, b"") == (result.returncode, result.stdout)
    assert text.format(runtime=RUNTIME, socket=home.socket) in result.stderr.decode()
    assert [] == home.daemons()
    assert [] == [*home.sockets.glob("*")]


def test_an_empty_group_is_a_group(make: Make) -> None:
    """That of the namespace; None is the container's own."""
    home = make("spawning")
    home.environment["SPAWNING"] = "empty"
    result = home.start()
    expected = socket_path("/a", "n", "", str(home.sockets))

    assert (0, f"unix://{expected}") == (result.returncode, result.stdout.decode())
    assert expected != str(home.socket)
    with connect(result.stdout.decode()) as client:
        ask(client, TaskRpcs.CONNECT)


def test_debug_that_comes_on_stdin_is_the_shims_too(make: Make) -> None:
    """As if it had been a flag."""
    home = make("plain")
    params = BootstrapParams(
        instance_id=home.id, namespace="n", log_level="LOG_LEVEL_DEBUG", socket_dir=str(home.sockets)
    )

    assert 0 == home.start(stdin=params.SerializeToString()).returncode
    with connect(home.address) as client:
        assert facts_of(client)["debug"]


@once
@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_the_default_log_level_is_the_programs_choice(make: Make, level: str) -> None:
    """`-debug` shows all the same."""
    home = make("plain")
    home.environment["SHIM_CONFIG"] = f'{{"default_log_level": "{level}"}}'
    with home.connect() as client:
        ask(client, TaskRpcs.STATE)
    shown = re.findall(r'msg="from state (\w+)"', home.log())
    levels = ["debug", "info", "warning", "error"]

    assert levels[levels.index(level) :] == shown


@once
@pytest.mark.parametrize("style", ["blocking"])
@pytest.mark.parametrize("when", ["early", "late"])
def test_logging_writes_to_the_shims_log_once_it_is_loaded(make: Make, when: str) -> None:
    """By the shim's modules, or by what makes its services."""
    home = make("plain")
    home.environment["SHIM_LOGGING"] = when
    with home.connect() as client:
        ask(client, TaskRpcs.STATE)

    assert re.search(r'Z" level=warning msg="by logging" logger=mine runtime=io\.containerd\.test\.v1\n', home.log())


@once
@pytest.mark.parametrize("style", ["blocking"])
def test_logging_is_left_alone_if_the_program_says_so(make: Make) -> None:
    """It writes to stderr then, which is the same file."""
    home = make("plain")
    home.environment |= {"SHIM_LOGGING": "early", "SHIM_CONFIG": '{"no_setup_logger": true}'}
    with home.connect() as client:
        ask(client, TaskRpcs.STATE)

    assert "\nby logging\n" in home.log()


@once
@pytest.mark.parametrize("style", ["blocking"])
def test_who_does_not_use_logging_does_not_have_it(make: Make) -> None:
    """Nor asyncio, in a daemon that does without."""
    with make("plain").connect() as client:
        loaded = set(facts_of(client)["modules"])

    assert set() == loaded & {"logging", "asyncio", "shim.runtime.log_handler", "shim.aio"}


@once
def test_nothing_is_imported_once_the_daemon_serves(make: Make) -> None:
    """A frozen one's files may be gone by then: by the end of its first calls it has loaded nothing more."""
    with make("plain").connect() as client:
        first = facts_of(client)["modules"]
        with contextlib.suppress(RpcError):
            ask(client, TaskRpcs.STATS)
        for rpc in (TaskRpcs.STATE, TaskRpcs.PIDS):
            ask(client, rpc)
            ask(client, second_version(rpc))
        last = facts_of(client)["modules"]

    assert first == last


@once
def test_a_level_that_there_is_not_fails_the_start(make: Make) -> None:
    """Where it is seen."""
    home = make("plain")
    home.environment["SHIM_CONFIG"] = '{"default_log_level": "warn"}'
    result = home.start()

    assert (1, b"") == (result.returncode, result.stdout)
    assert result.stderr.decode() == (
        f"{RUNTIME}: default_log_level must be one of debug, info, warning, error, is 'warn'"
    )
    assert [] == home.daemons()


@once
@pytest.mark.parametrize("switch", ["", "no_sub_reaper"])
def test_orphans_come_to_the_daemon_unless_it_does_not_want_them(make: Make, switch: str, tmp_path: Path) -> None:
    """Their new parent tells."""
    home = make("plain")
    home.environment["SHIM_CONFIG"] = f'{{"{switch}": true}}' if switch else "{}"
    pid_file, output = tmp_path / "pid", tmp_path / "output"
    orphan = f"(echo $$; sleep 30) & echo $! > {pid_file}"
    with home.connect() as client:
        ask(client, TaskRpcs.CREATE, stdin=orphan, stdout=str(output))
        (daemon,) = home.daemons()
        pid = int(pid_file.read_text())

        def parent() -> int:
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

        try:
            assert wait_until(lambda: (parent() == daemon) is not bool(switch))
        finally:
            os.kill(pid, signal.SIGKILL)


@once
def test_the_monitor_tells_of_exits_unless_there_is_no_reaper(make: Make) -> None:
    """Then a child stays a zombie for the author to wait for."""
    home = make("watching")
    with home.connect() as client:
        assert 7 == ask(client, TaskRpcs.CREATE, stdin="exit 7", stdout=str(PATIENCE_S)).pid


@once
def test_without_a_reaper_nobody_is_told(make: Make) -> None:
    """And the log does not say that one has stopped."""
    home = make("watching")
    home.environment["SHIM_CONFIG"] = '{"no_reaper": true}'
    with home.connect() as client:
        assert 0 == ask(client, TaskRpcs.CREATE, stdin="exit 7", stdout="0.2").pid
        ask(client, TaskRpcs.SHUTDOWN)

    assert home.has_ended()
    assert "publisher stopped" in home.log()
    assert "reaper stopped" not in home.log()


@once
def test_sigusr1_tells_what_the_daemon_does(make: Make, tmp_path: Path) -> None:
    """Stacks, events, open calls with their age, and what the shim says up to its bug."""
    home = make("describing")
    home.environment["TTRPC_ADDRESS"] = str(tmp_path / "nobody")
    busy = tmp_path / "busy"
    busy.touch()
    with home.connect() as client:
        hanging = later(client, TaskRpcs.KILL, id=str(busy))
        waiting = later(client, TaskRpcs.WAIT, id="c")

        def both_are_open() -> bool:
            seen = home.log().count("=== END goroutine stack dump ===")
            os.kill(home.daemons()[0], signal.SIGUSR1)
            assert wait_until(lambda: home.log().count("=== END goroutine stack dump ===") > seen)
            return last_dump(home).count("open call ") == 2

        assert wait_until(both_are_open)
        busy.unlink()
        hanging.join(PATIENCE_S)
        ask(client, TaskRpcs.DELETE)
        waiting.join(PATIENCE_S)
    dump = last_dump(home)

    assert re.search(r'File ".*/serve.py", line \d+ in dump\n', dump)
    assert "\nevents waiting for containerd: 0\n" in dump
    for method in ("Kill", "Wait"):
        assert re.search(
            rf"\nopen call containerd.task.v3.Task/{method}: for \d+\.\d{{3}} s, of pid {os.getpid()}\n", dump
        )
    assert "\na line of mine\nerror in describe: ZeroDivisionError: a bug in describe\n" in dump


@once
@pytest.mark.parametrize(
    ("deleted", "expected"),
    [
        ([], (0, 137, None)),
        ([7, 0], (7, 0, None)),
        ([7, 3, 1700000000.25], (7, 3, 1700000000_250000000)),
        ([7, 3, 0.0], (7, 3, 0)),
        ([7, 3, -0.25], (7, 3, -250000000)),
    ],
)
def test_delete_answers_when_the_container_ended(make: Make, deleted: list[float], expected: tuple[Any, ...]) -> None:
    """To the nanosecond; now, if the shim does not know."""
    home = make("deleting")
    before = time.time_ns()
    result = home.run("-namespace", "n", "-id", "c", "delete", DELETED=json.dumps(deleted))
    answer = task_v3_pb2.DeleteResponse.FromString(result.stdout)

    assert (0, b"") == (result.returncode, result.stderr)
    assert expected[:2] == (answer.pid, answer.exit_status)
    at_ns = answer.exited_at.seconds * 10**9 + answer.exited_at.nanos
    assert at_ns == expected[2] if expected[2] is not None else before <= at_ns <= time.time_ns()


@once
@pytest.mark.parametrize("version", ["2", "3"])
def test_start_answers_in_json_when_an_operator_asks(make: Make, version: str) -> None:
    """With the version that was asked for; the daemon serves both."""
    home = make("plain")
    result = home.start(CONTAINERD_SHIM_JSON=version)

    assert (0, b"") == (result.returncode, result.stderr)
    assert f'{{"version":{version},"address":"{home.address}","protocol":"ttrpc"}}' == result.stdout.decode()
    with connect(home.address) as client:
        ask(client, TaskRpcs.CONNECT)
        ask(client, second_version(TaskRpcs.CONNECT))


@once
def test_start_refuses_another_version(make: Make) -> None:
    """And leaves neither a daemon nor a socket."""
    home = make("plain")
    result = home.start(CONTAINERD_SHIM_JSON="4")

    assert (1, b"") == (result.returncode, result.stdout)
    assert f"{RUNTIME}: CONTAINERD_SHIM_JSON must be 2 or 3, is '4'" == result.stderr.decode()
    assert [] == home.daemons()
    assert [] == [*home.sockets.glob("*")]
