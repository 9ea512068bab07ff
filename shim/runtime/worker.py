"""A worker of the zygote: waits for one request, becomes who asked, does what they asked, then is their daemon, if any.

Rule: until it has said that it accepts, whatever is not as it should be ends in a refusal, and the caller goes on by
itself.  From then on it is the `start` or `delete` that the caller would have been, by the same code.
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

# A request is sent as soon as the connection is there; who is stopped in between does without.
_REQUEST_S: Final = 0.1
_CREDENTIALS: Final = struct.Struct("3i")
_FDS: Final = struct.Struct(f"{zygote_protocol.PASSED_FDS}i")


class Request(NamedTuple):
    """What a caller handed over, and what it is by /proc."""

    pid: int
    fds: tuple[int, ...]
    caller: identity.Caller
    words: list[str]
    environment: dict[str, str]


def serve(bound: Bound, zygote: socket.socket, founder: int, parent: int, perform: Callable[[list[str]], int]) -> None:
    """Wait for a request and serve it; return when there will be none, since the zygote has ended.

    `founder` is a pidfd of the process with pid `parent`, from which alone requests are taken.
    """
    connection = _accept(bound, zygote)
    if connection is None:
        return
    zygote.send(b"\1")
    zygote.close()
    bound.listener.close()
    try:
        request = _read(connection, founder, parent)
        _become(request)
        _check_still_there(connection)
    except (RefusedError, OSError, ValueError):
        _answer(connection, zygote_protocol.REFUSED)
        return
    os.close(founder)
    if not _answer(connection, zygote_protocol.ACCEPTED):
        return
    deferred = daemon.defer()
    try:
        code = perform(request.words[1:])
    except BaseException:  # what would end a process of its own
        sys.excepthook(*sys.exc_info())
        code = 1
    _answer(connection, zygote_protocol.EXITED + bytes([code]))
    connection.close()
    for become_daemon in deferred:
        become_daemon()


def _accept(bound: Bound, zygote: socket.socket) -> socket.socket | None:
    """Return the next connection that has something to say, or None when the zygote has ended."""
    poll = select.poll()
    poll.register(bound.listener, select.POLLIN)
    poll.register(zygote, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if zygote.fileno() in ready:
            bound.remove()
            return None
        connection, _ = bound.listener.accept()
        connection.settimeout(_REQUEST_S)
        try:
            if connection.recv(1, socket.MSG_PEEK):
                return connection
        except OSError:
            pass
        connection.close()


def _read(connection: socket.socket, founder: int, parent: int) -> Request:
    fds = _receive(connection)
    pid, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if user != os.geteuid():
        raise RefusedError("another user")
    caller = identity.read(pid)
    if caller.parent != parent or select.select([founder], [], [], 0)[0]:
        raise RefusedError("another parent")
    different = identity.differences(identity.read("self").facts, caller.facts)
    if different:
        raise RefusedError(f"another {', '.join(different)}")
    words = zygote_protocol.split_words(identity.read_file(f"/proc/{pid}/cmdline"))
    zygote_protocol.check_words(words[1:])
    environment = zygote_protocol.split_environment(identity.read_file(f"/proc/{pid}/environ"))
    return Request(pid, fds, caller, words, environment)


def _receive(connection: socket.socket) -> tuple[int, ...]:
    data, control, flags, _ = connection.recvmsg(1, socket.CMSG_SPACE(_FDS.size), socket.MSG_CMSG_CLOEXEC)
    sent = [content for level, kind, content in control if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)]
    if data != zygote_protocol.REQUEST or flags & socket.MSG_CTRUNC or [len(each) for each in sent] != [_FDS.size]:
        raise RefusedError("no request")  # descriptors that came along go with this process
    return _FDS.unpack(sent[0])


def _become(request: Request) -> None:
    appearance.show(request.words, request.environment)
    os.environ.clear()
    os.environ.update(request.environment)
    time.tzset()
    os.umask(request.caller.umask)
    os.fchdir(request.fds[3])
    for number, fd in enumerate(request.fds[:3]):
        os.dup2(fd, number)
    for fd in request.fds:
        os.close(fd)
    sys.argv[:] = request.words
    process.act_for(request.caller.parent)


def _check_still_there(connection: socket.socket) -> None:
    """Make sure that the pid was the caller's all the time: it has not hung up, so it lives, and waits."""
    connection.setblocking(False)
    try:
        connection.recv(1)
    except BlockingIOError:
        connection.setblocking(True)
        return
    raise RefusedError("the caller is gone, or does not keep quiet")


def _answer(connection: socket.socket, word: bytes) -> bool:
    try:
        connection.sendall(word)
    except OSError:
        return False
    return True
