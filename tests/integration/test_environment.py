"""What containerd puts into a shim's environment reaches the OCI runtime and hooks as it is, and loggers not at all.

Programs in front of the shim and of the runtime note their environment, as the kernel shows it, before they become
what they stand for.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from shim.testing.configuration import with_opt
from shim.testing.containerd import GO_RUNTIME, RUNTIME, Containerd
from shim.testing.releases import Release
from tests.integration.client import Guests, wait_until

pytestmark = pytest.mark.every_form

SHIM: Final = "containerd-shim-pyrunc-v1"
# What containerd adds for a shim, and Go's shim for its daemon.
ADDED: Final = {"GOMAXPROCS", "TTRPC_ADDRESS", "GRPC_ADDRESS", "NAMESPACE", "MAX_SHIM_VERSION"}
SET: Final = {"ODD": "a=b c", "EMPTY": "", "NOTED": "yes"}


@pytest.fixture(scope="module")
def containerd(release: Release, shim_folder: Path) -> Iterator[Containerd]:
    """Return a containerd with variables of its own; in the end nothing may be left."""
    # The shells that note it set the first two themselves, and the test's name is another each time.
    unset = dict.fromkeys(("PWD", "OLDPWD", "PYTEST_CURRENT_TEST"))
    with Containerd(release, [shim_folder], environment={**SET, **unset}) as running:
        running.import_image()
        yield running
    assert [] == running.left_behind


@pytest.fixture
def leaves_no_task() -> None:
    """Replace the check of the shared containerd: this one is removed as a whole."""


def note(folder: Path, name: str, *, becomes: str = "") -> Path:
    """Write a program that notes its environment in `folder`, and its last word in the note's name."""
    program = folder / name
    lines = ["#!/bin/sh", "for word; do case $word in create | start | delete) last=$word ;; esac; done"]
    lines.append(f'cat /proc/$$/environ > "{folder}/{name}.$last.$$"')
    # dash exports PWD.
    lines.append(f'unset PWD; exec {becomes} "$@"' if becomes else "exec 5>&-; cat <&3 >&2")
    program.write_text("\n".join([*lines, ""]))
    program.chmod(0o755)
    return program


def notes(folder: Path, pattern: str) -> list[dict[str, str]]:
    """Return the environments that were noted, each variable once."""
    found = []
    for path in sorted(folder.glob(pattern)):
        pairs = [pair.partition("=")[::2] for pair in os.fsdecode(path.read_bytes()).split("\0") if pair]
        assert len(dict(pairs)) == len(pairs)
        found.append(dict(pairs))
    return found


def changes(before: dict[str, str], after: dict[str, str], *, but: Collection[str] = ()) -> dict[str, object]:
    """Return the variables that differ, with both values; None is none."""
    names = sorted((before.keys() | after.keys()) - set(but))
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


@pytest.fixture
def folder(containerd: Containerd, shim_folder: Path) -> Iterator[Path]:
    """Return where notes are while the programs on containerd's PATH stand in front of shim and runtime."""
    runc = shutil.which("runc", path=containerd.own_environment()["PATH"])
    assert runc is not None
    note(containerd.bin, SHIM, becomes=str(shim_folder / SHIM))
    note(containerd.bin, "runc", becomes=runc)
    yield containerd.bin
    for path in list(containerd.bin.iterdir()):
        path.unlink()


def test_the_environment_reaches_runtime_and_hooks_unchanged(containerd: Containerd, folder: Path, name: str) -> None:
    """It is containerd's own, with the folders that its plugin opt puts first, what it tells a shim, and one name.

    The name is the one under which a daemon traces; Go's shim sets it too.
    """
    hook = note(folder, "hook", becomes="true")

    def add(spec: dict[str, Any]) -> None:
        spec["hooks"] = {"createRuntime": [{"path": str(hook), "args": [str(hook)]}]}

    containerd.run(name, "sleep", "1000", detach=True, options=["--null-io"])
    guests = Guests(containerd, name)
    guests.create(f"{name}-guest", "true", edit=add)
    guests.close()
    containerd.ctr("tasks", "rm", "--force", name)
    containerd.ctr("containers", "rm", name)
    (started,) = notes(folder, f"{SHIM}.start.*")
    named = {"OTEL_SERVICE_NAME": (None, f"containerd-shim-{name}")}

    assert {} == changes(with_opt(containerd.own_environment()), started, but=ADDED)
    assert started["LD_LIBRARY_PATH"].startswith("/opt/containerd/lib:")
    assert started["PATH"].startswith("/opt/containerd/bin:")
    for action, least in (("create", 2), ("start", 1), ("delete", 2)):
        seen = notes(folder, f"runc.{action}.*")
        assert len(seen) >= least
        assert [named] * len(seen) == [changes(started, each) for each in seen]
    assert [named] == [changes(started, each) for each in notes(folder, "hook.*")]


@pytest.mark.parametrize("runtime", [GO_RUNTIME, RUNTIME])
def test_a_logger_is_told_what_it_logs_and_no_more(
    containerd: Containerd, folder: Path, name: str, runtime: str
) -> None:
    """Both shims do it like this."""
    logger = note(folder, "logger")
    options = ["--log-uri", f"binary://{logger}"]
    containerd.run(name, "true", detach=True, options=options, runtime=runtime)
    containerd.wait_status(name, "STOPPED")
    containerd.ctr("tasks", "rm", "--force", name)
    containerd.ctr("containers", "rm", name)

    assert [{"CONTAINER_ID": name, "CONTAINER_NAMESPACE": containerd.namespace}] == notes(folder, "logger.*")


def test_a_cleanup_gives_its_runtime_what_it_got(containerd: Containerd, folder: Path, name: str) -> None:
    """containerd runs `delete` after the end of a shim, in the same environment."""
    containerd.run(name, "sleep", "1000", detach=True, options=["--null-io"])
    os.kill(containerd.shim_pid(name), 9)
    wait_until(lambda: not containerd.bundle(name).exists(), "containerd has cleaned up")
    containerd.ctr("containers", "rm", name)
    (deleted,) = notes(folder, f"{SHIM}.delete.*")
    seen = notes(folder, "runc.delete.*")

    assert {} == changes(with_opt(containerd.own_environment()), deleted, but=ADDED)
    assert seen
    assert [{}] * len(seen) == [changes(deleted, each) for each in seen]
