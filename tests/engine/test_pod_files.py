"""Which of a pod's files become mounts of a container."""

from pathlib import Path
from typing import Any

import pytest

from shim.engine.bundle import Bundle
from shim.engine.pod_files import add_pod_files

ETC = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"]
SHM = "/dev/shm"  # noqa: S108  (a path inside containers)
DEFAULT_SHM = {"destination": SHM, "type": "tmpfs", "source": "shm", "options": ["size=65536k"]}


@pytest.fixture
def container(tmp_path: Path) -> Bundle:
    """An empty bundle."""
    (tmp_path / "c").mkdir()
    return Bundle(str(tmp_path / "c"))


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A sandbox that has shared memory."""
    monkeypatch.setattr("shim.engine.pod_files.os.path.ismount", lambda path: path == str(tmp_path / "s/rootfs/shm"))
    return Bundle(str(tmp_path / "s"))


def added(container: Bundle, sandbox: Bundle, spec: dict[str, Any]) -> dict[str, Any]:
    """Return the mounts that the container then has, by their destinations."""
    add_pod_files(container, spec, sandbox)
    mounts: Any = container.read_spec()["mounts"]
    return {mount["destination"]: mount for mount in mounts}


def test_a_container_gets_all_of_them(container: Bundle, sandbox: Bundle) -> None:
    """In the place of the shared memory that containerd would give it for itself; the rest of the spec stays."""
    proc = {"destination": "/proc", "type": "proc", "source": "proc"}
    mounts = added(container, sandbox, {"mounts": [DEFAULT_SHM, proc], "hostname": "h"})

    assert [SHM, "/proc", *ETC] == list(mounts)
    assert proc == mounts["/proc"]
    expected = {"type": "bind", "source": f"{sandbox.rootfs}/hosts", "options": ["rbind", "rprivate", "rw"]}
    assert {"destination": "/etc/hosts", **expected} == mounts["/etc/hosts"]
    assert ("bind", f"{sandbox.rootfs}/shm") == (mounts[SHM]["type"], mounts[SHM]["source"])
    assert "h" == container.read_spec()["hostname"]


def test_what_the_kubelet_mounts_stays(container: Bundle, sandbox: Bundle) -> None:
    """It makes /etc/hosts itself, as a rule; its volumes may be anywhere."""
    own = [{"destination": place, "type": "bind", "source": "/own"} for place in ("/etc//hosts", f"{SHM}/")]
    mounts = added(container, sandbox, {"mounts": own})

    assert ["/etc//hosts", f"{SHM}/", "/etc/hostname", "/etc/resolv.conf"] == list(mounts)
    assert own == [mounts["/etc//hosts"], mounts[f"{SHM}/"]]


@pytest.mark.parametrize("spec", [{}, {"mounts": None}, {"mounts": [{"destination": "/proc"}]}])
def test_shared_memory_is_mounted_where_there_was_none(
    container: Bundle, sandbox: Bundle, spec: dict[str, Any]
) -> None:
    """Whatever mounts the spec has."""
    assert SHM in added(container, sandbox, spec)


def test_files_are_read_only_where_the_root_is(container: Bundle, sandbox: Bundle) -> None:
    """As containerd has it; shared memory is for writing."""
    mounts = added(container, sandbox, {"root": {"path": "rootfs", "readonly": True}})

    assert {"ro"} == {mounts[path]["options"][-1] for path in ETC}
    assert "rw" == mounts[SHM]["options"][-1]


def test_memory_of_its_own_stays_where_the_pod_shares_the_hosts_objects(container: Bundle, tmp_path: Path) -> None:
    """containerd has mounted the host's then."""
    mounts = added(container, Bundle(str(tmp_path / "s")), {"mounts": [DEFAULT_SHM]})

    assert DEFAULT_SHM == mounts[SHM]
