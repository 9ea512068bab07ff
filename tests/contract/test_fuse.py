"""FUSE file systems, which are mounted by a program: contract 7.6, and trap 70."""

from pathlib import Path

import pytest

from shim.engine.container import Container, StdioOwner
from shim.errors import MountError
from shim.host.mount import Mount
from tests.engine.loggers import OwnReaper
from tests.engine.served import Served
from tests.engine.world import NO_STDIO, World

GIVEN = {"type": "fuse3.overlay.x", "source": "src", "options": ["lowerdir=/a:/b", "ro"]}


def write_helper(served: Served, name: str, script: str) -> None:
    """Put a helper on the daemon's PATH."""
    path = served.runc.folder / name
    path.write_text(f'#!/bin/sh\nhere=${{0%/*}}\nprintf "%s\\n" "$@" > "$here/helped"\n{script}\n')
    path.chmod(0o755)


def test_trap_70_a_mount_helper_is_waited_for_by_the_reaper(served: Served) -> None:
    """Which knows it before it can end; however often it runs, its exit is found, and no other."""
    write_helper(served, "mount.fuse3", "exit 0")
    for number in range(5):
        served.run(f"trap70-{number}", "exit 3", rootfs=[GIVEN])
        assert 3 == served.call("Wait", id=f"trap70-{number}").exit_status
        served.call("Delete", id=f"trap70-{number}")
    words = (served.runc.folder / "helped").read_text().split("\n")[:-1]
    rootfs = str(served.bundle("trap70-4") / "rootfs")

    assert ["src", rootfs, "-o", "lowerdir=/a:/b", "-o", "ro", "-t", "overlay.x"] == words


def test_rule_7_6_a_helper_that_fails_is_told_in_its_own_words(served: Served) -> None:
    """With its exit status; nothing is left of the container."""
    write_helper(served, "mount.fuse", "echo out; echo no such device >&2; exit 5")
    mount = {"type": "fuse.x", "source": "src"}
    (served.bundle("rule76") / "config.json").write_text("{}")
    failed = served.fails("Create", id="rule76", bundle=str(served.bundle("rule76")), rootfs=[mount])

    place = f"failed to mount rootfs component: fuse.x on {served.bundle('rule76')}/rootfs"
    assert (2, f"{place}: mount.fuse failed: exit status 5: out\nno such device") == failed
    assert (5, "container not created: not found") == served.fails("State", id="rule76")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("", 'exec: "mount.fuse3": executable file not found in $PATH'),
        ("exec sleep 1000", "mount.fuse3 failed: exit status 137: not done after 0.2 s"),
    ],
    ids=["missing", "hanging"],
)
def test_rule_7_6_a_helper_that_is_missing_or_hangs_is_named(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: str
) -> None:
    """Create fails, and the runtime never hears of it."""
    monkeypatch.setattr("shim.engine.container._MOUNT_LIMIT_S", 0.2)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    (tmp_path / "bin").mkdir()
    if script:
        (tmp_path / "bin/mount.fuse3").write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin {script}\n")
        (tmp_path / "bin/mount.fuse3").chmod(0o755)
    surroundings = world.surroundings._replace(reaper=OwnReaper())
    made = world.container()
    container = Container(surroundings, made.bundle, made.runc, NO_STDIO, StdioOwner())
    with pytest.raises(MountError) as caught:
        container.create([Mount("fuse3.x", "src")], lambda: None)

    place = f"failed to mount rootfs component: fuse3.x on {container.bundle.rootfs}"
    assert f"{place}: {expected}" == str(caught.value)
    assert [] == world.commands()
