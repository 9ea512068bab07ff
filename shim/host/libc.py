"""The libc calls that Python lacks: prctl, mount, umount2, id-mapped mounts, namespaces, inotify; and a spawn.

Rule: each call raises OSError (errno, text, path) as `os` does, or UnsupportedSystemError where the system has no such
call, and releases the GIL.  A frozen shim's interpreter has them built in (build/launch/libc.c).  Elsewhere they are
made by ctypes, whose loading costs some milliseconds: a daemon imports this module at its start, since nothing may be
imported once it serves, and a `delete` that finds nothing to do never does.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

# Built in, or not at all: a file of that name would be another's.
if TYPE_CHECKING or "_shim_libc" not in sys.builtin_module_names:
    from shim.host.libc_ctypes import (
        attach_mount,
        clone_mount,
        inotify_open,
        inotify_watch,
        make_user_namespace,
        map_ids,
        mount,
        sched_core_create,
        set_child_subreaper,
        spawn,
        umount,
        unshare,
    )
else:
    from _shim_libc import (
        attach_mount,
        clone_mount,
        inotify_open,
        inotify_watch,
        make_user_namespace,
        map_ids,
        mount,
        sched_core_create,
        set_child_subreaper,
        spawn,
        umount,
        unshare,
    )

__all__ = (
    "attach_mount",
    "clone_mount",
    "inotify_open",
    "inotify_watch",
    "make_user_namespace",
    "map_ids",
    "mount",
    "sched_core_create",
    "set_child_subreaper",
    "spawn",
    "umount",
    "unshare",
)

CLONE_FS: Final = 0x200
CLONE_NEWNS: Final = 0x20000
MNT_DETACH: Final = 0x2
MOUNT_ATTR_RDONLY: Final = 0x1
IN_MODIFY: Final = 0x2
IN_ATTRIB: Final = 0x4
IN_MOVED_FROM: Final = 0x40
IN_DELETE: Final = 0x200
IN_DELETE_SELF: Final = 0x400
IN_MOVE_SELF: Final = 0x800
