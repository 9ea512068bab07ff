"""What pyrunc tells on SIGUSR1, and that one runtime call that hangs holds up nobody else."""

import os
import re
import signal
import threading

from tests.engine.served import Served
from tests.fakes import PATIENCE_S, wait_until

SLEEP = "exec sleep 60"


def dump(served: Served) -> str:
    """Return what a SIGUSR1 brings to the log."""
    before = served.log.read_text().count("=== END goroutine stack dump ===")
    os.kill(served.process.pid, signal.SIGUSR1)
    assert wait_until(lambda: served.log.read_text().count("=== END goroutine stack dump ===") > before)
    return served.log.read_text().rpartition("=== BEGIN goroutine stack dump ===\n")[2]


def test_sigusr1_tells_each_container_and_exec_while_a_create_hangs(own: Served) -> None:
    """With their states; the hanging one is an open call, and the others are served meanwhile."""
    running, created = own.run("running", SLEEP), own.create("created", SLEEP)
    execs = own.exec("running", "e1", SLEEP), own.exec("running", "e2", "exit 3")
    own.call("Wait", id="running", exec_id="e2")
    own.add_exec("running", "e3", SLEEP)
    ended = own.run("ended", "exit 7")
    own.call("Wait", id="ended")
    gate = own.runc.hangs("create")
    hanging = threading.Thread(target=own.create, args=("hanging", SLEEP))
    hanging.start()
    waiting, _ = own.later("Wait", id="running")
    try:
        gate.wait_reached()
        assert wait_until(lambda: dump(own).count("open call ") == 2)
        told = dump(own)

        assert running == own.call("State", id="running").pid
        assert own.process.pid == own.call("Connect", id="created").shim_pid
        assert 7 == own.call("Delete", id="ended").exit_status
        assert (5, "container not created: not found") == own.fails("State", id="hanging")
        after = dump(own)
    finally:
        gate.release()
        hanging.join(PATIENCE_S)
        own.call("Kill", id="running", signal=9, all=True)
        waiting.join(PATIENCE_S)

    lines = told.splitlines()
    assert [
        f"container created: created, pid {created}",
        f"container ended: stopped, pid {ended}, exit status 7",
        f"container running exec e1: running, pid {execs[0]}",
        f"container running exec e2: stopped, pid {execs[1]}, exit status 3",
        "container running exec e3: created, pid 0",
        f"container running: running, pid {running}",
    ] == sorted(line for line in lines if line.startswith("container "))
    assert "events waiting for containerd: 0" in lines
    for method in ("Create", "Wait"):
        assert re.search(
            rf"^open call containerd\.task\.v2\.Task/{method}: for \d+\.\d{{3}} s, of pid {os.getpid()}$", told, re.M
        )
    assert re.search(r'^  File ".*/runc\.py", line \d+ in create$', told, re.M)
    assert "container ended" not in after
    assert own.call("State", id="hanging").pid > 0
