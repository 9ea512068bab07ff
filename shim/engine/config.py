"""The shim's configuration, one TOML file for the whole host, where there is one.

Rule: what stands in the file is meant: a key that nobody knows, or a value of the wrong type, is an error that names
file and key.  The runtime options of a container come before it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shim.engine.limits import DEFAULT_LIMITS, Limits
from shim.errors import InvalidArgumentError

GROUPINGS: Final = ("pod", "namespace", "container")

# Threads cannot wait much longer.
_LONGEST_S: Final = 1e6


class Config(NamedTuple):
    """What may be configured, with the defaults; `binary_name` and `root` are the options' of these names."""

    grouping: str = "pod"
    binary_name: str = ""
    root: str = ""
    limits: Limits = DEFAULT_LIMITS


DEFAULT_CONFIG: Final = Config()


def read_config(path: str) -> Config:
    """Return what a file says.

    Raises:
        InvalidArgumentError: It cannot be read, is no TOML, or has a key or value that makes no sense.
    """
    import tomllib  # only hosts with such a file need it; it comes from the binary itself, at any time

    try:
        with open(path, "rb") as file:
            table = tomllib.loads(file.read().decode())
    except OSError as error:
        raise InvalidArgumentError(f"open {path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:
        raise InvalidArgumentError(f"parse {path}: {error}") from None
    limits, texts = DEFAULT_LIMITS, {"grouping": GROUPINGS[0], "binary_name": "", "root": ""}
    for key, value in table.items():
        if key not in Config._fields:
            raise InvalidArgumentError(f"{path}: unknown key {key}; there are {', '.join(Config._fields)}")
        if key == "limits":
            limits = _read_limits(path, value)
        elif isinstance(value, str):
            texts[key] = value
        else:
            raise InvalidArgumentError(f"{path}: {key} wants a string, has {value!r}")
    if texts["grouping"] not in GROUPINGS:
        raise InvalidArgumentError(f"{path}: grouping wants one of {', '.join(GROUPINGS)}, has {texts['grouping']!r}")
    return Config(texts["grouping"], texts["binary_name"], texts["root"], limits)


def _read_limits(path: str, table: object) -> Limits:
    if not isinstance(table, dict):
        raise InvalidArgumentError(f"{path}: limits wants a table, has {table!r}")
    return DEFAULT_LIMITS._replace(**{name: _read_limit(path, name, value) for name, value in table.items()})


def _read_limit(path: str, name: str, value: object) -> float:
    if name not in Limits._fields:
        raise InvalidArgumentError(f"{path}: unknown key limits.{name}; there are {', '.join(Limits._fields)}")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _LONGEST_S:
        raise InvalidArgumentError(f"{path}: limits.{name} wants seconds, a number above 0, has {value!r}")
    return float(value)
