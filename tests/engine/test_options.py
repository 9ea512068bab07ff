"""The runtime's options in every form that containerd sends."""

from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from shim.api.runc_options_pb2 import CheckpointOptions, Options
from shim.api.runctypes_pb2 import CheckpointOptions as LinuxCheckpointOptions
from shim.api.runctypes_pb2 import CreateOptions
from shim.api.runtimeoptions_pb2 import Options as ConfigOptions
from shim.engine.options import Checkpointing, RuncOptions, decode_checkpoint_options, decode_options
from shim.errors import InvalidArgumentError
from shim.ttrpc import Code

FULL = Options(
    no_pivot_root=True,
    no_new_keyring=True,
    shim_cgroup="/cg",
    io_uid=1,
    io_gid=4294967295,
    binary_name="crun",
    root="/r",
    systemd_cgroup=True,
    criu_image_path="/i",
    criu_work_path="/w",
)
DECODED = RuncOptions(True, True, "/cg", 1, 4294967295, "crun", "/r", True, "/i", "/w")


def pack(message: Message, prefix: str = "") -> Any:
    """Return a message as containerd sends it."""
    return Any(type_url=prefix + message.DESCRIPTOR.full_name, value=message.SerializeToString())


@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/", "types.containerd.io/a/b/"])
def test_runcs_options_are_taken_whole(prefix: str) -> None:
    """Whatever stands before the name of the type."""
    assert DECODED == decode_options(pack(FULL, prefix))


@pytest.mark.parametrize("options", [None, Any(), Any(value=b"x"), pack(Options())])
def test_absent_options_are_defaults(options: Any | None) -> None:
    """As are empty ones."""
    assert RuncOptions() == decode_options(options)


def test_options_of_old_clients_are_taken_too() -> None:
    """1.6 and 1.7 send them to runtimes that are not named runc."""
    old = CreateOptions(
        no_pivot_root=True, no_new_keyring=True, shim_cgroup="/cg", io_uid=1, io_gid=2, criu_image_path="/i"
    )

    assert "containerd.linux.runc.CreateOptions" == old.DESCRIPTOR.full_name
    assert RuncOptions(
        no_pivot_root=True, no_new_keyring=True, shim_cgroup="/cg", io_uid=1, io_gid=2, criu_image_path="/i"
    ) == decode_options(pack(old))


TOML = """
BinaryName = "crun"
Root = "/r"
SystemdCgroup = true
NoPivotRoot = true
no_new_keyring = true
SHIMCGROUP = "/cg"
IoUid = 1
IoGid = 4294967295
CriuImagePath = "/i"
CriuWorkPath = "/w"
TypeUrl = "runtimeoptions.v1.Options"
[Other]
root = "not this one"
"""


def test_a_table_in_the_options_is_read() -> None:
    """CRI puts the user's there, names in any case."""
    assert DECODED == decode_options(pack(ConfigOptions(config_body=TOML.encode())))


def test_a_file_named_in_the_options_is_read(tmp_path: Path) -> None:
    """Unless the table itself came along."""
    path = tmp_path / "config.toml"
    path.write_text(TOML)

    assert DECODED == decode_options(pack(ConfigOptions(config_path=str(path))))
    assert RuncOptions(root="/o") == decode_options(
        pack(ConfigOptions(config_path=str(path), config_body=b"root='/o'"))
    )
    assert RuncOptions() == decode_options(pack(ConfigOptions()))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (pack(CheckpointOptions()), "unsupported option type containerd.runc.v1.CheckpointOptions"),
        (Any(type_url="a/b.C"), "unsupported option type a/b.C"),
        (Any(type_url="containerd.runc.v1.Options", value=b"\xff"), "cannot decode containerd.runc.v1.Options: "),
        (Any(type_url="runtimeoptions.v1.Options", value=b"\xff"), "cannot decode runtimeoptions.v1.Options: "),
        (pack(ConfigOptions(config_body=b"=")), "parse config_body: "),
        (pack(ConfigOptions(config_body=b"\xff")), "parse config_body: "),
        (pack(ConfigOptions(config_path="/no/such")), "open /no/such: No such file or directory"),
        (pack(ConfigOptions(config_body=b"Root = 7")), "config_body: Root wants str, has 7"),
        (pack(ConfigOptions(config_body=b"SystemdCgroup = 1")), "config_body: SystemdCgroup wants bool, has 1"),
        (pack(ConfigOptions(config_body=b"IoUid = true")), "config_body: IoUid wants int, has True"),
    ],
)
def test_what_cannot_be_understood_is_refused_by_name(options: Any, expected: str) -> None:
    """As an argument that makes no sense, which clients see."""
    with pytest.raises(InvalidArgumentError) as caught:
        decode_options(options)

    assert Code.INVALID_ARGUMENT is caught.value.code
    assert str(caught.value).startswith(expected)
    assert str(caught.value).endswith(": invalid argument")


def test_checkpoint_options_are_taken_whole() -> None:
    """Absent ones are defaults; those of old clients have the paths under other numbers."""
    decoded = Checkpointing(True, True, True, True, True, ("network", "ipc"), "/w", "/p")

    options = CheckpointOptions(
        exit=True,
        open_tcp=True,
        external_unix_sockets=True,
        terminal=True,
        file_locks=True,
        empty_namespaces=["network", "ipc"],
        cgroups_mode="soft",
        image_path="/i",
        work_path="/w",
        parent_path="/p",
    )
    old = LinuxCheckpointOptions(exit=True, empty_namespaces=["ipc"], image_path="/i", work_path="/w")

    assert decoded == decode_checkpoint_options(pack(options, "types.containerd.io/"))
    assert Checkpointing(exit=True, empty_namespaces=("ipc",), work_path="/w") == decode_checkpoint_options(pack(old))
    assert [Checkpointing()] * 2 == [decode_checkpoint_options(options) for options in (None, Any())]


@pytest.mark.parametrize(
    "options", [pack(Options()), Any(type_url="containerd.runc.v1.CheckpointOptions", value=b"\xff")]
)
def test_checkpoint_options_that_make_no_sense_are_refused_by_name(options: Any) -> None:
    """As an argument that makes no sense."""
    with pytest.raises(InvalidArgumentError, match=r"containerd\.runc\.v1\.(Checkpoint)?Options.*: invalid argument$"):
        decode_checkpoint_options(options)


def test_to_json_names_only_what_is_set() -> None:
    """As options.json of Go's shim does."""
    assert {} == RuncOptions().to_json()
    assert {"root": "/r", "systemd_cgroup": True, "io_uid": 5} == RuncOptions(
        root="/r", systemd_cgroup=True, io_uid=5
    ).to_json()
