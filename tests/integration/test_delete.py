"""The `delete` action by hand: it removes what a killed shim has left, from whatever state things are in."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from shim import ttrpc
from shim.testing.leftovers import ENGINE_STATE
from tests.integration import byhand
from tests.integration.byhand import Hand, wait_gone
from tests.integration.client import wait_until

pytestmark = pytest.mark.every_form

pytest_generate_tests = byhand.pytest_generate_tests
program, spawn, hand = byhand.program, byhand.spawn, byhand.hand


def test_delete_action_after_the_shim_was_killed(hand: Hand) -> None:
    """It kills and removes all, answers pid and 137, and may be repeated; the socket goes too."""
    client = hand.serve("c1")
    client.create(hand.create_request("c1"))
    pid = client.start()
    os.kill(client.connect().shim_pid, signal.SIGKILL)
    first, second = hand.delete("c1"), hand.delete("c1")

    assert [(pid, 137)] * 2 == [(each.pid, each.exit_status) for each in (first, second)]
    assert first.exited_at.seconds > 0
    wait_gone(pid)
    assert [] == hand.leftovers(settle_s=1.0)
    hand.serve("c1")


@pytest.mark.parametrize("content", [None, "{", '{"binary_name": 7, "root": []}'], ids=["absent", "cut-off", "types"])
def test_delete_action_with_nothing_to_delete(hand: Hand, content: str | None) -> None:
    """It succeeds whatever the bundle holds: there may have been a reboot."""
    if content is not None:
        (hand.bundle("c1") / "options.json").write_text(content)
        (hand.bundle("c1") / "runtime").write_text("no-runc")

    assert (0, 137) == ((done := hand.delete("c1")).pid, done.exit_status)


def fake_runtime(hand: Hand, script: str) -> str:
    """Write an OCI runtime whose `create` does `script` first, and return its path."""
    path = hand.folder / "slow-runc"
    path.write_text(f"""#!/bin/sh\ncase " $* " in *" create "*) {script};; esac\nexec runc "$@"\n""")
    path.chmod(0o755)
    return str(path)


def kill_during_create(hand: Hand, binary: str) -> None:
    """Kill the daemon with SIGKILL while its runtime is at work on a Create."""
    client = hand.serve("c1")
    request = hand.create_request("c1", binary=binary)

    def create() -> None:
        with pytest.raises(ttrpc.ConnectionClosedError):
            client.create(request)

    thread = threading.Thread(target=create)
    thread.start()
    wait_until(lambda: any("create" in each.arguments for each in hand.processes()), "the runtime is at work")
    os.kill(hand.client("c1").connect().shim_pid, signal.SIGKILL)
    thread.join()


def test_delete_action_during_a_create(hand: Hand) -> None:
    """A create that has outlived its shim comes to its end first: half done it would leave what nobody finds."""
    kill_during_create(hand, fake_runtime(hand, "sleep 0.7"))
    deleted = hand.delete("c1")

    assert 137 == deleted.exit_status
    assert deleted.pid > 0
    assert not (ENGINE_STATE / hand.namespace / "c1").exists()
    assert [] == hand.leftovers(settle_s=1.0)
    hand.serve("c1")


def test_delete_action_during_a_create_that_hangs(hand: Hand) -> None:
    """One that does not is killed, well within the five seconds that containerd gives."""
    kill_during_create(hand, fake_runtime(hand, "while :; do sleep 0.1; done"))
    before = time.monotonic()
    hand.delete("c1")

    assert time.monotonic() - before < 4.5
    assert [] == hand.leftovers(settle_s=1.0)
    hand.serve("c1")
