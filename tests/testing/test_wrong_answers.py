"""What each version of containerd makes of each answer to `start`, right or wrong, with the real processes."""

import json
import time
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any

from shim.api.bootstrap_pb2 import BootstrapResult
from shim.api.runc_options_pb2 import Options
from shim.testing import VERSIONS, Endpoint, FakeContainerd, StartError, UnspokenError
from tests.testing.answering import PID, Answering, reader

OLD = ["1.6", "1.7"]
MIDDLE = ["2.0", "2.1", "2.2"]
NEW = ["2.3", "2.4"]
ALL = [*OLD, *MIDDLE, *NEW]
FAILED = "failed to create TTRPC connection: "


def json_answer(address: str, version: object = 2, protocol: str = "ttrpc") -> bytes:
    """Return an answer in JSON."""
    return json.dumps({"version": version, "address": address, "protocol": protocol}).encode()


def result(address: str, version: int = 3, protocol: str = "ttrpc") -> bytes:
    """Return an answer in protobuf."""
    return BootstrapResult(version=version, address=address, protocol=protocol).SerializeToString()


def understood(style: str, shim: Answering) -> tuple[int, str, str]:
    """Return the version that was understood, the one of the client's calls, and the protocol."""
    with FakeContainerd(shim.path, style=style) as containerd:
        running = containerd.start("c1")
        answer = running.call("Connect")
        assert answer.shim_pid == PID
        return running.endpoint.version, answer.version, running.endpoint.protocol


def refused(style: str, shim: Answering) -> str:
    """Return what containerd says of an answer that leads nowhere."""
    with FakeContainerd(shim.path, style=style) as containerd:
        with pytest.raises(StartError) as caught:
            containerd.start("c1")
        assert not (containerd.bundle("c1").path / "bootstrap.json").exists() or "supports only" in str(caught.value)
    return str(caught.value)


def test_every_version_has_its_place() -> None:
    """None is left out of the tests below."""
    assert ALL == list(VERSIONS)


@pytest.mark.parametrize("style", ALL)
def test_a_plain_address_means_version_two_everywhere(style: str, shim: Answering, address: str) -> None:
    """White space around it is of no account."""
    shim.says(f" {address}\n".encode())

    assert (2, "v2", "ttrpc") == understood(style, shim)


@pytest.mark.parametrize("style", ALL)
def test_a_plain_name_is_an_abstract_socket(style: str, shim: Answering, abstract: str) -> None:
    """As in the days before 1.4."""
    shim.says(abstract.encode())

    assert (2, "v2", "ttrpc") == understood(style, shim)


@pytest.mark.parametrize("style", [*OLD[1:], *MIDDLE, *NEW])
def test_json_of_version_two_is_understood_from_1_7_on(style: str, shim: Answering, address: str) -> None:
    """The protocol in any case."""
    shim.says(json_answer(address, protocol="TTRPC"))

    assert (2, "v2", "TTRPC") == understood(style, shim)


def test_containerd_1_6_takes_json_for_an_address(shim: Answering, address: str) -> None:
    """An abstract socket of that name, where nobody is."""
    shim.says(json_answer(address))
    text = json_answer(address).decode()

    # Go's name for what the kernel finds too long, or empty, is the kernel's.
    assert refused("1.6", shim) in (
        f"dial unix @{text}: connect: invalid argument",
        f"dial unix @{text}: connect: connection refused",
    )


def test_json_of_version_three_breaks_containerd_1_7(shim: Answering, address: str) -> None:
    """With its text."""
    shim.says(json_answer(address, 3))

    assert "unsupported shim version (3): not implemented" == refused("1.7", shim)


@pytest.mark.parametrize("style", [*MIDDLE, *NEW])
def test_json_of_version_three_is_understood_from_2_0_on(style: str, shim: Answering, address: str) -> None:
    """And task v3 is called."""
    shim.says(json_answer(address, 3))

    assert (3, "v3", "ttrpc") == understood(style, shim)


@pytest.mark.parametrize("style", [*OLD[1:], *MIDDLE, *NEW])
def test_json_of_version_four_is_understood_by_none(style: str, shim: Answering, address: str) -> None:
    """Of today's."""
    shim.says(json_answer(address, 4))

    assert "unsupported shim version (4): not implemented" == refused(style, shim)


@pytest.mark.parametrize("style", [*OLD[1:], *MIDDLE, *NEW])
@pytest.mark.parametrize("version", [0, 1, "2", None])
def test_json_without_a_good_version_is_an_address(style: str, version: object, shim: Answering, address: str) -> None:
    """Literally: 2.x finds a scheme in it, 1.7 none."""
    text = json_answer(address, version).decode()
    shim.says(text.encode())
    scheme = text.partition("://")[0]

    assert refused(style, shim) in (
        [f"{FAILED}unsupported protocol: {scheme}"]
        if style != "1.7"
        else [f"{FAILED}dial unix @{text}: connect: {reason}" for reason in ("invalid argument", "connection refused")]
    )


@pytest.mark.parametrize("style", NEW)
@pytest.mark.parametrize("version", [2, 3])
def test_a_bootstrap_result_is_understood_from_2_3_on(style: str, version: int, shim: Answering, address: str) -> None:
    """Of both versions."""
    shim.says(result(address, version))

    assert (version, f"v{version}", "ttrpc") == understood(style, shim)


@pytest.mark.parametrize("style", [*OLD, *MIDDLE])
def test_a_bootstrap_result_is_an_address_before_2_3(style: str, shim: Answering, address: str) -> None:
    """So broke shims of 2.3 under a daemon of 2.2."""
    shim.says(result(address))
    text = refused(style, shim)

    if style in MIDDLE:
        assert f"{FAILED}unsupported protocol: {result(address).decode().partition('://')[0]}" == text
    else:
        assert text.startswith(f"{FAILED if style == '1.7' else ''}dial unix @\x08\x03\x12")


@pytest.mark.parametrize("style", NEW)
@pytest.mark.parametrize("version", [0, 1, 4])
def test_a_bootstrap_result_of_another_version_has_no_client(
    style: str, version: int, shim: Answering, address: str
) -> None:
    """Found out only after the shim has been dialed."""
    shim.says(result(address, version))

    assert f"containerd client supports only v2 and v3 TTRPC task client (got {version})" == refused(style, shim)


@pytest.mark.parametrize("style", NEW)
def test_no_answer_is_an_empty_bootstrap_result(style: str, shim: Answering) -> None:
    """Which names no protocol."""
    assert 'unexpected protocol: ""' == refused(style, shim)


@pytest.mark.parametrize("style", [*OLD, *MIDDLE])
def test_no_answer_is_an_empty_address_before_2_3(style: str, shim: Answering) -> None:
    """Where nobody is."""
    prefix = "" if style == "1.6" else FAILED

    assert f"{prefix}dial unix @: connect: connection refused" == refused(style, shim)


@pytest.mark.parametrize("style", [*OLD[1:], *MIDDLE, *NEW])
def test_another_protocol_is_unexpected(style: str, shim: Answering, address: str) -> None:
    """Whatever it is."""
    shim.says(json_answer(address, 2, "http"))

    assert 'unexpected protocol: "http"' == refused(style, shim)


@pytest.mark.parametrize("style", [*MIDDLE, *NEW])
def test_grpc_needs_version_three(style: str, shim: Answering, address: str) -> None:
    """From 2.0 on."""
    shim.says(json_answer(address, 2, "grpc"))

    assert "containerd client supports only v3 GRPC task service (got 2)" == refused(style, shim)


@pytest.mark.parametrize(("style", "version"), [("1.7", 2), ("2.0", 3), ("2.3", 3)])
def test_grpc_is_where_the_fake_ends(style: str, version: int, shim: Answering, address: str) -> None:
    """And it says so, rather than pass or fail."""
    shim.says(json_answer(address, version, "grpc"))
    with FakeContainerd(shim.path, style=style) as containerd, pytest.raises(UnspokenError, match="over grpc"):
        containerd.start("c1")


@pytest.mark.parametrize("style", ["2.0", "2.3"])
def test_vsock_is_where_the_fake_ends(style: str, shim: Answering) -> None:
    """As above."""
    shim.says(b"vsock://3:1024")
    with FakeContainerd(shim.path, style=style) as containerd, pytest.raises(UnspokenError, match="vsock://3:1024"):
        containerd.start("c1")


@pytest.mark.parametrize("style", ALL)
def test_a_scheme_that_nobody_dials_is_refused(style: str, shim: Answering) -> None:
    """1.x takes it for a name."""
    shim.says(b"tcp://1.2.3.4:5")
    prefix = "" if style == "1.6" else FAILED
    old = f"{prefix}dial unix @tcp://1.2.3.4:5: connect: connection refused"

    assert (old if style in OLD else f"{FAILED}unsupported protocol: tcp") == refused(style, shim)


@pytest.mark.parametrize("style", ALL)
def test_an_address_where_nobody_listens_is_said(style: str, shim: Answering, tmp_path: Path) -> None:
    """As Go says it."""
    shim.says(f"unix://{tmp_path}/nobody".encode())
    prefix = "" if style == "1.6" else FAILED

    assert f"{prefix}dial unix {tmp_path}/nobody: connect: no such file or directory" == refused(style, shim)


@pytest.mark.parametrize("style", ALL)
def test_a_warning_on_stderr_becomes_part_of_the_address(style: str, shim: Answering, address: str) -> None:
    """The output is one pipe, and success is no reason to look at half of it."""
    shim.says(address.encode(), errors="warning: old kernel")
    prefix = "" if style == "1.6" else FAILED
    path = address.removeprefix("unix://")

    assert f"{prefix}dial unix {path}warning: old kernel: connect: no such file or directory" == refused(style, shim)


@pytest.mark.parametrize("style", NEW)
def test_a_warning_on_stderr_spoils_a_bootstrap_result(style: str, shim: Answering, address: str) -> None:
    """What does not parse is taken for text."""
    shim.says(result(address), first="warning: old kernel\n")

    assert refused(style, shim).startswith(f"{FAILED}unsupported protocol: warning: old kernel\n\x08\x03")


@pytest.mark.parametrize("style", ALL)
def test_a_start_that_fails_is_told_with_all_it_wrote(style: str, shim: Answering) -> None:
    """2.4 takes off the white space."""
    shim.says(b"one\n", errors="io.containerd.x.v1: two\n", status=1)
    text = "one\nio.containerd.x.v1: two" if style == "2.4" else "one\nio.containerd.x.v1: two\n"

    assert f"{text}: exit status 1" == refused(style, shim)


@pytest.mark.parametrize(("style", "prefix"), [("1.6", ": "), ("2.3", ": "), ("2.4", "")])
def test_a_start_that_is_killed_is_told_so(style: str, prefix: str, shim: Answering) -> None:
    """With Go's word for it."""
    shim.says(b"", then="kill -9 $$")

    assert f"{prefix}signal: killed" == refused(style, shim)


def test_a_start_that_hangs_is_killed(shim: Answering) -> None:
    """When the client's patience ends."""
    shim.says(b"thinking", then="exec sleep 60")
    with FakeContainerd(shim.path, start_limit_s=1.0) as containerd:
        with pytest.raises(StartError) as caught:
            containerd.start("c1")

        assert "thinking: signal: killed" == str(caught.value)
        assert [] == containerd.processes()


def test_a_daemon_that_keeps_starts_output_open_holds_containerd_up(shim: Answering, address: str) -> None:
    """containerd reads to the end, which does not come."""
    shim.says(address.encode(), then="sleep 60 &")
    began = time.monotonic()
    with FakeContainerd(shim.path, start_limit_s=1.0) as containerd:
        with pytest.raises(StartError, match="what it left holds its output"):
            containerd.start("c1")

        assert time.monotonic() - began >= 1.0
        assert 1 == len(containerd.processes())


@pytest.mark.parametrize(
    ("built_for", "style", "expected"),
    [
        *[("1.6 to 2.2", style, "v2") for style in [*OLD, *MIDDLE]],
        *[("1.6 to 2.2", style, "type with url c1: not found\n: exit status 1") for style in NEW[:1]],
        *[("2.3", style, "dial") for style in OLD],
        *[("2.3", style, "unsupported protocol: \x08\x03\x12") for style in MIDDLE],
        *[("2.3", style, "v3") for style in NEW],
        *[("2.4", style, "deprecated API") for style in [*OLD, *MIDDLE]],
        *[("2.4", style, "v3") for style in NEW],
        *[("both", style, "v2") for style in [*OLD, *MIDDLE]],
        *[("both", style, "v3") for style in NEW],
    ],
)
def test_how_a_shim_reads_stdin_decides_where_it_works(
    built_for: str, style: str, expected: str, tmp_path: Path, address: str
) -> None:
    """Old shims take BootstrapParams for options, 2.3's answer protobuf to all, 2.4's refuse the old way."""
    with FakeContainerd(reader(tmp_path, built_for, address), style=style) as containerd:
        try:
            said = containerd.start("c1", options=Options(binary_name="crun")).call("Connect").version
        except StartError as error:
            said = str(error)

    assert expected in said


@pytest.mark.parametrize("style", ALL)
def test_an_answer_is_read_as_the_table_says(style: str) -> None:
    """The judgement alone, without processes: of an Any that nobody asked for."""
    output = Any(type_url="unix:///s", value=b"x").SerializeToString()
    version = VERSIONS[style]

    if style in NEW:  # field 1 is a number here: wire type 2 is unknown there, and field 2 is the address
        assert Endpoint(0, "x", "") == version.read_answer(output)
    else:
        assert Endpoint(2, output.strip().decode(), "ttrpc") == version.read_answer(output)
