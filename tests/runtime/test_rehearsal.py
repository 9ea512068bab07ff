"""A daemon's life as rehearsal: it is whole, and leaves the process as it was.

Each in a process of its own, since a rehearsal takes over signals, children and the working directory.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.fakes import wait_until

ROOT: Final = Path(__file__).parents[2]

HEAD: Final = """
import fcntl, gc, json, os, signal, sys
from shim.engine.shim import RuncShim
from shim.errors import ShimError
from shim.runtime import rehearsal, warmth
from shim.runtime.config import Config
from shim.runtime.flags import Flags
from shim.runtime.shim import Shim

folder = sys.argv[1]
life = os.path.join(folder, "life")

def make(kind=RuncShim):
    return kind("io.containerd.pyrunc.v1", Flags(namespace="default", id="first"), Config())

def tell(**facts):
    print(json.dumps(facts))

def process():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        children = file.read()
    handlers = [str(signal.getsignal(number)) for number in (*rehearsal._CAUGHT, signal.SIGHUP)]
    mask = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    fds = sorted(os.listdir("/proc/self/fd"))
    return [os.getcwd(), dict(os.environ), handlers, mask, fds, len(os.listdir("/proc/self/task")), children,
            gc.isenabled(), gc.get_freeze_count(), os.listdir(folder)]

def attempt(shim):
    try:
        rehearsal.rehearse(shim, life)
    except (rehearsal.RehearsalError, ShimError) as error:
        return str(error)
    return ""
"""

LIFE: Final = """
topics = []
def forward(self, context, request):
    topics.append(request.envelope.topic)
    return rehearsal.Empty()
rehearsal._Performance.forward = forward
gc.unfreeze()
gc.disable()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
shim = make()
attempt(shim)
topics.clear()
before, attributes = process(), dict(shim.__dict__)
failure = attempt(shim)
after = process()
tell(failure=failure, topics=topics, kept=attributes == shim.__dict__,
     changed=[pair for pair in zip(before, after) if pair[0] != pair[1]])
"""

FAILURES: Final = """
class Asks(RuncShim):
    def play(self, folder):
        yield "containerd.task.v3.Task", "Connect", b""
        yield "containerd.task.v3.Task", "State", b"\\x0a\\x04nope"
        print("not reached")

class Breaks(RuncShim):
    def play(self, folder):
        yield "containerd.task.v3.Task", "Connect", b""
        raise OSError(28, "No space left on device")

class Waits(RuncShim):
    def play(self, folder):
        for line in super().play(folder):
            answer = yield line[0], line[1].replace("State", "Wait"), line[2]

rehearsal._LIMIT_S = 0.3
said = [attempt(make(kind)) for kind in (Asks, Waits, Breaks)]
os.defpath = folder
said.append(attempt(make()))
cwd, environment, handlers, mask, fds, tasks, children, is_collecting, frozen, left = process()
tell(said=said, left=[tasks - 1, children, left])
"""

KINDS: Final = """
from shim.runtime import aio_shim
class Own(Shim):
    def wait_shim(self): pass
kinds = (RuncShim, Shim, Own, lambda *values: aio_shim.Adapter(aio_shim.Shim(*values)))
tell(possible=[rehearsal.is_possible(make(kind)) for kind in kinds])
"""

ENDLESS: Final = """
while True:
    rehearsal.rehearse(make(), life)
    print(flush=True)
"""

ALONE: Final = """
def is_first():
    with warmth.only_one(folder) as answer:
        return answer
with warmth.only_one(folder) as first:
    second = is_first()
os.makedirs(os.path.join(folder, "dead.rehearsal", "bundle", "rootfs"))
warmth.warm_up(make(), os.path.join(folder, "sock"))
tell(first=first, second=second, third=is_first(), left=os.listdir(folder))
"""


def run(program: str, folder: Path) -> dict[str, Any]:
    """Run a program and return the facts that it tells."""
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", HEAD + program, folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("", 0) == (child.stderr, child.returncode)
    facts: dict[str, Any] = json.loads(child.stdout)
    return facts


def test_a_rehearsal_is_a_whole_life_that_leaves_nothing(sockets: Path) -> None:
    """Of a container and an exec, with every event; the process, its signals and the shim are as they were."""
    facts = run(LIFE, sockets)

    assert "" == facts["failure"]
    assert ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"] == [
        topic.rpartition("/")[2] for topic in facts["topics"]
    ]
    assert [] == facts["changed"]
    assert facts["kept"]


def test_a_rehearsal_that_goes_wrong_says_why_and_leaves_no_process_or_file(sockets: Path) -> None:
    """A call that fails, one that is not answered, a play that breaks off, and no program to run."""
    facts = run(FAILURES, sockets)
    failed, late, broken, missing = facts["said"]

    assert failed.startswith("a call failed: ")
    assert "container not created" in failed
    assert "took too long" == late
    assert "[Errno 28] No space left on device" == broken
    assert "there is no program true" == missing
    assert [0, "", []] == facts["left"]


def test_only_daemons_that_are_sure_to_end_are_rehearsed(sockets: Path) -> None:
    """Not those that wait for something of their author's, nor asyncio's."""
    assert {"possible": [True, True, False, False]} == run(KINDS, sockets)


def test_a_killed_rehearsal_leaves_neither_processes_nor_files(sockets: Path) -> None:
    """What plays the container sees its parent gone, and takes the folder along."""
    command = [sys.executable, "-c", HEAD + ENDLESS, str(sockets)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, process_group=0) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert wait_until(lambda: (sockets / "life" / "bundle" / "init.pid").exists())
        child.send_signal(signal.SIGKILL)
        child.wait()

        assert "" == child.stdout.read().decode().strip()  # nobody holds it any more


@pytest.mark.parametrize("count", range(3))
def test_one_at_a_time_warms_up(sockets: Path, count: int) -> None:
    """In one folder; what a killed one has left there is swept."""
    assert {"first": True, "second": False, "third": True, "left": []} == run(ALONE, sockets)
