"""What two processes must have in common for one to stand in for the other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.host import identity


@pytest.fixture
def child() -> Iterator[int]:
    """Return the pid of a child with the same program that waits."""
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()


def test_child_has_all_that_its_parent_has(child: int) -> None:
    """Everything is inherited, the program is the same, and the parent is known."""
    theirs = identity.read(child)

    assert [] == identity.differences(identity.read("self").facts, theirs.facts)
    assert (os.getpid(), os.umask(0o022)) == (theirs.parent, theirs.umask)
    os.umask(theirs.umask)


def test_facts_are_all_there() -> None:
    """None is forgotten: each name of the tables, and what is computed."""
    facts = identity.read("self").facts
    wanted = {f"ns/{name}" for name in identity.NAMESPACES} | set(identity.FILES)
    wanted |= {"root", "exe", "session", "terminal", "nice", "rt_priority", "policy", "SigIgn"}
    wanted |= {"Uid", "Gid", "Groups", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "SigBlk", "Cpus_allowed"}

    assert set() == wanted - set(facts)


def test_only_what_lasts_is_taken_from_before(child: int) -> None:
    """What somebody else can change is read again."""
    before = identity.read(child).facts
    changed = ("cgroup", "coredump_filter", "limits", "oom_score_adj", "nice", "Cpus_allowed", "SigBlk", "Uid")
    known = dict.fromkeys(before, "known")
    Path(f"/proc/{child}/oom_score_adj").write_text("500")

    now = identity.read(child, known).facts

    assert {"known"} == {now[name] for name in identity.LASTING}
    assert [name for name in changed if name != "oom_score_adj"] == [n for n in changed if now[n] == before[n]]
    assert b"500\n" == now["oom_score_adj"]
    assert set(before) == set(now)


def test_each_fact_counts() -> None:
    """Whichever is another, by value or by not being there, is named."""
    facts = dict(identity.read("self").facts)
    for name in facts:
        assert [name] == identity.differences(facts, {**facts, name: b"another"})
        assert name in identity.differences(facts, {key: value for key, value in facts.items() if key != name})


def test_seccomp_filters_are_never_alike() -> None:
    """Their number says nothing about what they forbid."""
    facts = {**identity.read("self").facts, "Seccomp": b"\t2"}

    assert ["Seccomp"] == identity.differences(facts, facts)


def test_signals_that_python_ignores_do_not_count() -> None:
    """SIGPIPE and SIGXFSZ are ignored in every Python, whatever it was started with."""
    reset = [
        sys.executable,
        "-c",
        "import signal, sys; signal.signal(signal.SIGPIPE, signal.SIG_DFL); print(flush=True); sys.stdin.read()",
    ]
    with subprocess.Popen(reset, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()

        assert [] == identity.differences(identity.read("self").facts, identity.read(process.pid).facts)
        assert process.stdin is not None
        process.stdin.close()


def test_nobody_has_no_identity() -> None:
    """A process that is gone cannot be compared."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    with pytest.raises(OSError, match=r"No such (file or directory|process)"):
        identity.read(process.pid)


def test_numbers_change_with_program_and_parent() -> None:
    """So does the name of the socket that is made of them."""
    assert identity.numbers(1, "/bin/sh") != identity.numbers(1, sys.executable)
    assert identity.numbers(1)[:-1] == identity.numbers(2)[:-1]
    assert (1, 2) == (identity.numbers(1)[-1], identity.numbers(2)[-1])
