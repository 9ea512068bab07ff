"""What the fast path and the zygote say to each other; build/fastpath/fastpath.c is the other half.

A question, an answer, an order with four descriptors, an exit code; all else about the caller is read from /proc, where
it cannot lie.

Rule: pure; what is not plainly right is refused, and the caller goes on by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shim.runtime import flags as flags_module
from shim.runtime.flags import FlagError, HelpRequested

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ASK: Final = b"Q"
ACCEPTED: Final = b"A"
REFUSED: Final = b"R"
ORDER: Final = b"S"
EXITED: Final = b"X"
# A spare to its zygote, when it has a caller; the end of the connection follows when it has done what they want.
BUSY: Final = b"B"
PASSED_FDS: Final = 4  # 0, 1, 2 and the working directory

SWITCH_VARIABLE: Final = "CONTAINERD_SHIM_FASTPATH"
FOLDER_VARIABLE: Final = "CONTAINERD_SHIM_ZYGOTE_DIR"
IDLE_VARIABLE: Final = "CONTAINERD_SHIM_ZYGOTE_IDLE_S"
IDLE_S: Final = 60.0

ACTIONS: Final = frozenset({"start", "delete"})

_MASK: Final = (1 << 64) - 1


class RefusedError(Exception):
    """The request is not one for a zygote; the text says why, for tests and debuggers."""


def folder(euid: int, environ: Mapping[str, str]) -> str:
    """Return where this user's zygotes listen."""
    chosen = environ.get(FOLDER_VARIABLE, "")
    return chosen or ("/run/containerd-shim-0" if euid == 0 else f"/run/user/{euid}/containerd-shim")


def socket_name(numbers: Iterable[int]) -> str:
    """Return the name of the socket for what identifies a zygote: FNV-1a of the numbers, 64 bits each."""
    digest = 0xCBF29CE484222325
    for number in numbers:
        for byte in (number & _MASK).to_bytes(8, "little"):
            digest = ((digest ^ byte) * 0x100000001B3) & _MASK
    return f"{digest:016x}"


def idle_s(environ: Mapping[str, str]) -> float:
    """Return after how many seconds without a request a zygote ends."""
    try:
        seconds = float(environ.get(IDLE_VARIABLE, ""))
    except ValueError:
        return IDLE_S
    return seconds if 0 < seconds < 1e6 else IDLE_S


def split_words(data: bytes) -> list[str]:
    """Return the arguments in a /proc/PID/cmdline.

    Raises:
        RefusedError: There are none, or the last is not ended.
    """
    if not data.endswith(b"\0"):
        raise RefusedError("arguments without an end")
    return [word.decode("utf-8", "surrogateescape") for word in data[:-1].split(b"\0")]


def split_environment(data: bytes) -> dict[str, str]:
    """Return the variables in a /proc/PID/environ, as os.environ would have them: the first of a name counts.

    Raises:
        RefusedError: One has no name or no value, which Python and C would see differently.
    """
    if not data:
        return {}
    if not data.endswith(b"\0"):
        raise RefusedError("environment without an end")
    environment: dict[str, str] = {}
    for entry in data[:-1].split(b"\0"):
        name, equals, value = entry.decode("utf-8", "surrogateescape").partition("=")
        if not name or not equals:
            raise RefusedError("a variable without a name or a value")
        environment.setdefault(name, value)
    return environment


def check_words(words: list[str]) -> None:
    """Let only those arguments pass that a worker can act on.

    Raises:
        RefusedError: They are wrong, or ask for something else; the plain path says so or does it.
    """
    try:
        flags = flags_module.parse(words)
    except (FlagError, HelpRequested) as error:
        raise RefusedError("arguments that do not parse") from error
    if flags.version:
        return
    if flags.info or flags.action not in ACTIONS:
        raise RefusedError("neither start nor delete nor -v")
