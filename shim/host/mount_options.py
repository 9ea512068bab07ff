"""Mount options: what each word means, and how the options of an overlay with many layers are made to fit.

Rule: pure, no system calls. Names and meaning are those of mount(8) and of containerd's core/mount.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from shim.errors import MountError

# Flags of mount(2), from linux/mount.h.
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_SYNCHRONOUS: Final = 16
MS_REMOUNT: Final = 32
MS_MANDLOCK: Final = 64
MS_DIRSYNC: Final = 128
MS_NOATIME: Final = 1 << 10
MS_NODIRATIME: Final = 1 << 11
MS_BIND: Final = 1 << 12
MS_REC: Final = 1 << 14
MS_PRIVATE: Final = 1 << 18
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24

# What an option sets, and what it clears.  `defaults` does neither; Go hands it to the file system, which may refuse.
_FLAGS: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {
        "defaults": (0, 0),
        "ro": (MS_RDONLY, 0),
        "rw": (0, MS_RDONLY),
        "nosuid": (MS_NOSUID, 0),
        "suid": (0, MS_NOSUID),
        "nodev": (MS_NODEV, 0),
        "dev": (0, MS_NODEV),
        "noexec": (MS_NOEXEC, 0),
        "exec": (0, MS_NOEXEC),
        "sync": (MS_SYNCHRONOUS, 0),
        "async": (0, MS_SYNCHRONOUS),
        "dirsync": (MS_DIRSYNC, 0),
        "remount": (MS_REMOUNT, 0),
        "mand": (MS_MANDLOCK, 0),
        "nomand": (0, MS_MANDLOCK),
        "noatime": (MS_NOATIME, 0),
        "atime": (0, MS_NOATIME),
        "nodiratime": (MS_NODIRATIME, 0),
        "diratime": (0, MS_NODIRATIME),
        "relatime": (MS_RELATIME, 0),
        "norelatime": (0, MS_RELATIME),
        "strictatime": (MS_STRICTATIME, 0),
        "nostrictatime": (0, MS_STRICTATIME),
        "bind": (MS_BIND, 0),
        "rbind": (MS_BIND | MS_REC, 0),
    }
)


IdRange = tuple[int, int, int]
"""The first id in the container, the first on the host, and how many."""


class IdMaps(NamedTuple):
    """How a mount shows the owners of its files: the maps of a user namespace."""

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]


ID_MAPS: Final = ("uidmap=", "gidmap=")


class Options(NamedTuple):
    """Mount options taken apart: flags for the kernel, data for the file system, and what is done around mount(2)."""

    flags: int = 0
    data: tuple[str, ...] = ()
    is_loop: bool = False
    id_maps: IdMaps | None = None


def parse_options(options: Sequence[str]) -> Options:
    """Take fstab-style options apart; words that no table knows are data for the file system.

    Raises:
        MountError: The option is not for us, or needs what this shim cannot do.
    """
    flags, data, is_loop = 0, [], False
    maps: dict[str, str] = {}
    for option in options:
        if option in _FLAGS:
            added, removed = _FLAGS[option]
            flags = (flags | added) & ~removed
        elif option == "loop":
            is_loop = True
        elif option.startswith("X-containerd."):
            raise MountError(f'internal mount option "{option}" was not consumed by the mount manager')
        elif option.startswith(ID_MAPS):
            maps[option[:6]] = option
        else:
            data.append(option)
    return Options(flags, tuple(data), is_loop, _parse_maps(maps))


def _parse_maps(options: Mapping[str, str]) -> IdMaps | None:
    if not options:
        return None
    for word, other in (("uidmap", "gidmap"), ("gidmap", "uidmap")):
        if word not in options:
            raise MountError(f'mount option "{options[other]}" needs {word}= too')
    return IdMaps(_parse_map(options["uidmap"]), _parse_map(options["gidmap"]))


def _parse_map(option: str) -> tuple[IdRange, ...]:
    ranges = []
    for part in option.partition("=")[2].split(","):
        numbers = part.split(":")
        if len(numbers) != 3 or not all(number.isascii() and number.isdecimal() for number in numbers):
            raise MountError(f'mount option "{option}": "{part}" is not CONTAINER-ID:HOST-ID:SIZE')
        ranges.append((int(numbers[0]), int(numbers[1]), int(numbers[2])))
    return tuple(ranges)


def split_lowerdirs(options: Sequence[str]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return the folder that all lowerdirs of an overlay are in, the lowerdirs inside, and the other options.

    The folder is empty, and no lowerdir is returned, where there is no such folder but "/".
    """
    others = tuple(options)
    index = next((index for index, option in enumerate(options) if option.startswith("lowerdir=")), None)
    # A backslash escapes a colon in a path: too rare to be worth splitting right.
    if index is None or "\\" in options[index]:
        return "", (), others
    folders = options[index].removeprefix("lowerdir=").split(":")
    if not all(folder.startswith("/") for folder in folders):
        return "", (), others
    parent = os.path.commonpath([os.path.dirname(folder) for folder in folders])
    relative = tuple(folder.removeprefix(f"{parent}/") for folder in folders)
    # A path that is not in the shortest spelling may not begin with the parent.
    if parent == "/" or not all(name and not name.startswith("/") for name in relative):
        return "", (), others
    return parent, relative, (*options[:index], *options[index + 1 :])


def compact_lowerdirs(options: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return the folder that all lowerdirs of an overlay are in, and the options with lowerdirs relative to it.

    The folder is empty, and the options are unchanged, where nothing can be cut off.
    """
    parent, relative, others = split_lowerdirs(options)
    if len(relative) < 2:
        return "", tuple(options)
    return parent, (*others, f"lowerdir={':'.join(relative)}")
