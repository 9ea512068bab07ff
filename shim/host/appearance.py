"""What /proc shows of a process as its command line and environment, for a process that was forked, not executed.

Rule: a nicety for who looks; nothing depends on it.  PR_SET_MM_MAP needs no privilege, but a kernel that can checkpoint
(CONFIG_CHECKPOINT_RESTORE, which distributions set).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from shim.host import libc
from shim.host.identity import read_file

# In /proc/PID/stat, counted from the state: start_code, end_code, start_stack, start_data, end_data, start_brk.
_CODE, _CODE_END, _STACK, _DATA, _DATA_END, _HEAP = 23, 24, 25, 42, 43, 44


def show(words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Show these words and this environment in /proc from now on.

    Raises:
        OSError: This kernel does not do that.
    """
    arguments = b"".join(os.fsencode(word) + b"\0" for word in words)
    variables = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())
    fields = [int(field) for field in read_file("/proc/self/stat").rpartition(b")")[2].split()[1:]]
    code, code_end, stack = fields[_CODE - 1], fields[_CODE_END - 1], fields[_STACK - 1]
    data, data_end, heap = fields[_DATA - 1], fields[_DATA_END - 1], fields[_HEAP - 1]
    libc.set_memory_map(code, code_end, data, data_end, heap, stack, arguments, variables)
