"""Runs a program under a seccomp filter:  python denying.py ERROR NAME,NAME PROGRAM ARGUMENT...

The system calls that are named fail with ERROR; as Docker's default profile does it, and as kernels that are older than
a call.  Spec: seccomp(2), bpf(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from typing import Final

# For x86_64 and aarch64.  What only one of them has is 0 for the other.
NUMBERS: Final = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clone3": (435, 435),
    "close_range": (436, 436),
    "epoll_pwait2": (441, 441),
    "faccessat2": (439, 439),
    "fsopen": (430, 430),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "move_mount": (429, 429),
    "open_by_handle_at": (304, 265),
    "openat2": (437, 437),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "rseq": (334, 293),
    "setns": (308, 268),
    "statx": (332, 291),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000


def main() -> None:
    """Deny, and become the program."""
    error, names, *words = sys.argv[1:]
    column = 0 if platform.machine() == "x86_64" else 1
    numbers = [NUMBERS[name][column] for name in names.split(",")]
    code = [struct.pack("<HBBI", _LOAD, 0, 0, 0)]  # the number of the call
    for index, number in enumerate(numbers):
        code.append(struct.pack("<HBBI", _JUMP_EQUAL, len(numbers) - index, 0, number))
    code.append(struct.pack("<HBBI", _RETURN, 0, 0, _ALLOW))
    code.append(struct.pack("<HBBI", _RETURN, 0, 0, _ERROR | getattr(errno, error)))
    text = ctypes.create_string_buffer(b"".join(code))
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(text)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program):
        raise OSError(ctypes.get_errno(), "seccomp")
    os.execv(words[0], words)  # noqa: S606


if __name__ == "__main__":
    main()
