"""Finding and joining cgroups, on trees of plain files."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from shim.errors import CgroupError
from shim.host import cgroup
from shim.host.cgroup_v1 import LegacyCgroup
from shim.host.cgroup_v2 import UnifiedCgroup

PID = 4242


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Make a tree of files."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def find(tmp_path: Path) -> cgroup.Cgroup:
    """Look for the process in the tree."""
    return cgroup.find(PID, root=str(tmp_path / "cgroup"), proc=str(tmp_path / "proc"))


def make_process(tmp_path: Path, paths: str, state: str = "S") -> None:
    """Make what /proc says of the process; its name has a bracket."""
    files = {f"{PID}/cgroup": paths, f"{PID}/stat": f"{PID} (a) b) {state} 1 1", "self/mountinfo": ""}
    write(tmp_path / "proc", files)


@pytest.mark.parametrize(
    ("paths", "files", "told"),
    [
        pytest.param("0::/k8s/a b\n", ["cgroup.controllers", "k8s/a b/cgroup.procs"], "k8s/a b", id="version 2"),
        pytest.param(
            "4:memory:/m\n9:name=systemd:/s:t\n0::/u\n",
            ["memory/m/cgroup.procs", "systemd/s:t/cgroup.procs"],
            "systemd/s:t",
            id="version 1",
        ),
        pytest.param(
            "9:name=systemd:/s\n3:pids:/p\n2:cpu,cpuacct:/m\n0::/u\n",
            ["cpu,cpuacct/m/cgroup.procs"],
            "cpu,cpuacct/m",
            id="the one that is mounted",
        ),
        pytest.param("1:cpu:/m\n0::/\n", ["unified/cgroup.procs"], "unified", id="the top of a hybrid host's"),
    ],
)
def test_a_move_is_announced_by_one_to_where_the_process_is(
    tmp_path: Path, paths: str, files: list[str], told: str
) -> None:
    """Of all hierarchies it is told to one, rather to one without a controller, since they share what is waited for."""
    make_process(tmp_path, paths)
    write(tmp_path / "cgroup", dict.fromkeys(files, ""))

    assert cgroup.announce_move(PID, root=str(tmp_path / "cgroup"), proc=str(tmp_path / "proc"))

    written = {str(path.parent): path.read_text() for path in (tmp_path / "cgroup").rglob("cgroup.procs")}
    assert {str(tmp_path / "cgroup" / told): str(PID)} == {folder: text for folder, text in written.items() if text}


@pytest.mark.parametrize("paths", ["4:memory:/m\n0::/u\n", "", None])
def test_a_move_that_cannot_be_announced_is_not(tmp_path: Path, paths: str | None) -> None:
    """Nothing is mounted where it ought to be, or the process is gone; and no file is made."""
    (tmp_path / "cgroup").mkdir()
    if paths is not None:
        make_process(tmp_path, paths)

    assert not cgroup.announce_move(PID, root=str(tmp_path / "cgroup"), proc=str(tmp_path / "proc"))

    assert [] == list((tmp_path / "cgroup").iterdir())


def test_an_announcement_moves_nobody() -> None:
    """The kernel's own word for it; only where it lets nobody write it cannot be told."""
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            before = Path(f"/proc/{child.pid}/cgroup").read_text()

            is_told = cgroup.announce_move(child.pid)

            after = Path(f"/proc/{child.pid}/cgroup").read_text()
        finally:
            child.kill()
    writable = [path for path in Path(cgroup.ROOT).glob("**/cgroup.procs") if os.access(path, os.W_OK)]
    assert before == after
    assert is_told or not writable


def test_find_on_a_unified_host(tmp_path: Path) -> None:
    """The one folder is that of the hierarchy without a number."""
    make_process(tmp_path, "0::/k8s/a b\n")
    write(tmp_path / "cgroup", {"cgroup.controllers": "", "k8s/a b/cgroup.procs": ""})

    found = find(tmp_path)

    assert UnifiedCgroup(f"{tmp_path}/cgroup/k8s/a b") == found
    assert found.is_unified


def test_find_on_a_hybrid_host(tmp_path: Path) -> None:
    """The unified hierarchy beside version 1 does not count, nor do controllers of which the process is at the top."""
    make_process(tmp_path, "9:name=systemd:/s\n4:memory:/k8s/a:b\n2:cpu,cpuacct:/k8s/a:b\n1:pids:/\n0::/k8s\n")
    for folder in ("systemd/s", "memory/k8s/a:b", "cpu,cpuacct/k8s/a:b", "pids", "unified/k8s"):
        (tmp_path / "cgroup" / folder).mkdir(parents=True)
    for link in ("cpu", "cpuacct"):
        (tmp_path / "cgroup" / link).symlink_to("cpu,cpuacct")

    found = find(tmp_path)

    folders = {"name=systemd": "systemd/s"} | {name: f"{name}/k8s/a:b" for name in ("memory", "cpu", "cpuacct")}
    assert isinstance(found, LegacyCgroup)
    assert {name: f"{tmp_path}/cgroup/{path}" for name, path in folders.items()} == found.folders
    assert not found.is_unified


def test_find_in_a_container_that_sees_a_part_of_the_tree(tmp_path: Path) -> None:
    """Where the mount shows the folder /docker/x at its top, that much is taken off the path."""
    make_process(tmp_path, "4:memory:/docker/x/k8s/a\n3:pids:/docker/x\n2:cpu:/elsewhere\n")
    for folder in ("memory/k8s/a", "pids", "cpu"):
        (tmp_path / "cgroup" / folder).mkdir(parents=True)
    mounts = [f"1 1 0:1 /docker/x {tmp_path}/cgroup/{name} rw - cgroup cgroup rw" for name in ("memory", "pids", "cpu")]
    write(tmp_path / "proc", {"self/mountinfo": "\n".join(mounts) + "\n"})

    found = find(tmp_path)

    assert LegacyCgroup({"memory": f"{tmp_path}/cgroup/memory/k8s/a"}, f"{tmp_path}/proc") == found


@pytest.mark.parametrize("controllers", ["cgroup.controllers", "memory/cgroup.procs"])
@pytest.mark.parametrize(
    ("paths", "state", "expected"),
    [
        ("0::/\n1:memory:/\n", "S", "process 4242 has no cgroup of its own"),
        ("0::/gone (deleted)\n1:memory:/gone (deleted)\n", "S", "process 4242 has no cgroup of its own"),
        ("0::/../other\n1:memory:/../other\n", "S", "process 4242 has no cgroup of its own"),
        ("", "S", "process 4242 has no cgroup of its own"),
        ("0::/a\n1:memory:/a\n", "Z", "process 4242 has no cgroup: it is dead"),
    ],
)
def test_find_never_answers_with_the_root(
    controllers: str, paths: str, state: str, expected: str, tmp_path: Path
) -> None:
    """A process that is dead or has no cgroup of its own has none: the root's are those of the whole host."""
    make_process(tmp_path, paths, state)
    write(tmp_path / "cgroup", {controllers: ""})

    with pytest.raises(CgroupError) as caught:
        find(tmp_path)

    assert expected == str(caught.value)


def test_find_of_a_process_that_is_gone(tmp_path: Path) -> None:
    """A pid that is nobody's is an error of its own."""
    with pytest.raises(CgroupError) as caught:
        find(tmp_path)

    assert "process 4242 has no cgroup: it is gone" == str(caught.value)


def test_join_on_a_unified_host(tmp_path: Path) -> None:
    """The pid is written into the one folder."""
    write(tmp_path, {"cgroup.controllers": "", "shims/cgroup.procs": ""})

    cgroup.join("/shims", PID, root=str(tmp_path))

    assert "4242" == (tmp_path / "shims/cgroup.procs").read_text()


def test_join_on_a_hybrid_host(tmp_path: Path) -> None:
    """The pid is written into each version 1 folder that there is, with or without a leading slash."""
    for name in ("memory", "cpu,cpuacct", "unified", "pids"):
        write(tmp_path, {f"{name}/cgroup.procs": ""})
    for name in ("memory", "cpu,cpuacct", "unified"):
        write(tmp_path, {f"{name}/shims/cgroup.procs": ""})
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")

    cgroup.join("shims", PID, root=str(tmp_path))

    names = ("memory", "cpu,cpuacct", "unified")
    assert ["4242", "4242", ""] == [(tmp_path / name / "shims/cgroup.procs").read_text() for name in names]
    assert not (tmp_path / "pids/shims").exists()


@pytest.mark.parametrize(
    ("path", "files", "expected"),
    [
        ("/shims", ["cgroup.controllers"], "no such cgroup"),
        ("/shims", ["memory/cgroup.procs"], "no such cgroup"),
        ("shims", ["cgroup.controllers", "shims/cgroup.procs"], "not an absolute path"),
        ("/a/../../shims", ["cgroup.controllers"], "not an absolute path"),
        ("/shims", ["cgroup.controllers", "shims/other"], "no such file or directory"),
    ],
)
def test_join_says_why_it_failed(path: str, files: list[str], expected: str, tmp_path: Path) -> None:
    """The text is containerd's, and nothing is made that was not there."""
    write(tmp_path, dict.fromkeys(files, ""))

    with pytest.raises(CgroupError) as caught:
        cgroup.join(path, PID, root=str(tmp_path))

    assert f"failed to join cgroup {path}: {expected}" == str(caught.value)
    assert not (tmp_path / "shims/cgroup.procs").exists() or path == "shims"


def test_find_folders_of_all_hierarchies(tmp_path: Path) -> None:
    """Of version 2, of version 1, and of a hybrid host; tops and what does not exist are left out."""
    proc = tmp_path / "proc" / "7"
    proc.mkdir(parents=True)
    (proc / "stat").write_text("7 (x) S 1")
    (proc / "cgroup").write_text("3:cpu,cpuacct:/ns/c1\n2:memory:/\n1:name=systemd:/ns/none\n0::/ns/c1\n")
    root = tmp_path / "cgroup"
    for name in ("cpu", "memory", "systemd", "unified"):
        (root / name).mkdir(parents=True)
    for name in ("cpu/ns/c1", "unified/ns/c1", "ns/c1"):
        (root / name).mkdir(parents=True)
    (root / "cpuacct").symlink_to("cpu")
    hybrid = cgroup.find_folders(7, root=str(root), proc=str(tmp_path / "proc"))
    (root / "cgroup.controllers").touch()
    (proc / "cgroup").write_text("0::/ns/c1\n")
    unified = cgroup.find_folders(7, root=str(root), proc=str(tmp_path / "proc"))

    assert {f"{root}/cpu/ns/c1", f"{root}/unified/ns/c1"} == hybrid
    assert {f"{root}/ns/c1"} == unified
    assert set() == cgroup.find_folders(8, root=str(root), proc=str(tmp_path / "proc"))


def test_remove_empty_removes_what_is_below_first(tmp_path: Path) -> None:
    """What is in use stays, what is gone is fine."""
    for name in ("a/b", "c/d"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "c" / "d" / "used").touch()
    left = cgroup.remove_empty({str(tmp_path / name) for name in ("a", "a/b", "c", "c/d", "none")})

    assert {f"{tmp_path}/c", f"{tmp_path}/c/d"} == left
    assert ["c"] == [path.name for path in tmp_path.iterdir()]
    assert (tmp_path / "c" / "d").is_dir()
