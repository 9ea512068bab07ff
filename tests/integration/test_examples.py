"""protos/examples/connect.py and its asyncio twin against real shims: Go's of each release, and ours."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

import pytest

from shim.testing.leftovers import read_process
from shim.testing.releases import Release
from tests.fakes import ROOT, python_path
from tests.integration import byhand, interop
from tests.integration.byhand import Hand
from tests.integration.client import wait_until
from tests.integration.interop import GoHand

SCRIPTS: Final = ("connect", "connect_async")
NO_RESPONSE: Final = "No response: the shim has ended"

program, spawn, hand = byhand.program, byhand.spawn, byhand.hand
go = interop.go


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test with each shim: Go's of each release, or ours of each kind."""
    byhand.pytest_generate_tests(metafunc)
    interop.pytest_generate_tests(metafunc)


@pytest.fixture
def go_hand(go: Release) -> Iterator[GoHand]:
    """Return a hand to run Go's shim with; in the end nothing may be left of what it started."""
    hand = GoHand(go)
    try:
        yield hand
    finally:
        left = hand.close()

    assert [] == left


def connect(script: str, address: str, container: str) -> list[str]:
    """Run a script, which has to succeed without a word on its standard error, and return the lines that it prints."""
    command = [sys.executable, str(ROOT / f"protos/examples/{script}.py"), address, container]
    environment = {**os.environ, "PYTHONPATH": python_path(), "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout.splitlines()


def pids(line: str) -> tuple[int, int]:
    """Return the process ids of shim and container in what the script prints of Connect's answer."""
    match = re.fullmatch(r'Connect response: shim_pid: (\d+)(?: task_pid: (\d+))?(?: version: "[^"]+")?', line)

    assert match is not None, line
    return int(match[1]), int(match[2] or 0)


@pytest.mark.parametrize("script", SCRIPTS)
def test_connect_asks_and_ends_gos_shim(go_hand: GoHand, script: str) -> None:
    """It prints who the shim is, and the shim ends; containerd 2.x's knows task v3 only."""
    container = f"example-{secrets.token_hex(4)}"
    address = go_hand.start_go(container)
    first, second, third, fourth, last = connect(script, address, container)

    assert (f"Connecting to {address}...", "Sending `Connect` request...") == (first, second)
    assert "Sending `Shutdown` request..." == fourth
    assert last in {'Shutdown response: ""', NO_RESPONSE}
    assert 0 == pids(third)[1]
    wait_until(lambda: read_process(pids(third)[0]) is None, "the shim ends")


@pytest.mark.parametrize("script", SCRIPTS)
def test_connect_asks_and_ends_our_shim(hand: Hand, script: str) -> None:
    """It prints who the shim is, and the shim answers before it ends."""
    container = f"example-{secrets.token_hex(4)}"
    address = hand.serve(container).address
    first, second, third, fourth, last = connect(script, address, container)

    assert (f"Connecting to {address}...", "Sending `Connect` request...") == (first, second)
    assert ("Sending `Shutdown` request...", 'Shutdown response: ""') == (fourth, last)
    assert 0 == pids(third)[1]
    wait_until(lambda: read_process(pids(third)[0]) is None, "the shim ends")


@pytest.mark.parametrize("script", SCRIPTS)
def test_connect_asks_our_shim_for_a_container(hand: Hand, script: str) -> None:
    """It prints the container's process too, and the shim answers Shutdown but lives on."""
    container = f"example-{secrets.token_hex(4)}"
    client = hand.serve(container)
    pid = client.create(hand.create_request(container))
    *_, third, _, last = connect(script, client.address, container)

    assert (client.connect().shim_pid, pid) == pids(third)
    assert 'Shutdown response: ""' == last

    client.kill(9)
    client.wait()
    client.delete()
