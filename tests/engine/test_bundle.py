"""The bundle folder: what is read from it, and what is left in it for `delete`."""

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shim.engine.bundle import Bundle
from shim.errors import BundleError

RUNC = "io.containerd.runc.v2.group"
CRI = "io.kubernetes.cri.sandbox-id"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """An empty bundle."""
    return Bundle(str(tmp_path))


def write_spec(bundle: Bundle, spec: object) -> None:
    """Write config.json."""
    Path(bundle.file("config.json")).write_text(json.dumps(spec))


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        (None, "c1"),
        ({}, "c1"),
        ({"other": "x"}, "c1"),
        ({CRI: "pod"}, "pod"),
        ({RUNC: "group"}, "group"),
        ({CRI: "pod", RUNC: "group"}, "group"),
        ({RUNC: "", CRI: "pod"}, ""),
        ({CRI: ""}, ""),
        ("nonsense", "c1"),
    ],
)
def test_group_is_the_first_annotation_that_is_present(bundle: Bundle, annotations: object, expected: str) -> None:
    """Even an empty one; else the container is alone."""
    write_spec(bundle, {} if annotations is None else {"annotations": annotations})

    assert expected == bundle.group("c1")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]}}, True),
        ({"linux": {"namespaces": [{"type": "pid", "path": ""}]}}, True),
        ({"linux": {"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}]}}, False),
        ({"linux": {"namespaces": [{"type": "mount"}]}}, False),
        ({"linux": {"namespaces": []}}, False),
        ({"linux": {"namespaces": None}}, False),
        ({"linux": {}}, False),
        ({"linux": None}, False),
        ({"linux": {"namespaces": ["pid", {"type": 7}]}}, False),
        ({}, False),
    ],
)
def test_own_pid_namespace_is_one_made_for_the_container(bundle: Bundle, spec: object, expected: bool) -> None:
    """A path joins somebody else's; none shares the host's."""
    write_spec(bundle, spec)

    assert expected is bundle.has_own_pid_namespace()


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff", b"n\0u\0l\0l\0"])
def test_a_spec_that_cannot_be_read_is_an_error_that_names_it(bundle: Bundle, content: bytes | None) -> None:
    """And counts as sharing its pids: killing too much is safer than leaving processes behind."""
    if content is not None:
        Path(bundle.file("config.json")).write_bytes(content)

    assert not bundle.has_own_pid_namespace()
    for read in (bundle.read_spec, lambda: bundle.group("c1")):
        with pytest.raises(BundleError, match=r"^(open|parse) .*/config\.json: ") as caught:
            read()
        assert bundle.file("config.json") in str(caught.value)


def test_options_come_back_as_they_were(bundle: Bundle) -> None:
    """In files that only root reads, as Go's shim writes them."""
    before = os.umask(0)
    try:
        bundle.write_options({"root": "/r", "systemd_cgroup": True}, "crun")
    finally:
        os.umask(before)
    names = ("options.json", "runtime")

    assert [0o600, 0o600] == [stat.S_IMODE(os.stat(bundle.file(name)).st_mode) for name in names]
    assert '{"root":"/r","systemd_cgroup":true}' == Path(bundle.file("options.json")).read_text()
    assert ({"root": "/r", "systemd_cgroup": True}, "crun") == (bundle.read_options(), bundle.read_runtime())


def test_no_options_are_told_from_garbled_ones(bundle: Bundle) -> None:
    """Without the file no Create has come; one that cannot be read is no reason not to clean up."""
    assert (None, "") == (bundle.read_options(), bundle.read_runtime())
    for content in (b"{", b"\xff", b"[]", b"null"):
        Path(bundle.file("options.json")).write_bytes(content)

        assert {} == bundle.read_options()


def test_the_runtimes_name_is_read_whatever_it_is(bundle: Bundle) -> None:
    """A path is bytes, and Go's shim may have left a line end."""
    for content, expected in {b"": "", b"/bin/\xff\n": "/bin/\udcff", b"crun\n": "crun"}.items():
        Path(bundle.file("runtime")).write_bytes(content)

        assert expected == bundle.read_runtime()


def test_options_that_cannot_be_written_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    """The bundle may be gone."""
    with pytest.raises(BundleError, match=rf"^write {tmp_path}/gone/options\.json: No such file or directory$"):
        Bundle(str(tmp_path / "gone")).write_options({}, "")


@pytest.mark.parametrize(("content", "expected"), [(b"42", 42), (b" 42\n", 42), (b"4194304", 4194304)])
def test_read_pid(bundle: Bundle, content: bytes, expected: int) -> None:
    """Runtimes write digits alone; white space is fine."""
    Path(bundle.file("init.pid")).write_bytes(content)
    Path(bundle.file("e1.pid")).write_bytes(content)

    assert [expected, expected] == [bundle.read_pid(), bundle.read_pid("e1.pid")]


@pytest.mark.parametrize(
    "content", [b"", b"0", b"-1", b"4x", b"4 2", b"+4", b"\xff", "\u00b2".encode(), "\u0663".encode(), b"9" * 5000]
)
def test_a_pid_file_without_a_pid_is_an_error_that_shows_it(bundle: Bundle, content: bytes) -> None:
    """Signals to what it might mean would hit somebody else."""
    Path(bundle.file("init.pid")).write_bytes(content)
    with pytest.raises(BundleError) as caught:
        bundle.read_pid()

    path = bundle.file("init.pid")
    assert str(caught.value).startswith(f"failed to retrieve OCI runtime container pid: {path} holds ")


def test_a_missing_pid_file_is_an_error_that_names_it(bundle: Bundle) -> None:
    """The runtime made none."""
    expected = f"open {bundle.file('x.pid')}: No such file or directory"
    with pytest.raises(BundleError) as caught:
        bundle.read_pid("x.pid")

    assert f"failed to retrieve OCI runtime container pid: {expected}" == str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(content=st.binary(max_size=12))
def test_any_files_are_read_or_refused(bundle: Bundle, content: bytes) -> None:
    """`delete` must come through whatever a crash has left."""
    for name in ("init.pid", "options.json", "runtime", "config.json"):
        Path(bundle.file(name)).write_bytes(content)
    try:
        assert 0 < bundle.read_pid() < 1 << 32
    except BundleError:
        pass

    assert isinstance(bundle.read_options(), dict)
    assert isinstance(bundle.read_runtime(), str)
    assert isinstance(bundle.has_own_pid_namespace(), bool)
