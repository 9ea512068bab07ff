"""The shim's socket: its name, and who gets it."""

import hashlib
import os
import socket
import stat
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import SocketError
from shim.runtime import address
from shim.runtime.address import Bound
from tests import strategies


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where to listen; the folder is not there yet."""
    return str(tmp_path / "s" / "socket")


def bind(path: str) -> Bound:
    """Bind where nobody lives."""
    bound = address.bind(path)
    assert bound is not None
    return bound


def is_served(bound: Bound) -> bool:
    """Say whether a connection to the path ends at this listener."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(bound.path)
        bound.listener.settimeout(5)
        connection, _ = bound.listener.accept()
        connection.close()
    return True


def test_socket_path_is_the_one_that_everybody_computes() -> None:
    """`ctr shim` finds a shim by it."""
    assert "/run/containerd/s/d25aa4ef11a84e954e74a5bcff06557d0b6ea8d0c00243896f29826694bbd888" == address.socket_path(
        "/run/containerd/containerd.sock", "default", "c1"
    )
    assert "/x/" + hashlib.sha256(b"/a/n/g").hexdigest() == address.socket_path("/a", "n", "g", "/x")


def go_join(*parts: str) -> str:
    """Return Go's filepath.Join, written from its documentation: drop empty parts, then Clean."""
    joined = "/".join(part for part in parts if part)
    if not joined:
        return ""
    is_rooted = joined[0] == "/"
    out: list[str] = []
    for part in joined.split("/"):
        if part in ("", "."):
            continue
        if part != "..":
            out.append(part)
        elif out and out[-1] != "..":
            out.pop()
        elif not is_rooted:
            out.append("..")
    return "/" + "/".join(out) if is_rooted else "/".join(out) or "."


PARTS = st.lists(st.sampled_from(["", ".", "..", "a", "b.c", "...", " "]), max_size=5).map("/".join)


@strategies.FEWER
@given(PARTS, PARTS, PARTS)
def test_socket_path_joins_as_go_does(one: str, two: str, three: str) -> None:
    """Doubled slashes, dots, and parts that are empty: a group name may be."""
    name = hashlib.sha256(go_join(one, two, three).encode()).hexdigest()

    assert f"/run/containerd/s/{name}" == address.socket_path(one, two, three)


def test_socket_path_takes_names_that_are_no_text() -> None:
    """The bytes are hashed as they came."""
    name = hashlib.sha256(b"/caf\xe9/n/g").hexdigest()

    assert f"/d/{name}" == address.socket_path("/caf\udce9", "n", "g", "/d")


def test_bind_listens_for_its_own_user_alone(path: str) -> None:
    """Folder 0700, socket 0600, and the descriptor is close-on-exec."""
    bound = bind(path)
    with bound.listener:
        assert is_served(bound)
        assert "unix://" + path == bound.address
        assert 0o700 == stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode)
        assert 0o600 == stat.S_IMODE(os.stat(path).st_mode)
        assert not bound.listener.get_inheritable()


def test_bind_meets_a_living_shim(path: str) -> None:
    """Its socket stays its own."""
    bound = bind(path)
    with bound.listener:
        assert address.bind(path) is None
        assert address.is_alive(path)
        connection, _ = bound.listener.accept()  # the probe
        connection.close()
        connection, _ = bound.listener.accept()
        connection.close()
        assert is_served(bound)


def test_bind_meets_a_shim_too_busy_to_accept(path: str) -> None:
    """A full backlog is the sign of somebody who lives, not of a dead one's socket."""
    os.makedirs(os.path.dirname(path))
    waiting = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        try:
            while True:
                client = socket.socket(socket.AF_UNIX)
                waiting.append(client)
                client.setblocking(False)
                client.connect(path)
        except BlockingIOError:
            pass

        assert address.bind(path) is None
        for client in waiting:
            client.close()


def test_bind_replaces_the_socket_of_a_dead_shim(path: str) -> None:
    """SIGKILL leaves one behind."""
    bind(path).listener.close()
    assert not address.is_alive(path)
    bound = bind(path)
    with bound.listener:
        assert is_served(bound)


def test_bind_of_a_path_that_is_too_long_says_so(tmp_path: Path) -> None:
    """Before it makes any folder."""
    path = str(tmp_path / ("x" * 100) / "s")
    with pytest.raises(SocketError) as caught:
        address.bind(path)

    assert f"create new shim socket: path {path} has {len(path)} bytes, a unix socket takes 107" == str(caught.value)
    assert [] == os.listdir(tmp_path)


def test_bind_where_it_cannot_names_the_place(tmp_path: Path) -> None:
    """A file in the way of the folder, a folder in the way of the socket."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(SocketError, match=f"^create new shim socket: {tmp_path}/file: Not a directory$|File exists$"):
        address.bind(str(tmp_path / "file" / "s"))
    with pytest.raises(SocketError, match=f"^create new shim socket: {tmp_path}/folder: "):
        address.bind(str(tmp_path / "folder"))


def test_remove_takes_only_its_own_socket(path: str) -> None:
    """Another shim may have put its own there since; removing twice is fine."""
    first = bind(path)
    first.listener.close()
    time.sleep(0.02)  # inode numbers are used again at once, times only within a tick
    second = bind(path)
    first.remove()
    assert os.path.exists(path)
    second.remove()
    second.remove()
    second.listener.close()

    assert not os.path.exists(path)


def test_binds_at_once_leave_one_listener(path: str) -> None:
    """Whether the socket is new or a dead shim's: all others meet the one that won, and nobody's is stolen."""
    for is_stale in (False, True, True):
        if is_stale:
            bind(path).listener.close()
        results: list[Bound | None] = []
        barrier = threading.Barrier(8)

        def race(results: list[Bound | None] = results, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            results.append(address.bind(path))

        threads = [threading.Thread(target=race) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [bound for bound in results if bound is not None]

        assert 8 == len(results)
        for _ in range(7):  # the probes
            winner.listener.accept()[0].close()
        assert is_served(winner)
        winner.remove()
        winner.listener.close()


def test_adopt_takes_the_listener_that_was_left(path: str) -> None:
    """With its path and identity; the children of the daemon shall not have it."""
    bound = bind(path)
    os.set_inheritable(bound.listener.fileno(), True)
    adopted = address.adopt(bound.listener.detach())
    with adopted.listener:
        assert (path, bound.inode) == (adopted.path, adopted.inode)
        assert is_served(adopted)
        assert not adopted.listener.get_inheritable()
        adopted.remove()

    assert not os.path.exists(path)


def test_adopt_refuses_what_is_no_listening_unix_socket(tmp_path: Path) -> None:
    """A daemon started by hand without one says so."""
    with open(tmp_path / "file", "w") as file:
        with pytest.raises(SocketError, match=rf"^descriptor {file.fileno()} is no listening socket: "):
            address.adopt(file.fileno())
    with socket.socket(socket.AF_UNIX) as idle:
        with pytest.raises(SocketError, match=rf"^descriptor {idle.fileno()} is no listening socket$"):
            address.adopt(idle.fileno())
    with socket.create_server(("127.0.0.1", 0)) as inet:
        with pytest.raises(SocketError, match=rf"^descriptor {inet.fileno()} is no listening unix socket$"):
            address.adopt(inet.fileno())
    with pytest.raises(SocketError, match=r"^descriptor 999 is no listening socket: Bad file descriptor$"):
        address.adopt(999)
