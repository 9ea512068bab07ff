"""The runtime's options, in every form that containerd sends them.

Rule: absent options are defaults; a message of an unknown type is an error that names it.
Spec: contract 7.5; 1.6 and 1.7 clients send `containerd.linux.runc.CreateOptions` to runtimes not named runc (17.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from shim.api.runc_options_pb2 import CheckpointOptions, Options
from shim.api.runctypes_pb2 import CheckpointOptions as LinuxCheckpointOptions
from shim.api.runctypes_pb2 import CreateOptions
from shim.api.runtimeoptions_pb2 import Options as ConfigOptions
from shim.errors import InvalidArgumentError

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any
    from google.protobuf.message import Message

MessageT = TypeVar("MessageT", bound="Message")


class RuncOptions(NamedTuple):
    """`containerd.runc.v1.Options`, as far as a shim acts on it; names are the message's."""

    no_pivot_root: bool = False
    no_new_keyring: bool = False
    shim_cgroup: str = ""
    io_uid: int = 0
    io_gid: int = 0
    binary_name: str = ""
    root: str = ""
    systemd_cgroup: bool = False
    criu_image_path: str = ""
    criu_work_path: str = ""

    def to_json(self) -> dict[str, object]:
        """Return what options.json holds: the fields that are set."""
        return {name: value for name, value in self._asdict().items() if value}


_NAMES = RuncOptions._fields


class Checkpointing(NamedTuple):
    """`containerd.runc.v1.CheckpointOptions`, as far as a shim acts on it; names are the message's."""

    exit: bool = False
    open_tcp: bool = False
    external_unix_sockets: bool = False
    terminal: bool = False
    file_locks: bool = False
    empty_namespaces: tuple[str, ...] = ()
    work_path: str = ""
    parent_path: str = ""


def decode_checkpoint_options(options: Any | None) -> Checkpointing:
    """Return the options of a Checkpoint; those of old clients have the paths under other numbers.

    Raises:
        InvalidArgumentError: The Any holds another message, or one that cannot be decoded; the text names the type.
    """
    if options is None or not options.type_url:
        return Checkpointing()
    name = options.type_url.rpartition("/")[2]
    message: CheckpointOptions | LinuxCheckpointOptions
    if name == CheckpointOptions.DESCRIPTOR.full_name:
        message = _parse(CheckpointOptions(), options)
    elif name == LinuxCheckpointOptions.DESCRIPTOR.full_name:
        message = _parse(LinuxCheckpointOptions(), options)
    else:
        raise InvalidArgumentError(f"unsupported option type {options.type_url}: invalid argument")
    known = message.DESCRIPTOR.fields_by_name
    values = {name: getattr(message, name) for name in Checkpointing._fields if name in known}
    return Checkpointing(**{**values, "empty_namespaces": tuple(message.empty_namespaces)})


def decode_options(options: Any | None) -> RuncOptions:
    """Return the options in an Any.

    Raises:
        InvalidArgumentError: It holds another message, or one that cannot be decoded; the text names the type.
    """
    if options is None or not options.type_url:
        return RuncOptions()
    name = options.type_url.rpartition("/")[2]
    if name == Options.DESCRIPTOR.full_name:
        return _from_message(Options(), options)
    if name == CreateOptions.DESCRIPTOR.full_name:
        return _from_message(CreateOptions(), options)
    if name == ConfigOptions.DESCRIPTOR.full_name:
        return _from_config(_parse(ConfigOptions(), options))
    raise InvalidArgumentError(f"unsupported option type {options.type_url}: invalid argument")


def _parse(message: MessageT, options: Any) -> MessageT:
    try:
        message.ParseFromString(options.value)
    except Exception as error:  # protobuf's errors differ by implementation
        raise InvalidArgumentError(f"cannot decode {options.type_url}: {error}: invalid argument") from None
    return message


def _from_message(message: Message, options: Any) -> RuncOptions:
    _parse(message, options)
    known = message.DESCRIPTOR.fields_by_name
    return RuncOptions(**{name: getattr(message, name) for name in _NAMES if name in known})


def _from_config(options: ConfigOptions) -> RuncOptions:
    """Read the TOML table that CRI passes for runtimes it does not know; Go's field names count, in any case."""
    where = "config_body"
    text = options.config_body
    if not text and options.config_path:
        where = options.config_path
        try:
            with open(options.config_path, "rb") as file:
                text = file.read()
        except OSError as error:
            raise InvalidArgumentError(f"open {where}: {error.strerror}: invalid argument") from None
    import tomllib  # only CRI's tables for other runtimes need it; it comes from the binary itself, at any time

    try:
        table = tomllib.loads(text.decode())
    except ValueError as error:
        raise InvalidArgumentError(f"parse {where}: {error}: invalid argument") from None
    wanted = {name.replace("_", ""): name for name in _NAMES}
    values: dict[str, object] = {}
    for key, value in table.items():
        name = wanted.get(key.replace("_", "").lower())
        if name is None:
            continue  # CRI puts its own keys there too (TypeUrl, ConfigPath)
        kind = type(getattr(RuncOptions(), name))
        if type(value) is not kind:
            raise InvalidArgumentError(f"{where}: {key} wants {kind.__name__}, has {value!r}: invalid argument")
        values[name] = value
    return RuncOptions(**values)  # type: ignore[arg-type]
