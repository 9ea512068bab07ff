"""Loop devices, for the mount option `loop`.

Rule: a device clears itself when its last user is gone: the returned descriptor first, then the mount.
Spec: linux/loop.h, loop(4).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from typing import Final

CONTROL: Final = "/dev/loop-control"

_GET_FREE: Final = 0x4C82
_CONFIGURE: Final = 0x4C0A
_SET_FD: Final = 0x4C00
_CLEAR_FD: Final = 0x4C01
_SET_STATUS: Final = 0x4C04
_SET_DIRECT_IO: Final = 0x4C08

_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4
_DIRECT_IO: Final = 16

# struct loop_info64: flags and backing file name are what we set.
_INFO: Final = struct.Struct("=40x12xI64s112x")
# struct loop_config: descriptor, block size, loop_info64, reserved.
_CONFIG: Final = struct.Struct(f"=I4x{_INFO.size}s64x")

_ATTEMPTS: Final = 99


def attach(backing_file: str, *, read_only: bool, direct_io: bool) -> tuple[str, int]:
    """Put a free loop device on `backing_file`; return its path and a descriptor to close once it is mounted.

    Raises:
        OSError: There is no loop device to be had, or the file cannot back one.
    """
    mode = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
    flags = _AUTOCLEAR | (_READ_ONLY if read_only else 0) | (_DIRECT_IO if direct_io else 0)
    backing = os.open(backing_file, mode)
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            path = f"/dev/loop{_find_free()}"
            device = os.open(path, mode)
            try:
                _configure(device, backing, _INFO.pack(flags, os.fsencode(backing_file)[:63]))
            except OSError as error:
                os.close(device)
                # Somebody else took the free device first.
                if error.errno != errno.EBUSY or attempt == _ATTEMPTS:
                    raise OSError(error.errno, error.strerror, path) from None
            else:
                return path, device
            # A random part, so that two losers do not meet again.
            time.sleep(0.01 * attempt * os.urandom(1)[0] / 256)
    finally:
        os.close(backing)
    raise AssertionError("the last attempt returns or raises")


def _find_free() -> int:
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, _GET_FREE)
    finally:
        os.close(control)


def _configure(device: int, backing: int, info: bytes) -> None:
    try:
        fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(backing, info))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTTY):
            raise
        _configure_in_steps(device, backing, info)


def _configure_in_steps(device: int, backing: int, info: bytes) -> None:
    """Do what one call does since Linux 5.8."""
    fcntl.ioctl(device, _SET_FD, backing)
    try:
        fcntl.ioctl(device, _SET_STATUS, info)
        if _INFO.unpack(info)[0] & _DIRECT_IO:
            fcntl.ioctl(device, _SET_DIRECT_IO, 1)
    except OSError:
        fcntl.ioctl(device, _CLEAR_FD)
        raise
