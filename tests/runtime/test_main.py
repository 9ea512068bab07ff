"""A whole shim as a program: exit codes and texts, both ways to a daemon, and what a failed start leaves behind.

tests/integration/test_daemonize.py looks closer at the shim that ships.
"""

import json
import os
import re
import signal
import subprocess
import sys
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue

from shim import __version__
from shim.api.bootstrap_pb2 import BootstrapParams, BootstrapResult
from shim.api.task_v2_pb2 import DeleteResponse
from shim.api.types_pb2 import RuntimeInfo
from shim.ttrpc import Client, Rpc, RpcError, connect
from tests.fakes import PATIENCE_S, ROOT, connect_soon, wait_until
from tests.runtime.home import Home

RUNTIME = "io.containerd.tiny.v1"
SHUTDOWN_SANDBOX = Rpc("containerd.runtime.sandbox.v1.Sandbox", "ShutdownSandbox", Empty, Empty)


def tell(client: Client) -> dict[str, Any]:
    """Return what the daemon tells about itself."""
    answer = client.call(Rpc("test.v1.Tiny", "Tell", Empty, StringValue), Empty(), timeout_s=PATIENCE_S)
    facts: dict[str, Any] = json.loads(answer.value)
    return facts


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["-nope"], 2, "flag provided but not defined: -nope\nUsage of {program}:\n  -address string\n"),
        (["-h"], 0, "Usage of {program}:\n  -address string\n"),
        (["start"], 1, f"{RUNTIME}: shim namespace cannot be empty"),
        (["-namespace", "n", "start"], 1, f"{RUNTIME}: shim id cannot be empty"),
        (["-namespace", "n", "delete"], 1, f"{RUNTIME}: shim id cannot be empty"),
        (["-namespace", "n", "x"], 1, f"{RUNTIME}: descriptor 3 is no listening socket: Bad file descriptor"),
        (
            ["-namespace", "n", "-socket", "/dev/null/s"],
            1,
            f"{RUNTIME}: create new shim socket: /dev/null: File exists",
        ),
    ],
)
def test_what_cannot_be_done_is_said_on_stderr(home: Home, arguments: list[str], code: int, text: str) -> None:
    """With Go's exit codes; stdout stays empty."""
    result = home.run(*arguments)

    assert (code, b"") == (result.returncode, result.stdout)
    assert result.stderr.decode().startswith(text.format(program=ROOT / "tests/runtime/tiny.py"))
    assert code != 1 or b"\n" not in result.stderr


@pytest.mark.parametrize(
    ("failure", "text"), [("delete", "two lines"), ("open", "/nonexistent/file: No such file or directory")]
)
def test_a_failed_action_is_one_line(home: Home, failure: str, text: str) -> None:
    """Whatever the error's own text."""
    result = home.run("-namespace", "n", "-id", "c", "delete", TINY_FAIL=failure)

    assert (1, b"", f"{RUNTIME}: {text}") == (result.returncode, result.stdout, result.stderr.decode())


def test_version_needs_nothing_else(home: Home) -> None:
    """Five lines, the last one empty."""
    result = home.run("-v", "-namespace", "")
    version = ".".join(map(str, sys.version_info[:3]))

    assert (0, b"") == (result.returncode, result.stderr)
    assert (
        f"tiny.py:\n  Version:  {__version__}\n  Revision: \n  Python version: {version}\n\n" == result.stdout.decode()
    )


def test_info_needs_no_options(home: Home) -> None:
    """Nor a namespace."""
    result = home.run("-info")

    assert (0, b"") == (result.returncode, result.stderr)
    assert RuntimeInfo(name=RUNTIME) == RuntimeInfo.FromString(result.stdout)


def test_info_refuses_garbage(home: Home) -> None:
    """containerd shows the text."""
    result = home.run("-info", stdin=b"\xff")

    assert (1, b"") == (result.returncode, result.stdout)
    assert f"{RUNTIME}: stdin of -info is no google.protobuf.Any" == result.stderr.decode()


def test_delete_answers_in_protobuf(home: Home) -> None:
    """Even before anything was created."""
    result = home.run("-namespace", "n", "-id", "c", "-bundle", str(home.bundle), "delete")
    answer = DeleteResponse.FromString(result.stdout)

    assert (0, b"") == (result.returncode, result.stderr)
    assert (7, 137) == (answer.pid, answer.exit_status)


def test_input_without_end_is_refused(home: Home) -> None:
    """No containerd sends ten megabytes."""
    result = home.start(stdin=bytes((10 << 20) + 1))

    assert (1, f"{RUNTIME}: stdin has more than 10485760 bytes") == (result.returncode, result.stderr.decode())
    assert [] == home.daemons()


def test_start_leaves_a_daemon_that_serves(nest: Home) -> None:
    """Its answer is the bare address, and all that is written elsewhere is one line in the log."""
    result = nest.start()

    assert (0, b"") == (result.returncode, result.stderr)
    assert f"unix://{nest.socket}" == result.stdout.decode() == (nest.bundle / "address").read_text()
    with connect(result.stdout.decode()) as client:
        facts = tell(client)
    opened = facts["descriptors"]
    assert [facts["pid"]] == nest.daemons() == [facts["group"]]
    assert ["/dev/null", "/dev/null", str(nest.bundle / "log")] == [opened[number] for number in "012"]
    assert f"containerd-shim-{nest.id}" == facts["environment"]["OTEL_SERVICE_NAME"]
    assert facts["environment"].keys() >= {"PATH", "CONTAINERD_SHIM_SPAWN"}
    assert ["-namespace", "n", "-id", nest.id, "-address", "/a"] == [word for word in facts["arguments"] if word][-6:]
    assert not facts["debug"]
    assert 'level=info msg="serving api on socket"' in nest.log()
    assert 1 == nest.log().count("\n")


def test_start_answers_bootstrap_params_in_kind(nest: Home) -> None:
    """With the socket where they say, debug output by their log level, and no address file."""
    sockets = nest.sockets / "other"
    params = BootstrapParams(instance_id=nest.id, namespace="n", log_level="LOG_LEVEL_DEBUG", socket_dir=str(sockets))
    result = nest.start(stdin=params.SerializeToString())
    answer = BootstrapResult.FromString(result.stdout)

    assert (0, b"") == (result.returncode, result.stderr)
    assert (3, "ttrpc", f"unix://{sockets}/{nest.socket.name}") == (answer.version, answer.protocol, answer.address)
    assert not (nest.bundle / "address").exists()
    with connect(answer.address) as client:
        assert tell(client)["debug"]
    os.kill(nest.daemons()[0], signal.SIGTERM)
    assert wait_until(lambda: not nest.daemons())
    sockets.rmdir()
    assert 'level=debug msg="daemon of containerd-shim"' in nest.log()


@pytest.mark.parametrize("spawn", ["reexec"], indirect=True)
def test_a_second_start_of_the_group_meets_the_first(nest: Home) -> None:
    """No other daemon, the same answer, and a file for containerd 1.7 in the second bundle too."""
    options = AnyMessage(type_url="a.B", value=b"x").SerializeToString()
    first = nest.start(TINY_GROUP="g")
    (nest.bundle / "address").unlink()
    second = nest.start(TINY_GROUP="g", stdin=options)

    assert first.stdout == second.stdout == (nest.bundle / "address").read_bytes()
    assert 1 == len(nest.daemons())


def test_a_start_that_fails_leaves_no_daemon_and_no_socket(nest: Home) -> None:
    """Even when all but its last step has been done."""
    (nest.bundle / "address").mkdir()
    result = nest.start()

    assert (1, b"") == (result.returncode, result.stdout)
    assert re.fullmatch(rf"{RUNTIME}: .*/address: Is a directory", result.stderr.decode())
    assert [] == nest.daemons()
    assert not nest.socket.exists()


def test_a_daemon_that_cannot_be_loaded_says_so_and_goes(nest: Home) -> None:
    """The reason is in the log, as `start` may have ended by then; the socket is removed."""
    result = nest.start(TINY_FAIL="preload")

    assert 0 == result.returncode
    assert nest.has_ended()
    assert re.search(r"cannot load\sthis", nest.log())


def test_shutdown_answers_and_then_ends_the_daemon(nest: Home) -> None:
    """The socket is gone before the answer; callbacks run, one that fails is logged and stops no other."""
    client = connect(nest.start().stdout.decode())
    client.call(Rpc("test.v1.Tiny", "Stop", Empty, Empty), Empty(), timeout_s=PATIENCE_S)

    assert not nest.socket.exists()
    assert wait_until(lambda: not nest.daemons())
    assert re.search(
        r'level=error msg="error in shutdown" error="ZeroDivisionError: [^\n]*\n.* msg="last words"', nest.log()
    )
    client.close()


def test_shutdown_of_a_sandbox_lets_its_clients_hang_up_first(nest: Home) -> None:
    """Go's client may take an answer for lost if the connection ends with it, which fails the removal of a pod."""
    client = connect(nest.start(TINY_PATIENCE=str(10 * PATIENCE_S)).stdout.decode())
    client.call(SHUTDOWN_SANDBOX, Empty(), timeout_s=PATIENCE_S)

    assert not nest.socket.exists()
    assert tell(client)["pid"] in nest.daemons()
    client.close()
    assert wait_until(lambda: not nest.daemons())


def test_shutdown_of_a_sandbox_does_not_wait_for_ever(nest: Home) -> None:
    """A client that stays is hung up on."""
    with connect(nest.start(TINY_PATIENCE="0.01").stdout.decode()) as client:
        client.call(SHUTDOWN_SANDBOX, Empty(), timeout_s=PATIENCE_S)

        assert wait_until(lambda: not nest.daemons())


@pytest.mark.parametrize("spawn", ["reexec"], indirect=True)
def test_a_bug_in_a_handler_is_logged_and_the_daemon_lives(nest: Home) -> None:
    """The peer hears no more than its text."""
    with connect(nest.start().stdout.decode()) as client:
        with pytest.raises(RpcError) as caught:
            client.call(Rpc("test.v1.Tiny", "Fail", Empty, Empty), Empty(), timeout_s=PATIENCE_S)
        assert tell(client)["pid"] in nest.daemons()

    assert (2, "a bug") == (caught.value.code, caught.value.message)
    assert 'level=error msg="error in test.v1.Tiny/Fail" error="ZeroDivisionError: a bug" trace="' in nest.log()
    assert f" runtime={RUNTIME}\n" in nest.log()


def test_a_daemon_may_bind_its_socket_itself(home: Home) -> None:
    """In the foreground, for who debugs; a second one at the same place says whose it is."""
    path = home.sockets / "own"
    flags = ["-namespace", "n", "-id", home.id, "-socket", f"unix://{path}"]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.runtime.tiny", *flags], cwd=home.bundle, env=home.environment
    ) as daemon:
        try:
            with connect_soon(f"unix://{path}") as client:
                assert daemon.pid == tell(client)["pid"]
                second = home.run(*flags)
                client.call(Rpc("test.v1.Tiny", "Stop", Empty, Empty), Empty(), timeout_s=PATIENCE_S)
        finally:
            daemon.terminate()

    assert 0 == daemon.returncode
    assert (1, f"{RUNTIME}: socket {path} is served by another shim") == (second.returncode, second.stderr.decode())
