"""A worker of the zygote: waits for one caller, becomes them, does what they want, and then is their daemon, if any.

Rule: until the order has come, whatever is not as it should be ends it, and the caller goes on by itself.  From then on
it is the `start` or `delete` that the caller would have been, by the same code.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from shim.host import appearance, identity, process
from shim.runtime import daemon, zygote_protocol
from shim.runtime.zygote_protocol import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.runtime.address import Bound

# A caller asks as soon as the connection is there; who is stopped in between does without.
_ASK_S: Final = 0.1
_CREDENTIALS: Final = struct.Struct("3i")
_FDS: Final = struct.Struct(f"{zygote_protocol.PASSED_FDS}i")

_WORDS: Final = b"shim\0-namespace\0default\0-address\0/a\0-publish-binary\0/b\0-id\0c\0start\0"
_OPTIONS: Final = b"\x0a\x04name"  # an Any of this type


class Caller(NamedTuple):
    """Who asks, by /proc."""

    identity: identity.Caller
    words: list[str]
    environment: dict[str, str]


def serve(
    bound: Bound, zygote: socket.socket, *, founder: int, parent: int, perform: Callable[[list[str]], int]
) -> None:
    """Wait for a caller and serve it; return when there will be none, since the zygote has ended.

    `founder` is a pidfd of the process with pid `parent`, whose children alone are served.
    """
    own = identity.read("self").facts
    if not select.select([bound.listener], [], [], 0)[0]:  # else somebody is waiting already
        rehearse()
    connection = _accept(bound, zygote)
    if connection is None:
        return
    zygote.send(zygote_protocol.BUSY)
    bound.listener.close()
    try:
        caller = _look_at_caller(connection, founder, parent, own)
    except (RefusedError, OSError, ValueError, IndexError):
        _answer(connection, zygote_protocol.REFUSED)
        return
    os.close(founder)
    if not _answer(connection, zygote_protocol.ACCEPTED):
        return
    _become(caller)
    connection.settimeout(None)
    fds = _receive_order(connection)
    if fds is None:
        return  # it has gone on by itself
    # The order came from who asked, so that pid was the caller's all the time.
    _take(fds)
    deferred = daemon.defer()
    try:
        code = perform(caller.words[1:])
    except BaseException:  # what would end a process of its own
        sys.excepthook(*sys.exc_info())
        code = 1
    daemon.detach_stdio()  # first: who waits for the caller's end also waits for the end of its output
    _answer(connection, zygote_protocol.EXITED + bytes([code]))
    connection.close()
    zygote.close()
    for become_daemon in deferred:
        become_daemon()


def rehearse() -> None:
    """Do what the next caller will wait for, without an effect.

    After a fork each page is copied when it is first written to, and Python writes to all that it looks at.  A spare
    has the time for that; and code that has run some times runs faster in all forks.
    """
    from shim.runtime import address, bootstrap

    own = identity.read(os.getpid()).facts
    identity.differences(own, identity.read("self", own).facts)
    zygote_protocol.check_words(zygote_protocol.split_words(_WORDS)[1:])
    appearance.show(sys.argv, zygote_protocol.split_environment(b"PATH=/bin\0"))
    os.environ.update({"PATH": "/bin"})
    os.environ.clear()
    address.socket_path("/run/containerd/containerd.sock", "default", "id")
    for words in (b"", _OPTIONS):
        told = bootstrap.read_bootstrap(words, "default", "id")
        bootstrap.write_answer("unix:///", told, "")


def _accept(bound: Bound, zygote: socket.socket) -> socket.socket | None:
    """Return the connection of the next caller who asks, or None when the zygote has ended."""
    poll = select.poll()
    poll.register(bound.listener, select.POLLIN)
    poll.register(zygote, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if zygote.fileno() in ready:
            bound.remove()
            return None
        connection, _ = bound.listener.accept()
        connection.settimeout(_ASK_S)
        try:
            if connection.recv(1) == zygote_protocol.ASK:
                return connection
        except OSError:
            pass
        connection.close()


def _look_at_caller(connection: socket.socket, founder: int, parent: int, own: identity.Facts) -> Caller:
    pid, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if user != os.geteuid():
        raise RefusedError("another user")
    theirs = identity.read(pid)
    if theirs.parent != parent or select.select([founder], [], [], 0)[0]:
        raise RefusedError("another parent")
    different = identity.differences(identity.read("self", own).facts, theirs.facts)
    if different:
        raise RefusedError(f"another {', '.join(different)}")
    words = zygote_protocol.split_words(identity.read_file(f"/proc/{pid}/cmdline"))
    zygote_protocol.check_words(words[1:])
    environment = zygote_protocol.split_environment(identity.read_file(f"/proc/{pid}/environ"))
    return Caller(theirs, words, environment)


def _become(caller: Caller) -> None:
    """Be the caller in everything but descriptors.  Python has re-seeded `random` when it forked.

    What stays the zygote's, since no call changes it: the layout of the address space (ASLR), Python's hash seed, and
    /proc/PID/auxv.
    """
    appearance.show(caller.words, caller.environment)
    os.environ.clear()
    os.environ.update(caller.environment)
    time.tzset()
    os.umask(caller.identity.umask)
    sys.argv[:] = caller.words
    process.act_for(caller.identity.parent)


def _receive_order(connection: socket.socket) -> tuple[int, ...] | None:
    data, control, flags, _ = connection.recvmsg(1, socket.CMSG_SPACE(_FDS.size), socket.MSG_CMSG_CLOEXEC)
    sent = [content for level, kind, content in control if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)]
    if data != zygote_protocol.ORDER or flags & socket.MSG_CTRUNC or [len(each) for each in sent] != [_FDS.size]:
        return None  # descriptors that came along go with this process
    fds: tuple[int, ...] = _FDS.unpack(sent[0])
    return fds


def _take(fds: tuple[int, ...]) -> None:
    os.fchdir(fds[3])
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)


def _answer(connection: socket.socket, word: bytes) -> bool:
    try:
        connection.sendall(word)
    except OSError:
        return False
    return True
