"""The skeleton shims, blocking and asyncio, frozen and not: the walk-through by hand, and under containerd."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from shim.testing.containerd import Containerd
from shim.testing.leftovers import read_process
from shim.testing.releases import Release
from tests.fakes import ROOT, python_path
from tests.integration.byhand import Hand
from tests.integration.client import wait_until
from tests.integration.conftest import BINARIES, find_binary, kinds

SCRIPTS: Final = {"skeleton": "skeleton.py", "skeleton-async": "skeleton_async.py"}
STORY: Final = (
    "serving api on socket",
    "Connect request",
    "Shutdown request",
    "shutting down shim instance",
    "server stopped, connections closed",
    "publisher stopped",
    "reaper stopped",
)


def find_skeleton(kind: str, name: str, folder: Path) -> Path:
    """Return the skeleton of a kind (a form, or `unfrozen`); fails the test when it has not been built."""
    program = f"containerd-shim-{name}-v1"
    if kind != "unfrozen":
        return find_binary(BINARIES[kind].with_name(program))
    script = folder / program
    script.write_text(
        f"#!{sys.executable}\nimport runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"runpy.run_path({str(ROOT / 'examples' / SCRIPTS[name])!r}, run_name='__main__')\n"
    )
    script.chmod(0o755)
    return script


@pytest.fixture(params=["fork", "reexec"])
def spawn(request: pytest.FixtureRequest) -> str:
    """Each way to become a daemon."""
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture(params=SCRIPTS)
def hand(request: pytest.FixtureRequest, kind: str, spawn: str, tmp_path: Path) -> Iterator[Hand]:
    """A hand to run a skeleton with; in the end nothing may be left of what it started."""
    hand = Hand(find_skeleton(kind, request.param, tmp_path), spawn)
    try:
        yield hand
    finally:
        left = hand.close()

    assert [] == left


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test by hand for each kind of shim that is asked for."""
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", kinds(metafunc))


def messages(log: str) -> list[str]:
    """Return the texts of a log's records."""
    return [bare or quoted for quoted, bare in re.findall(r'level=info msg=(?:"([^"]*)"|(\S+))', log)]


def test_the_walk_through(hand: Hand) -> None:
    """Started by hand it prints its address; connect.py meets it there, and the log tells the whole story."""
    container = f"skeleton-{secrets.token_hex(4)}"
    bundle = hand.bundle(container)
    (bundle / "config.json").unlink()  # by hand there is none, and a shim that groups nothing needs none
    started = hand.start(container)
    address = started.stdout.decode()

    assert (0, b"", f"unix://{hand.socket_path(container)}") == (started.returncode, started.stderr, address)

    command = [sys.executable, str(ROOT / "protos/examples/connect.py"), address]
    environment = {**os.environ, "PYTHONPATH": python_path(), "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert (0, "") == (done.returncode, done.stderr)
    assert [
        f"Connecting to {address}...",
        "Sending `Connect` request...",
        'Connect response: version: "example"',
        "Sending `Shutdown` request...",
        'Shutdown response: ""',
    ] == done.stdout.splitlines()
    assert list(STORY) == messages(hand.wait_log(container, STORY[-1]))


def test_sigterm_ends_it_in_good_order(hand: Hand) -> None:
    """As Shutdown does, and the socket goes with it."""
    container = f"skeleton-{secrets.token_hex(4)}"
    hand.start(container)
    hand.wait_log(container, STORY[0])
    (daemon,) = [process for process in hand.processes() if "-id" in process.arguments]
    os.kill(daemon.pid, 15)

    hand.wait_log(container, STORY[-1])
    wait_until(lambda: read_process(daemon.pid) is None, "the daemon ends")
    assert not hand.socket_path(container).exists()


def test_delete_answers_without_a_container(hand: Hand) -> None:
    """containerd runs it after every shim."""
    answer = hand.delete(f"skeleton-{secrets.token_hex(4)}")

    assert (0, 137) == (answer.pid, answer.exit_status)


@pytest.mark.parametrize("by", ["name", "path"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_ctr_run_reaches_it(release: Release, flavour: object, name: str, by: str, tmp_path: Path) -> None:
    """Create is not its business, which containerd is told, and Shutdown ends it."""
    program = find_skeleton(getattr(flavour, "kind", ""), name, tmp_path)
    runtime = f"io.containerd.{name}.v1" if by == "name" else str(program)
    with Containerd(release, [program.parent], runtime=runtime) as containerd:
        containerd.import_image()
        done = containerd.run("hello", "true", check=False)
        log = containerd.folder / "log"
        wait_until(lambda: STORY[2] in log.read_text(), "Shutdown")

        assert done.returncode != 0
        assert "method Create" in done.stderr
        assert STORY[0] in log.read_text()

    # containerd 1.6 and 1.7 keep the bundle of a container whose shim does not know Delete either.
    assert [] == [left for left in containerd.left_behind if "io.containerd.runtime.v2.task" not in left]
