"""What a shim sees of the fake containerd, and what becomes of everything at the end."""

import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any

from shim.api.bootstrap_pb2 import BootstrapParams, BootstrapResult, LogLevel
from shim.api.runc_options_pb2 import Options
from shim.api.task_v2_pb2 import DeleteResponse
from shim.api.types_pb2 import RuntimeInfo
from shim.testing import (
    VERSIONS,
    DeleteError,
    FakeContainerd,
    ReconnectError,
    StartError,
    VerdictError,
    wait_until,
)
from shim.ttrpc import RpcError, Server
from tests.fakes import open_descriptors, python_path
from tests.testing.answering import Answering, services
from tests.testing.docs import write_rootless

OPTIONS = Options(binary_name="crun")
WRAPPED = Any(type_url="containerd.runc.v1.Options", value=OPTIONS.SerializeToString())


class Seen:
    """What a shim that was run saw."""

    def __init__(self, shim: Answering) -> None:
        lines = shim.facts.read_text().splitlines()
        self.cwd = Path(lines[0])
        first = next(index for index, line in enumerate(lines) if re.match(r"\w+=", line))
        self.arguments = lines[1:first]
        self.environment = dict(line.split("=", 1) for line in lines[first:-2] if "=" in line)
        self.pipes = lines[-2:]
        self.stdin = shim.stdin.read_bytes()


@pytest.mark.parametrize("style", VERSIONS)
@pytest.mark.parametrize("debug", [False, True])
def test_start_is_run_as_containerd_does(style: str, debug: bool, shim: Answering, address: str) -> None:
    """Arguments, working directory, and one pipe for both outputs."""
    shim.says(address.encode())
    with FakeContainerd(shim.path, style=style, debug=debug) as containerd:
        containerd.run_start("c1")
        seen = Seen(shim)
        bundle = containerd.bundle("c1").path
        names = ["-namespace", containerd.namespace, "-address", containerd.grpc_address]
        names += ["-publish-binary", "/usr/bin/containerd", "-id", "c1"]

    assert [*names, *(["-debug"] if debug else []), "start"] == seen.arguments
    assert bundle == seen.cwd
    assert seen.pipes[0] == seen.pipes[1]
    assert seen.pipes[0].startswith("pipe:")


@pytest.mark.parametrize("style", VERSIONS)
def test_the_environment_is_that_of_the_version(
    style: str, shim: Answering, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the daemon has, what it adds, and what its plugin opt makes of it."""
    for name in ("GRPC_ADDRESS", "NAMESPACE", "MAX_SHIM_VERSION", "LD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    shim.says(address.encode())
    with FakeContainerd(shim.path, style=style, environment={"CONFIGURED": "yes"}) as containerd:
        containerd.run_start("c1")
        added = {"GOMAXPROCS": "2", "TTRPC_ADDRESS": f"{containerd.grpc_address}.ttrpc"}
        more = {"MAX_SHIM_VERSION": "2", "GRPC_ADDRESS": containerd.grpc_address, "NAMESPACE": containerd.namespace}
    seen = Seen(shim).environment
    expected = {**added, **(more if style != "1.6" else {}), "CONFIGURED": "yes"}
    expected |= {"PATH": f"/opt/containerd/bin:{os.environ['PATH']}", "LD_LIBRARY_PATH": "/opt/containerd/lib:"}

    assert expected == {name: value for name, value in seen.items() if name in {*expected, *more}}


@pytest.mark.parametrize("style", ["1.6", "1.7", "2.0", "2.1", "2.2"])
@pytest.mark.parametrize(("options", "expected"), [(None, b""), (Any(), b""), (OPTIONS, WRAPPED.SerializeToString())])
def test_the_old_stdin_is_an_any_or_nothing(
    style: str, options: Any | Options | None, expected: bytes, shim: Answering, address: str
) -> None:
    """With a bare type URL."""
    shim.says(address.encode())
    with FakeContainerd(shim.path, style=style) as containerd:
        containerd.run_start("c1", options=options)

    assert expected == Seen(shim).stdin


@pytest.mark.parametrize("style", ["2.3", "2.4"])
@pytest.mark.parametrize("debug", [False, True])
def test_the_new_stdin_is_bootstrap_params(style: str, debug: bool, shim: Answering, address: str) -> None:
    """In binary, whatever the comments in the .proto file say."""
    shim.says(address.encode())
    with FakeContainerd(shim.path, style=style, debug=debug) as containerd:
        containerd.run_start("c1", options=OPTIONS)
        params = BootstrapParams.FromString(Seen(shim).stdin)

        assert ("c1", containerd.namespace) == (params.instance_id, params.namespace)
        assert (LogLevel.LOG_LEVEL_DEBUG if debug else LogLevel.LOG_LEVEL_INFO) == params.log_level
        assert containerd.ttrpc_address == params.containerd_ttrpc_address
        assert containerd.grpc_address == params.containerd_grpc_address
        assert containerd.socket_dir == params.socket_dir
        assert [WRAPPED] == [extension.value for extension in params.extensions]
        assert VERSIONS[style].release == params.containerd_version


def test_shims_of_old_names_get_the_old_stdin(shim: Answering, address: str) -> None:
    """They would choke on anything else."""
    shim.says(address.encode())
    old = shim.path.rename(shim.path.with_name("containerd-shim-runc-v1"))
    with FakeContainerd(old) as containerd:
        containerd.run_start("c1", options=OPTIONS)

    assert WRAPPED.SerializeToString() == Seen(shim).stdin


@pytest.mark.parametrize("style", VERSIONS)
def test_delete_is_run_as_containerd_does(style: str, shim: Answering) -> None:
    """Two pipes, no stdin, -debug from 1.7 on; then the bundle goes."""
    shim.says(DeleteResponse(pid=5, exit_status=9).SerializeToString(), errors="was not there")
    with FakeContainerd(shim.path, style=style, debug=True) as containerd:
        bundle = containerd.bundle("c1").path
        answer = containerd.delete("c1")
        seen = Seen(shim)

        assert (5, 9) == (answer.pid, answer.exit_status)
        assert ["was not there"] == containerd.warnings
        assert not bundle.exists()
    flags = ["-id", "c1", "-bundle", str(bundle), *(["-debug"] if style != "1.6" else []), "delete"]
    assert flags == seen.arguments[6:]
    assert seen.pipes[0] != seen.pipes[1]
    assert b"" == seen.stdin


def test_a_delete_that_fails_leaves_the_bundle(shim: Answering) -> None:
    """And so does one whose answer is none."""
    with FakeContainerd(shim.path) as containerd:
        bundle = containerd.bundle("c1").path
        shim.says(b"ignored", errors="cannot unmount", status=1)
        with pytest.raises(DeleteError, match=r"^cannot unmount: exit status 1$"):
            containerd.delete("c1")
        shim.says(b"\xff")
        with pytest.raises(DeleteError, match=r"^no DeleteResponse"):
            containerd.delete("c1")

        assert bundle.exists()


def test_info_is_one_flag_with_options_on_stdin(shim: Answering) -> None:
    """And an error shows stderr."""
    shim.says(RuntimeInfo(name="io.containerd.answering.v1").SerializeToString(), errors="shown to nobody")
    with FakeContainerd(shim.path) as containerd:
        info = containerd.info(OPTIONS)
        seen = Seen(shim)
        shim.says(b"", errors="no idea", status=2)
        with pytest.raises(VerdictError) as caught:
            containerd.info()

    assert "io.containerd.answering.v1" == info.name
    assert (["-info"], WRAPPED.SerializeToString()) == (seen.arguments, seen.stdin)
    assert f'failed to run [{shim.path} -info]: exit status 2 (stderr: "no idea")' == str(caught.value)


def test_version_text_is_what_is_printed(shim: Answering) -> None:
    """Nothing judges it but its exit code."""
    with FakeContainerd(shim.path) as containerd:
        shim.says(b"x:\n")
        assert "x:\n" == containerd.version_text()
        shim.says(b"x", status=3)
        with pytest.raises(VerdictError, match="x: exit status 3"):
            containerd.version_text()


def test_a_bundle_is_as_containerd_makes_it(shim: Answering, address: str) -> None:
    """Before `start`, and what containerd writes after it."""
    shim.says(BootstrapResult(version=3, address=address, protocol="ttrpc").SerializeToString())
    with FakeContainerd(shim.path) as containerd:
        containerd.start("c1", spec={"hostname": "h"})
        path = containerd.bundle("c1").path
        modes = {entry.name: stat.S_IMODE(entry.lstat().st_mode) for entry in path.iterdir() if not entry.is_symlink()}

        assert '{"hostname": "h"}' == (path / "config.json").read_text()
        assert (path / "work").resolve().is_dir()
        assert stat.S_ISFIFO((path / "log").stat().st_mode)
        assert 0o700 == stat.S_IMODE(path.stat().st_mode)
        assert {
            "log": 0o700,
            "rootfs": 0o711,
            "bootstrap.json": 0o644,
            "shim-binary-path": 0o600,
        }.items() <= modes.items()
        assert f'{{"version":3,"address":"{address}","protocol":"ttrpc"}}' == (path / "bootstrap.json").read_text()


def test_the_log_is_read_at_any_length(shim: Answering, address: str) -> None:
    """A fifo holds 64 KiB, after which a shim that is not read stands still."""
    shim.says(address.encode(), then="head -c 300000 /dev/zero | tr '\\0' x > log; echo end > log")
    with FakeContainerd(shim.path) as containerd:
        containerd.start("c1")
        log = containerd.bundle("c1").wait_for_log("end")

    assert 300_004 == len(log)


# A shim that lives.


@pytest.fixture(params=["1.6", "1.7", "2.0", "2.3"])
def living(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeContainerd]:
    """A containerd with the tiny shim of the docs."""
    script = write_rootless(tmp_path)
    with FakeContainerd(
        [sys.executable, str(script)],
        style=request.param,
        environment={"PYTHONPATH": python_path(), "CONTAINERD_SHIM_SPAWN": "fork"},
    ) as containerd:
        containerd.environment["TEST_SOCKETS"] = containerd.socket_dir
        yield containerd
        assert [] == containerd.events.faults


def test_a_whole_life_under_every_version(living: FakeContainerd) -> None:
    """With the version that the answer named, and the old file for old daemons."""
    shim = living.start("c1")
    is_new = living.version.name == "2.3"

    assert (3 if is_new else 2) == shim.endpoint.version
    assert is_new == (not (shim.bundle.path / "address").exists())
    shim.call("Create")
    shim.call("Start")
    shim.call("Kill", signal=9)
    exit_ = living.events.wait_for("/tasks/exit", container="c1", exec="")
    shim.call("Delete")
    shim.call("Shutdown")

    living.events.wait_for_topics("c1", [f"/tasks/{name}" for name in ("create", "start", "exit", "delete")])
    assert 137 == exit_.message.exit_status
    assert (living.namespace, True) == (exit_.namespace, exit_.timestamp_ns > 0)
    assert wait_until(lambda: not living.processes())


def test_a_restarted_containerd_finds_the_shim_again(living: FakeContainerd) -> None:
    """And gets the events of the meantime."""
    shim = living.start("c1")
    shim.call("Create")
    living.events.wait_for("/tasks/create")
    living.stop()
    living.restart()
    again = living.reconnect("c1")
    again.call("Kill", signal=9)

    living.events.wait_for("/tasks/exit")
    assert shim.endpoint == again.endpoint
    assert [again.probe()] == [process.pid for process in living.processes()]


@pytest.mark.parametrize("living", ["1.6", "1.7"], indirect=True)
def test_an_upgraded_containerd_finds_an_old_shim_by_its_address(living: FakeContainerd) -> None:
    """And notes it in its own way."""
    shim = living.start("c1")
    living.restart(style="2.3")
    again = living.reconnect("c1")

    assert (2, shim.endpoint.address) == (again.endpoint.version, again.endpoint.address)
    assert (shim.bundle.path / "bootstrap.json").exists()


@pytest.mark.parametrize("living", ["2.3"], indirect=True)
def test_a_downgraded_containerd_does_not_find_a_new_shim(living: FakeContainerd) -> None:
    """It wrote no address."""
    shim = living.start("c1")
    living.restart(style="1.7")
    with pytest.raises(ReconnectError) as caught:
        living.reconnect("c1")

    assert f"open {shim.bundle.path}/address: no such file or directory" == str(caught.value)


@pytest.mark.parametrize("living", ["2.3"], indirect=True)
def test_a_shim_that_was_killed_is_not_found_again(living: FakeContainerd) -> None:
    """Its socket is still there."""
    shim = living.start("c1")
    os.kill(shim.probe(), 9)
    assert wait_until(lambda: not living.processes())
    living.restart()
    with pytest.raises(ReconnectError) as caught:
        living.reconnect("c1")

    assert f"failed to create TTRPC connection: dial unix {shim.socket_path}: connect: connection refused" == str(
        caught.value
    )


def test_version_three_falls_back_to_two_where_only_that_is_served(shim: Answering, tmp_path: Path) -> None:
    """For the two calls with which containerd 2.x finds out; others fail."""
    address = f"unix://{tmp_path}/old"
    shim.says(BootstrapResult(version=3, address=address, protocol="ttrpc").SerializeToString())
    with Server(services(has_v3=False)) as server, FakeContainerd(shim.path) as containerd:
        server.listen(address)
        running = containerd.start("c1")
        with pytest.raises(RpcError, match=r"service containerd\.task\.v3\.Task"):
            running.call("State")
        answer = running.call("Connect")

        assert "v2" == answer.version
        assert "StateRequest" == running.messages.StateRequest.DESCRIPTOR.name
        assert not running.is_v3


@pytest.mark.parametrize("living", ["2.3"], indirect=True)
def test_the_end_takes_everything_along(living: FakeContainerd) -> None:
    """Daemons, sockets, folders, descriptors; also of a shim that does not heed SIGTERM."""
    living.start("c1")
    living.start("c2")
    stubborn = living.processes()[0].pid
    os.kill(stubborn, 19)
    living.end_limit_s = 0.5
    sockets = Path(living.socket_dir)
    assert 2 == len(list(sockets.iterdir()))
    living.close()

    assert [] == living.processes()
    assert not living.folder.exists()
    assert [] == [fd for fd in open_descriptors() if os.readlink(f"/proc/self/fd/{fd}").startswith(str(living.folder))]


def test_sockets_that_are_served_outlive_the_fake(shim: Answering, address: str) -> None:
    """A shim may name any; only what nobody serves is removed."""
    shim.says(address.encode())
    with FakeContainerd(shim.path) as containerd:
        containerd.start("c1")

    assert Path(address.removeprefix("unix://")).is_socket()


def test_a_start_without_a_program_is_pythons_own_error(tmp_path: Path) -> None:
    """A typing mistake is no verdict on a shim."""
    with FakeContainerd(tmp_path / "nowhere") as containerd, pytest.raises(FileNotFoundError):
        containerd.start("c1")


def test_options_that_are_wrong_reach_the_shim_as_they_are(shim: Answering) -> None:
    """The fake judges answers, not questions."""
    shim.says(b"", errors="what is this?", status=1)
    with FakeContainerd(shim.path, style="2.2") as containerd, pytest.raises(StartError, match="what is this"):
        containerd.start("c1", options=Any(type_url="nobody.knows", value=b"\xff"))
