"""The configuration of a private containerd: what its release prints as the default, changed by CHANGES alone.

Rule: a row of CHANGES names one key, its value here and the reason; whatever has no row is as on any node.  The rows
are folders, addresses and files that belong to a containerd of the host.  No plugin has a row: one that finds nothing
to work with on a test machine (no CNI network, no btrfs, no tracing endpoint) skips itself, as it does on a node.
"""

from __future__ import annotations

import functools
import json
import subprocess
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shim.testing.releases import Release

__all__ = [
    "CHANGES",
    "OPT_FOLDER",
    "Change",
    "ConfigurationError",
    "configure",
    "default",
    "socket_paths",
    "with_opt",
    "write",
]

Table = dict[str, object]

# Where the plugin io.containerd.internal.v1.opt expects what is installed besides packages, in all releases.
OPT_FOLDER: Final = "/opt/containerd"

_FOLDER: Final = "{folder}"
_HOSTS: Final = ("/var/lib/containerd", "/run/containerd")


class ConfigurationError(Exception):
    """A release's default cannot be had, or still points to what belongs to a containerd of the host."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key that differs from the default, in the releases from `since` to before `until` (major and minor)."""

    keys: tuple[str, ...]
    value: object
    reason: str
    since: tuple[int, int] = (1, 6)
    until: tuple[int, int] = (10_000, 0)

    def applies_to(self, release: Release) -> bool:
        """Say whether this release needs the row."""
        major, minor = map(int, release.key.split("."))
        return self.since <= (major, minor) < self.until

    def value_in(self, folder: Path) -> object:
        """Return the value for a containerd in this folder."""
        return self.value.replace(_FOLDER, str(folder)) if isinstance(self.value, str) else self.value


CHANGES: Final = (
    Change(("root",), f"{_FOLDER}/root", "the default is the data of the host's containerd"),
    Change(("state",), f"{_FOLDER}/state", "the default is the state of the host's containerd"),
    # Neither ttrpc's address nor those of debug and metrics have a row: the first follows this one, the others are off.
    Change(("grpc", "address"), f"{_FOLDER}/c.sock", "the default is the host's socket", until=(2, 3)),
    Change(
        ("plugins", "io.containerd.nri.v1.nri", "socket_path"),
        f"{_FOLDER}/c.sock.nri",
        "the default is the host's socket",
        since=(1, 7),
    ),
    Change(("imports",), [], "the default is configuration of the host", since=(2, 2)),
    Change(
        ("plugins", "io.containerd.server.v1.grpc", "address"),
        f"{_FOLDER}/c.sock",
        "the default is the host's socket",
        since=(2, 3),
    ),
    Change(
        ("plugins", "io.containerd.server.v1.ttrpc", "address"),
        f"{_FOLDER}/c.sock.ttrpc",
        "the default is the host's socket; it no longer follows that of grpc",
        since=(2, 3),
    ),
)


def socket_paths(address: str) -> frozenset[str]:
    """Return the sockets of the private containerd whose grpc address this is."""
    return frozenset(address + suffix for suffix in ("", ".ttrpc", ".nri"))


def with_opt(environment: Mapping[str, str]) -> dict[str, str]:
    """Return containerd's environment as its plugin opt changes it, which is what shims get."""
    added = {"PATH": f"{OPT_FOLDER}/bin", "LD_LIBRARY_PATH": f"{OPT_FOLDER}/lib"}
    return {**environment, **{name: f"{folder}:{environment.get(name, '')}" for name, folder in added.items()}}


@functools.cache
def default(release: Release) -> str:
    """Return what `containerd config default` prints.

    Raises:
        ConfigurationError: it fails.
    """
    command = [str(release.containerd), "config", "default"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ConfigurationError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def configure(release: Release, folder: Path, settings: str = "") -> str:
    """Return the configuration of a containerd in `folder`; `settings` are TOML that is laid over it.

    Raises:
        ConfigurationError: the default cannot be had, or a folder or socket of the host's containerd is left in it.
    """
    table: Table = tomllib.loads(default(release))
    for change in CHANGES:
        # A release of one's own building may not know its version, so the keys that it has decide.
        holder = _find(table, change.keys[:-1])
        if holder is not None and change.keys[-1] in holder:
            holder[change.keys[-1]] = change.value_in(folder)
    left = [text for text in _strings(table) if any(text == host or text.startswith(f"{host}/") for host in _HOSTS)]
    if left:
        raise ConfigurationError(f"containerd {release.version} would use {', '.join(left)} of the host")
    _lay_over(table, tomllib.loads(settings))
    return write(table)


def write(table: Mapping[str, object]) -> str:
    """Return a table as TOML: plain values first, then a section for each table in it."""
    return "\n".join([*_lines(table, ()), ""])


def _lines(table: Mapping[str, object], path: Sequence[str]) -> Iterator[str]:
    for key, value in table.items():
        if not isinstance(value, dict):
            yield f"{_quoted(key)} = {_value(value)}"
    for key, value in table.items():
        if isinstance(value, dict):
            yield f"\n[{'.'.join(map(_quoted, (*path, key)))}]"
            yield from _lines(value, (*path, key))


def _value(value: object) -> str:
    match value:
        case dict():
            return "{" + ", ".join(f"{_quoted(key)} = {_value(each)}" for key, each in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_value, value)) + "]"
        case str():
            return _quoted(value)
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case _:
            raise TypeError(f"no way to write {value!r} as TOML")


def _quoted(text: str) -> str:
    # JSON's escapes are among those of TOML's basic strings, which want one more.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _find(table: Table, keys: Sequence[str]) -> Table | None:
    for key in keys:
        inner = table.get(key)
        if not isinstance(inner, dict):
            return None
        table = inner
    return table


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def _lay_over(table: Table, settings: Mapping[str, object]) -> None:
    for key, value in settings.items():
        inner = table.get(key)
        if isinstance(value, dict) and isinstance(inner, dict):
            _lay_over(inner, value)
        else:
            table[key] = value
