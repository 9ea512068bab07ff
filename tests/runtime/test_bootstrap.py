"""Both protocols of `start`: which one stdin speaks, and the answer in kind."""

import pytest
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st

from shim.api import task_v2_pb2, task_v3_pb2
from shim.api.bootstrap_pb2 import BootstrapParams, BootstrapResult
from shim.api.runc_options_pb2 import Options
from shim.runtime.bootstrap import Bootstrap, read_bootstrap, write_answer, write_deleted
from tests import strategies

ADDRESS = "unix:///run/containerd/s/abc"


def options_any(binary: str = "crun") -> Any:
    """Return options as containerd sends them, with the bare type name."""
    return Any(type_url="containerd.runc.v1.Options", value=Options(binary_name=binary).SerializeToString())


def params(**values: object) -> BootstrapParams:
    """Return what containerd 2.3 sends for id c1 in namespace n."""
    return BootstrapParams(**{"instance_id": "c1", "namespace": "n", **values})  # type: ignore[arg-type]


def test_no_input_is_the_old_protocol() -> None:
    """containerd 1.6 to 2.2 without options."""
    assert Bootstrap(is_legacy=True) == read_bootstrap(b"", "n", "c1")


def test_an_any_is_the_old_protocol_with_options() -> None:
    """Although it parses as the new one's message, too."""
    data = options_any().SerializeToString()

    assert BootstrapParams.FromString(data).instance_id == "containerd.runc.v1.Options"
    assert Bootstrap(is_legacy=True, options=options_any()) == read_bootstrap(data, "n", "c1")


def test_params_with_our_id_and_namespace_are_the_new_protocol() -> None:
    """Everything they say is taken."""
    told = params(log_level=-4, containerd_version="v2.3.4", socket_dir="/run/s")
    told.extensions.add().value.CopyFrom(options_any())

    assert Bootstrap(
        is_legacy=False,
        options=options_any(),
        socket_dir="/run/s",
        is_debug=True,
        containerd_version="v2.3.4",
    ) == read_bootstrap(told.SerializeToString(), "n", "c1")


def test_params_without_extensions_have_no_options() -> None:
    """And the default folder, and no debug output."""
    assert Bootstrap(is_legacy=False) == read_bootstrap(params().SerializeToString(), "n", "c1")


@pytest.mark.parametrize(("level", "expected"), [(-8, True), (-4, True), (-3, False), (0, False), (4, False)])
def test_debug_is_at_level_minus_four_or_below(level: int, expected: bool) -> None:
    """The numbers are those of Go's slog."""
    told = read_bootstrap(params(log_level=level).SerializeToString(), "n", "c1")

    assert expected is told.is_debug


@pytest.mark.parametrize(("namespace", "task_id"), [("n", "other"), ("other", "c1"), ("", ""), ("c1", "n")])
def test_params_of_somebody_else_are_the_old_protocol(namespace: str, task_id: str) -> None:
    """That they parse proves nothing; the id is then taken for a type nobody knows."""
    told = read_bootstrap(params(socket_dir="/run/s").SerializeToString(), namespace, task_id)

    assert (True, "") == (told.is_legacy, told.socket_dir)


def test_an_any_whose_value_looks_like_a_namespace_is_told_apart_by_the_id() -> None:
    """Only both together make the new protocol."""
    data = Any(type_url="containerd.runc.v1.Options", value=b"n").SerializeToString()
    told = read_bootstrap(data, "n", "c1")

    assert told.is_legacy
    assert told.options == Any(type_url="containerd.runc.v1.Options", value=b"n")


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05abc", b"\n\xff\xff\xff\xff", b"not protobuf at all"])
def test_garbage_is_the_old_protocol_without_options(data: bytes) -> None:
    """The start goes on."""
    assert read_bootstrap(data, "n", "c1").is_legacy


def test_an_any_without_a_type_is_no_options() -> None:
    """1.6 sends one when it has none."""
    assert Bootstrap() == read_bootstrap(Any(value=b"x").SerializeToString(), "n", "c1")


def test_the_answer_is_in_kind() -> None:
    """Plain text without a newline for the old protocol, protobuf for the new."""
    assert ADDRESS.encode() == write_answer(ADDRESS, Bootstrap())
    assert BootstrapResult(version=3, address=ADDRESS, protocol="ttrpc") == BootstrapResult.FromString(
        write_answer(ADDRESS, Bootstrap(is_legacy=False))
    )


def test_the_answer_keeps_bytes_that_are_no_text() -> None:
    """Paths are bytes."""
    assert b"unix:///\xff" == write_answer("unix:///\udcff", Bootstrap())


@given(st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(0, 2**62))
def test_the_answer_of_delete_is_the_message_of_both_task_versions(pid: int, status: int, at_ns: int) -> None:
    """Written by hand, read by protobuf's code."""
    data = write_deleted(pid, status, at_ns)

    for kind in (task_v2_pb2.DeleteResponse, task_v3_pb2.DeleteResponse):
        answer = kind.FromString(data)
        assert (pid, status, at_ns) == (answer.pid, answer.exit_status, answer.exited_at.ToNanoseconds())
        assert data == answer.SerializeToString()


@given(st.binary(max_size=80))
def test_any_input_is_understood_somehow(data: bytes) -> None:
    """No start fails because of its stdin."""
    told = read_bootstrap(data, "n", "c1")

    assert told.is_legacy or data


@strategies.FEWER
@given(st.text(max_size=10), st.text(max_size=10), st.text(max_size=10), st.text(max_size=10))
def test_the_new_protocol_counts_only_for_its_own_container(
    instance_id: str, namespace: str, task_id: str, own: str
) -> None:
    """Whatever the names are, the empty message included, which no input is."""
    data = BootstrapParams(instance_id=instance_id, namespace=namespace).SerializeToString()
    is_ours = (instance_id, namespace) == (task_id, own) and bool(data)

    assert is_ours is not read_bootstrap(data, own, task_id).is_legacy
    assert (not data) is read_bootstrap(data, namespace, instance_id).is_legacy
