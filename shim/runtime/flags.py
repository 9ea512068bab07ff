"""The command line of a shim, parsed as Go's `flag` package does.

Rule: pure; text in, values or an error out.  containerd writes single dashes, so both forms mean the same.
Spec: Go's package flag; the flags are those of containerd's pkg/shim, 1.6 to 2.4.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final


_TRUE: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "false", "FALSE", "False"})

# name -> (attribute, help); kept in the order of the names, as Go prints them.
_STRINGS: Final = {
    "address": ("address", "grpc address back to main containerd"),
    "bundle": ("bundle", "path to the bundle if not workdir"),
    "debug-socket": ("debug_socket", "debug socket path to serve"),
    "id": ("id", "id of the task"),
    "namespace": ("namespace", "namespace that owns the shim"),
    "publish-binary": ("publish_binary", "path to publish binary (used for publishing events)"),
    "socket": ("socket", "socket path to serve"),
}
_BOOLS: Final = {
    "debug": ("debug", "enable debug output in logs"),
    "info": ("info", "get the option protobuf from stdin, print the shim info protobuf to stdout, and exit"),
    "v": ("version", "show the shim version and exit"),
    "version": ("version", "show the shim version and exit"),
}


class Flags:
    """What the command line said; `action` is its first word that is no flag, or empty.

    A class by hand: `-v` would else wait for typing or dataclasses to load.
    """

    __slots__ = (
        "action",
        "address",
        "bundle",
        "debug",
        "debug_socket",
        "id",
        "info",
        "namespace",
        "publish_binary",
        "rest",
        "socket",
        "version",
    )

    def __init__(
        self,
        *,
        namespace: str = "",
        id: str = "",
        address: str = "",
        publish_binary: str = "",
        bundle: str = "",
        socket: str = "",
        debug_socket: str = "",
        debug: bool = False,
        info: bool = False,
        version: bool = False,
        action: str = "",
        rest: tuple[str, ...] = (),
    ) -> None:
        self.namespace: str = namespace
        self.id: str = id
        self.address: str = address
        self.publish_binary: str = publish_binary
        self.bundle: str = bundle
        self.socket: str = socket
        self.debug_socket: str = debug_socket
        self.debug: bool = debug
        self.info: bool = info
        self.version: bool = version
        self.action: str = action
        self.rest: tuple[str, ...] = rest

    def _values(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Flags) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(tuple(self._values().values()))

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self._values().items() if value)
        return f"Flags({said})"

    def with_debug(self) -> Flags:
        """Return the same flags with debug output on."""
        return Flags(**{**self._values(), "debug": True})  # type: ignore[arg-type]

    def daemon_arguments(self) -> list[str]:
        """Return the arguments that a shim daemon runs with, which are also what `ps` shows."""
        words = ["-namespace", self.namespace, "-id", self.id, "-address", self.address]
        return [*words, "-debug"] if self.debug else words


class FlagError(Exception):
    """The command line is wrong; the process ends with exit code 2."""


class HelpRequested(Exception):
    """The command line asks for the usage text."""


def parse(arguments: Sequence[str]) -> Flags:
    """Parse the words after the program's name.

    Raises:
        FlagError: A flag is unknown, malformed, or lacks its value; the text is Go's.
        HelpRequested: `-h` or `-help` was given.
    """
    values: dict[str, str | bool] = {}
    words = list(arguments)
    while words:
        word = words[0]
        if len(word) < 2 or word[0] != "-":
            break
        del words[0]
        if word == "--":
            break
        name, has_value, value = word[2 if word.startswith("--") else 1 :].partition("=")
        if not name or name[0] == "-":
            raise FlagError(f"bad flag syntax: {word}")
        if name in _BOOLS:
            values[_BOOLS[name][0]] = _boolean(name, value) if has_value else True
        elif name in _STRINGS:
            if not has_value:
                if not words:
                    raise FlagError(f"flag needs an argument: -{name}")
                value = words.pop(0)
            values[_STRINGS[name][0]] = value
        elif name in ("h", "help"):
            raise HelpRequested
        else:
            raise FlagError(f"flag provided but not defined: -{name}")
    if words:
        return Flags(**values, action=words[0], rest=tuple(words[1:]))  # type: ignore[arg-type]
    return Flags(**values)  # type: ignore[arg-type]


def _boolean(name: str, value: str) -> bool:
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise FlagError(f'invalid boolean value "{value}" for -{name}: parse error')


def usage(program: str) -> str:
    """Return the usage text for `program` as Go prints it."""
    lines = [f"Usage of {program}:"]
    for name in sorted({**_STRINGS, **_BOOLS}):
        if name in _STRINGS:
            lines.append(f"  -{name} string")
            lines.append(f"    \t{_STRINGS[name][1]}")
        elif len(name) == 1:
            lines.append(f"  -{name}\t{_BOOLS[name][1]}")
        else:
            lines.append(f"  -{name}")
            lines.append(f"    \t{_BOOLS[name][1]}")
    return "\n".join(lines) + "\n"
