"""What goes wrong, said in one clear line that names the thing, with the right code, and with nothing left behind.

By hand, without a containerd: it would hide some of it and clean up after the rest. The fixture `hand` asserts after
each test that no process, mount, socket, cgroup, engine state or temporary file is left.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.api import bootstrap_pb2, task_v2_pb2, types_pb2
from shim.testing import FakeRunc
from shim.testing.containerd import Containerd
from shim.testing.leftovers import ENGINE_STATE
from shim.ttrpc import Code
from tests.integration import byhand
from tests.integration.byhand import RUNTIME_ID, Hand, refusal, wait_gone
from tests.integration.client import wait_until

pytest_generate_tests = byhand.pytest_generate_tests
program, spawn, hand = byhand.program, byhand.spawn, byhand.hand


def assert_fails(done: subprocess.CompletedProcess[bytes], code: int, *wanted: str) -> None:
    """Check that an action failed with this exit code and one line on stderr that has all of `wanted`."""
    text = done.stderr.decode()

    assert (code, b"") == (done.returncode, done.stdout)
    assert text.startswith(f"{RUNTIME_ID}: ")
    assert 1 == len(text.splitlines())
    for word in wanted:
        assert word in text


def assert_no_trace(hand: Hand, container: str) -> None:
    """Check that neither the runtime nor the bundle knows of a container that could not be made."""
    rootfs = hand.bundle(container) / "rootfs"

    assert not (ENGINE_STATE / hand.namespace / container).exists()
    assert not rootfs.exists() or list(rootfs.iterdir()) == []
    assert [] == [line for line in hand.leftovers(settle_s=1.0) if line.startswith(("mount", "cgroup"))]


# The command line.


def test_unknown_flag(hand: Hand) -> None:
    """Go's text and usage, exit code 2."""
    done = hand.run("-namespace", "n", "-nosuch", "start")
    first, second, *_ = done.stderr.decode().splitlines()

    assert (2, b"") == (done.returncode, done.stdout)
    assert ("flag provided but not defined: -nosuch", f"Usage of {hand.program}:") == (first, second)


@pytest.mark.parametrize("action", ["start", "delete", "", "serve"])
def test_empty_namespace(hand: Hand, action: str) -> None:
    """Every action needs a namespace; Go's text."""
    words = ["-namespace", "", "-id", "c1", "-address", hand.address, action]

    assert_fails(hand.run(*words), 1, "shim namespace cannot be empty")


@pytest.mark.parametrize("action", ["start", "delete"])
def test_missing_id(hand: Hand, action: str) -> None:
    """`start` and `delete` are about a container."""
    words = ["-namespace", hand.namespace, "-address", hand.address, action]

    assert_fails(hand.run(*words, cwd=hand.bundle("c1")), 1, "shim id cannot be empty")


def test_daemon_without_a_socket(hand: Hand) -> None:
    """Run without an action and without what `start` hands over, it says so and ends."""
    words = ["-namespace", hand.namespace, "-id", "c1", "-address", hand.address]

    assert_fails(hand.run(*words, cwd=hand.bundle("c1")), 1, "descriptor 3 is no listening socket")


# What `start` finds.


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file or directory"),
        ("folder", "Is a directory"),
        ('{"annotations": {', "Expecting"),
        ("[]", "not a JSON object"),
        ("\0\xff", "parse"),
    ],
    ids=["absent", "folder", "cut-off", "list", "garbage"],
)
def test_config_json_that_cannot_be_read(hand: Hand, content: str | None, complaint: str) -> None:
    """`start` needs it to find the pod, and names the file; no daemon and no socket are made."""
    config = hand.bundle("c1") / "config.json"
    config.unlink()
    if content == "folder":
        config.mkdir()
    elif content is not None:
        config.write_text(content, encoding="latin-1")

    assert_fails(hand.start("c1"), 1, str(config), complaint)
    assert not hand.socket_path("c1").exists()


def params(hand: Hand, socket_dir: Path) -> bytes:
    """Return BootstrapParams that ask for a socket in a folder."""
    message = bootstrap_pb2.BootstrapParams(
        instance_id="c1", namespace=hand.namespace, socket_dir=str(socket_dir), containerd_grpc_address=hand.address
    )
    return message.SerializeToString()


def test_socket_path_that_is_too_long(hand: Hand) -> None:
    """The text names the path, its length and the limit."""
    folder = hand.folder / ("x" * 50)
    path = folder / hand.socket_path("c1").name

    assert_fails(hand.start("c1", params(hand, folder)), 1, str(path), f"{len(str(path))} bytes", "107")
    assert not folder.exists()


def test_socket_folder_below_a_file(hand: Hand) -> None:
    """A socket folder that cannot be made is named."""
    (hand.folder / "file").touch()

    assert_fails(hand.start("c1", params(hand, hand.folder / "file/s")), 1, f"{hand.folder}/file/s", "Not a directory")


def test_socket_folder_that_is_read_only(hand: Hand) -> None:
    """A socket folder that cannot be written to is named."""
    folder = hand.folder / "sockets"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], check=True)
    try:
        done = hand.start("c1", params(hand, folder))
    finally:
        subprocess.run(["umount", str(folder)], check=True)

    assert_fails(done, 1, str(folder), "Read-only file system")


@pytest.mark.parametrize("stdin", [b"\xff" * 100, b"hello\n", b"\x0a\x05nosuc\x12\x00"], ids=["ff", "text", "any"])
def test_input_that_makes_no_sense(hand: Hand, stdin: bytes) -> None:
    """`start` takes it for a legacy caller's without options that it knows."""
    done = hand.start("c1", stdin)

    assert (0, f"unix://{hand.socket_path('c1')}", b"") == (done.returncode, done.stdout.decode(), done.stderr)


def test_socket_of_a_killed_shim(hand: Hand) -> None:
    """A socket that nobody serves any more is replaced by the next start, under the same name."""
    pid = hand.serve("c1").connect().shim_pid
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)

    assert hand.socket_path("c1").exists()
    assert pid != hand.serve("c1").connect().shim_pid


# Create.


def test_missing_command(containerd: Containerd, name: str) -> None:
    """A command that the image lacks is named by `ctr run` in runc's words, and nothing of the container stays."""
    result = containerd.run(name, "/nosuch", check=False)

    assert 0 != result.returncode
    assert 'exec: "/nosuch": stat /nosuch: no such file or directory' in result.stderr
    assert [] == containerd.leftovers()


def test_rootfs_whose_source_is_missing(hand: Hand) -> None:
    """The mount that cannot be made is named, type and place and reason."""
    client = hand.serve("c1")
    mounts = [types_pb2.Mount(type="bind", source=f"{hand.folder}/nosuch", options=["rbind"])]
    code, text = refusal(lambda: client.create(hand.create_request("c1", mounts=mounts)))

    assert code == Code.UNKNOWN
    assert text.startswith(f"failed to mount rootfs component: bind on {hand.bundle('c1')}/rootfs: ")
    assert text.endswith("no such file or directory")
    assert_no_trace(hand, "c1")


def test_second_mount_that_fails(hand: Hand) -> None:
    """The first one is undone."""
    client = hand.serve("c1")
    mounts = [hand.rootfs(), types_pb2.Mount(type="nosuchfs", source="none")]
    code, text = refusal(lambda: client.create(hand.create_request("c1", mounts=mounts)))

    assert (Code.UNKNOWN, True) == (code, "nosuchfs" in text and "no such device" in text)
    assert_no_trace(hand, "c1")


def test_bundle_without_a_rootfs(hand: Hand) -> None:
    """Without mounts the bundle's own folder is the root file system; that it is missing is told in runc's words."""
    client = hand.serve("c1")
    (hand.bundle("c1") / "rootfs").rmdir()
    code, text = refusal(lambda: client.create(hand.create_request("c1", mounts=[])))

    assert code == Code.UNKNOWN
    assert text.startswith("OCI runtime create failed: ")
    assert f"{hand.bundle('c1')}/rootfs" in text
    assert_no_trace(hand, "c1")


def test_missing_runtime(hand: Hand) -> None:
    """An OCI runtime that is not on PATH is named in Go's words, as clients match on them."""
    client = hand.serve("c1")
    code, text = refusal(lambda: client.create(hand.create_request("c1", binary="no-runc")))

    assert code == Code.UNKNOWN
    assert text.startswith("OCI runtime create failed: ")
    assert text.endswith('exec: "no-runc": executable file not found in $PATH')
    assert_no_trace(hand, "c1")


@pytest.fixture
def runc(hand: Hand) -> Iterator[FakeRunc]:
    """An OCI runtime that does as told."""
    with FakeRunc(hand.folder / "runc") as runc:
        yield runc


def test_runtime_that_fails(hand: Hand, runc: FakeRunc) -> None:
    """The last error that it logged is the text, and an older one is not."""
    client = hand.serve("c1")
    (hand.bundle("c1") / "log.json").write_text('{"level":"error","msg":"of yesterday"}\n')
    runc.fails("create", "the moon is full", status=3)

    assert (Code.UNKNOWN, "OCI runtime create failed: the moon is full") == refusal(
        lambda: client.create(hand.create_request("c1", binary=runc.path))
    )
    assert_no_trace(hand, "c1")


def test_runtime_that_fails_without_a_word(hand: Hand, runc: FakeRunc) -> None:
    """Its exit status is the text."""
    client = hand.serve("c1")
    (hand.bundle("c1") / "log.json").write_text('{"level":"error","msg":"of yesterday"}\n')
    runc.says("create", status=3)

    assert (
        Code.UNKNOWN,
        f"OCI runtime create failed: {runc.path} did not terminate successfully: exit status 3",
    ) == refusal(lambda: client.create(hand.create_request("c1", binary=runc.path)))


def test_runtime_that_hangs(hand: Hand, runc: FakeRunc) -> None:
    """The deadline answers the caller; others are served meanwhile; afterwards the container can be made."""
    client, other = hand.serve("c1"), hand.client("c1")
    gate = runc.hangs("create", text="no more patience")
    request = hand.create_request("c1", binary=runc.path)

    def create(timeout_s: float) -> None:
        client.call("Create", request, task_v2_pb2.CreateTaskResponse, timeout_s)

    assert Code.DEADLINE_EXCEEDED == refusal(lambda: create(1.0))[0]
    assert Code.NOT_FOUND == refusal(other.state)[0]
    assert Code.ALREADY_EXISTS == refusal(lambda: create(1.0))[0]
    other.shutdown()
    assert other.connect().shim_pid > 0
    gate.release()
    wait_until(lambda: refusal(lambda: create(30.0))[0] == Code.UNKNOWN, "the hanging create has ended")
    assert client.create(hand.create_request("c1")) > 0
    client.delete()


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_create_with_a_fifo_that_is_missing(hand: Hand, stream: str) -> None:
    """The fifo is named, and the runtime is not even asked."""
    client = hand.serve("c1")
    path = f"{hand.folder}/nosuch-{stream}"
    request = hand.create_request("c1")
    setattr(request, stream, path)
    code, text = refusal(lambda: client.create(request))

    assert (Code.UNKNOWN, True) == (code, path in text and text.endswith("no such file or directory"))
    assert_no_trace(hand, "c1")


def test_create_with_an_unknown_scheme(hand: Hand) -> None:
    """Where output should go is named by its scheme."""
    client = hand.serve("c1")
    request = hand.create_request("c1")
    request.stdout = "gopher://hole"
    code, text = refusal(lambda: client.create(request))

    assert (Code.UNKNOWN, "failed to create init process I/O: unknown STDIO scheme gopher") == (code, text)
    assert_no_trace(hand, "c1")
