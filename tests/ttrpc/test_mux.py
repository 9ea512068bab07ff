"""Several connections on one socket: the pump between trunk and channels."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Final

import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from shim.ttrpc import CallContext, Client, Code, ConnectionClosedError, Method, Rpc, Server, Service, aio
from shim.ttrpc._frame import MAX_BODY
from shim.ttrpc._mux import FIRST_CUT, MAX_CONNECTION_ID
from shim.ttrpc.mux import PLUGIN_SERVICE, RUNTIME_SERVICE, Mux, MuxError
from tests.fakes import PATIENCE_S, open_descriptors
from tests.ttrpc.mux_bytes import frame, mux_frame, split

SERVICE: Final = "test.v1.Echo"
ECHO: Final = Rpc(SERVICE, "Echo", BytesValue, BytesValue)
HOLD: Final = Rpc(SERVICE, "Hold", BytesValue, BytesValue)
LARGE: Final = (1 << 20, MAX_BODY - 100)


@pytest.fixture(autouse=True)
def leaves_nothing_open() -> Iterator[None]:
    """No test may leave a mux's thread or a descriptor behind."""
    descriptors = open_descriptors()
    yield

    assert [] == [thread for thread in threading.enumerate() if thread.name == "ttrpc mux"]
    assert descriptors == open_descriptors()


@pytest.fixture
def trunk() -> Iterator[tuple[Mux, socket.socket]]:
    """A mux with connections 1 and 2, and the other end of its trunk, where bytes are spoken."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE_S)
    with Mux(ours) as mux, theirs:
        yield mux, theirs


def take(mux: Mux, connection_id: int) -> socket.socket:
    """Return a channel that gives up when nothing comes."""
    sock = mux.channel(connection_id)
    sock.settimeout(PATIENCE_S)
    return sock


def read(sock: socket.socket, size: int) -> bytes:
    """Read exactly so many bytes."""
    found = b""
    while len(found) < size:
        piece = sock.recv(size - len(found))
        assert piece, f"the end came after {len(found)} bytes"
        found += piece
    return found


def read_to_end(sock: socket.socket) -> bytes:
    """Read until the other side has closed."""
    pieces = []
    while piece := sock.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def start_sending(sock: socket.socket, wire: bytes) -> threading.Thread:
    """Send in a thread of its own."""
    sender = threading.Thread(target=sock.sendall, args=(wire,))
    sender.start()
    return sender


def is_blocked(sender: threading.Thread) -> bool:
    """Tell whether somebody is still sending after a time in which much more could have been sent."""
    sender.join(0.5)
    return sender.is_alive()


class Ends:
    """Two muxes, one at either end of a trunk, and what a process has of them."""

    def __init__(self) -> None:
        first, second = socket.socketpair()
        self.near = Mux(first)
        self.far = Mux(second)
        self.gate = threading.Event()

    def service(self) -> Service:
        """Return a service that echoes, at once or once the gate is open."""
        return Service(
            SERVICE,
            {
                "Echo": Method("Echo", BytesValue, BytesValue, lambda _context, request: request, is_inline=True),
                "Hold": Method("Hold", BytesValue, BytesValue, self._hold),
            },
        )

    def close(self) -> None:
        """End both."""
        self.gate.set()
        self.near.close()
        self.far.close()

    def _hold(self, _context: CallContext, request: BytesValue) -> BytesValue:
        assert self.gate.wait(PATIENCE_S)
        return request


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Two muxes that are connected."""
    ends = Ends()
    yield ends
    ends.close()


def serve(mux: Mux, connection_id: int, service: Service) -> Server:
    """Return a server, not yet started, of one channel."""
    server = Server([service])
    server.add_connection(mux.channel(connection_id))
    return server


def test_channels_carry_each_others_bytes(trunk: tuple[Mux, socket.socket]) -> None:
    """In both directions, and what came before a channel was taken waits in it."""
    mux, peer = trunk
    peer.sendall(mux_frame(2, b"for two") + mux_frame(1, b"for ") + mux_frame(1, b"one"))
    with take(mux, 1) as one, take(mux, 2) as two:
        two.sendall(frame(20))
        answer = read(peer, 28)

        assert (b"for one", b"for two") == (read(one, 7), read(two, 7))
        assert mux_frame(2, frame(20)) == answer


def test_bytes_for_other_ids_are_dropped(trunk: tuple[Mux, socket.socket]) -> None:
    """As containerd does; the reserved id is one of them."""
    mux, peer = trunk
    with take(mux, 1) as one:
        peer.sendall(mux_frame(0, b"x") + mux_frame(3, bytes(100000)) + mux_frame(1, b"") + mux_frame(1, b"mine"))

        assert b"mine" == read(one, 4)
        assert mux.error is None


@pytest.mark.parametrize("ids", [(), (0,), (1, 1), (-1,), (MAX_CONNECTION_ID + 1,)])
def test_ids_that_cannot_be(ids: tuple[int, ...]) -> None:
    """They are found before anything is opened."""
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ValueError, match="want different ones from 1 to 4294967295"):
        Mux(ours, ids)


def test_a_channel_can_be_had_once(trunk: tuple[Mux, socket.socket]) -> None:
    """Two readers of one connection would each get a part."""
    mux, _ = trunk
    with mux.channel(1):
        with pytest.raises(ValueError, match=r"^connection 1 has been taken$"):
            mux.channel(1)
        with pytest.raises(ValueError, match=r"^connection 3 is not in \(1, 2\)$"):
            mux.channel(3)
    mux.close()
    with pytest.raises(ConnectionClosedError, match=r"^connection 2: mux: closed$"):
        mux.channel(2)


@pytest.mark.parametrize("size", [0, 1, 4000, 4096, 5000, *LARGE])
def test_calls_go_both_ways_at_once(ends: Ends, size: int) -> None:
    """Each end serves on one connection and calls on the other, with messages of any size."""
    payload = BytesValue(value=os.urandom(size))
    with (
        serve(ends.near, PLUGIN_SERVICE, ends.service()),
        serve(ends.far, RUNTIME_SERVICE, ends.service()),
        Client(ends.near.channel(RUNTIME_SERVICE)) as near,
        Client(ends.far.channel(PLUGIN_SERVICE)) as far,
    ):
        found: list[BytesValue] = []
        calls = [
            threading.Thread(
                target=lambda client=client: found.append(client.call(ECHO, payload, timeout_s=PATIENCE_S))
            )
            for client in (near, far) * 2
        ]
        for call in calls:
            call.start()
        for call in calls:
            call.join()

        assert [payload] * 4 == found


def test_asyncio_uses_channels_unchanged(ends: Ends) -> None:
    """Client and server of shim.ttrpc.aio, calling each other over one trunk."""

    async def scenario() -> list[bytes]:
        server = aio.Server([ends.service()])
        server.add_connection(ends.far.channel(PLUGIN_SERVICE))
        async with server, aio.Client(ends.near.channel(PLUGIN_SERVICE)) as client:
            calls = [client.call(ECHO, BytesValue(value=bytes([n]) * 6000), timeout_s=PATIENCE_S) for n in range(20)]
            return [answer.value for answer in await asyncio.gather(*calls)]

    assert [bytes([n]) * 6000 for n in range(20)] == asyncio.run(scenario())


def test_a_call_that_waits_does_not_keep_others_waiting(ends: Ends) -> None:
    """A handler calls back on the other connection while its own call is open, as NRI's plugins do."""
    with (
        serve(ends.near, PLUGIN_SERVICE, ends.service()),
        serve(ends.far, RUNTIME_SERVICE, ends.service()),
        Client(ends.near.channel(RUNTIME_SERVICE)) as near,
        Client(ends.far.channel(PLUGIN_SERVICE)) as far,
    ):
        held: list[BytesValue] = []
        waiter = threading.Thread(target=lambda: held.append(far.call(HOLD, BytesValue(value=b"h"))))
        waiter.start()
        answer = near.call(ECHO, BytesValue(value=b"e"), timeout_s=PATIENCE_S)
        ends.gate.set()
        waiter.join()

        assert [BytesValue(value=b"h")] == held
        assert BytesValue(value=b"e") == answer


def test_a_full_channel_does_not_keep_others_waiting(trunk: tuple[Mux, socket.socket]) -> None:
    """8 MiB are held for a user who does not read."""
    mux, peer = trunk
    with take(mux, 1) as one, take(mux, 2) as two:
        sender = start_sending(peer, mux_frame(1, bytes(4 << 20)) * 2 + mux_frame(2, b"other"))

        assert b"other" == read(two, 5)
        assert bytes(8 << 20) == read(one, 8 << 20)
        sender.join()


def test_beyond_that_the_trunk_is_not_read(trunk: tuple[Mux, socket.socket]) -> None:
    """Memory is bounded; the other direction goes on, and nothing is lost once the user reads."""
    mux, peer = trunk
    with take(mux, 1) as one, take(mux, 2) as two:
        sender = start_sending(peer, mux_frame(1, bytes(4 << 20)) * 3 + mux_frame(2, b"other"))

        assert is_blocked(sender)
        two.sendall(frame(20))
        assert mux_frame(2, frame(20)) == read(peer, 28)
        assert bytes(12 << 20) == read(one, 12 << 20)
        assert b"other" == read(two, 5)
        assert mux.error is None
        sender.join()


def test_a_user_who_never_reads_loses_its_channel() -> None:
    """After the time that others may be kept waiting; they go on."""
    ours, peer = socket.socketpair()
    with Mux(ours, stall_s=0.3) as mux, peer, take(mux, 1) as one, take(mux, 2) as two:
        sender = start_sending(peer, mux_frame(1, bytes(4 << 20)) * 3 + mux_frame(2, b"other"))

        assert b"other" == read(two, 5)
        assert 0 < len(read_to_end(one)) < 8 << 20
        assert isinstance(mux.error, ConnectionClosedError)
        assert re.fullmatch(r"connection 1: \d+ bytes have not been read for 0\.3 s", str(mux.error))
        sender.join()


def test_a_peer_that_does_not_read_stops_the_channels(trunk: tuple[Mux, socket.socket]) -> None:
    """Memory is bounded in this direction too, whoever writes; nothing is lost once the peer reads."""
    mux, peer = trunk
    with take(mux, 1) as one, take(mux, 2) as two:
        senders = [start_sending(sock, frame(1 << 16) * 64) for sock in (one, two)]

        assert [True, True] == [is_blocked(sender) for sender in senders]
        found = split(read(peer, 2 * 64 * ((1 << 16) + 16)))
        assert 2 * [frame(1 << 16) * 64] == [b"".join(part for number, part in found if number == n) for n in (1, 2)]
        for sender in senders:
            sender.join()


def test_the_end_of_the_trunk_ends_every_channel_after_its_data(trunk: tuple[Mux, socket.socket]) -> None:
    """More than the sockets hold; the peer's hanging up is no error."""
    mux, peer = trunk
    with take(mux, 1) as one, take(mux, 2) as two:
        peer.sendall(mux_frame(1, b"x" * (3 << 20)) + mux_frame(2, b"last words"))
        peer.close()

        assert b"last words" == read_to_end(two)
        assert b"x" * (3 << 20) == read_to_end(one)
        assert mux.wait(PATIENCE_S)
        assert mux.is_closed
        assert mux.error is None


def test_a_user_who_does_not_read_keeps_no_thread_alive() -> None:
    """Once the trunk has ended, what is held is held for so long and no longer."""
    ours, peer = socket.socketpair()
    mux = Mux(ours, stall_s=0.2)
    with mux.channel(1) as one:
        peer.sendall(mux_frame(1, bytes(3 << 20)))
        peer.close()

        assert mux.wait(PATIENCE_S)
        assert 0 < len(read_to_end(one)) < 3 << 20
        assert mux.error is None
    mux.close()


def test_last_words_arrive_although_a_write_fails_first(trunk: tuple[Mux, socket.socket]) -> None:
    """A peer that answers and hangs up may be met by a write before its answer has been read."""
    mux, peer = trunk
    with take(mux, 1) as one, take(mux, 2) as two:
        two.sendall(frame(1 << 16) * 16)  # more than the trunk takes
        peer.sendall(mux_frame(1, b"last words"))
        peer.close()

        assert b"last words" == read_to_end(one)
        assert b"" == read_to_end(two)
        assert mux.error is None


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (mux_frame(1, b"abc") + struct.pack(">II", 1, 1 << 31), "mux frame of 2147483648 bytes for connection 1"),
        (mux_frame(1, b"abc") + b"\0", "the trunk ended inside a mux frame"),
        (mux_frame(1, b"abc") + struct.pack(">II", 2, 5) + b"1234", "the trunk ended inside a mux frame"),
    ],
    ids=["over the limit", "inside a header", "inside a payload"],
)
def test_a_peer_that_breaks_the_framing_ends_all(trunk: tuple[Mux, socket.socket], wire: bytes, text: str) -> None:
    """With an error that says what was wrong, after what had come before."""
    mux, peer = trunk
    with take(mux, 1) as one, take(mux, 2):
        peer.sendall(wire)
        peer.shutdown(socket.SHUT_WR)

        assert b"abc" == read_to_end(one)
        assert mux.wait(PATIENCE_S)
        assert isinstance(mux.error, MuxError)
        assert text in str(mux.error)
        assert Code.INTERNAL == mux.error.code


def test_a_user_who_breaks_the_framing_ends_its_channel_only(trunk: tuple[Mux, socket.socket]) -> None:
    """Bytes that are no ttrpc frames cannot be cut for the peer."""
    mux, peer = trunk
    with take(mux, 1) as one, take(mux, 2) as two:
        one.sendall(b"GET / HTTP/1.1\r\n")

        assert b"" == read_to_end(one)
        assert "on connection 1: the maximum is 4194314" in str(mux.error)
        two.sendall(frame(20))
        assert mux_frame(2, frame(20)) == read(peer, 28)


@pytest.mark.parametrize("has_unread", [False, True])
def test_closing_a_channel_closes_only_that_one(trunk: tuple[Mux, socket.socket], has_unread: bool) -> None:
    """What it wrote before leaves, what still comes for it is dropped."""
    mux, peer = trunk
    with take(mux, 2) as two:
        one = take(mux, 1)
        if has_unread:
            peer.sendall(mux_frame(1, bytes(1 << 20)) + mux_frame(2, b"a"))
            read(two, 1)
        else:
            one.sendall(frame(20) + frame(30)[:-1])
        one.close()
        peer.sendall(mux_frame(1, bytes(3 << 20)) + mux_frame(2, b"b"))

        assert b"b" == read(two, 1)
        if not has_unread:
            assert mux_frame(1, frame(20)) == read(peer, 28)
        two.sendall(frame(20))
        assert mux_frame(2, frame(20)) == read(peer, 28)
        assert mux.error is None


def test_a_half_closed_channel_can_be_read_on(trunk: tuple[Mux, socket.socket]) -> None:
    """Its user only says that it will write no more."""
    mux, peer = trunk
    with take(mux, 1) as one:
        one.sendall(frame(20))
        one.shutdown(socket.SHUT_WR)
        answer = read(peer, 28)
        peer.sendall(mux_frame(1, b"x" * (2 << 20)))

        assert mux_frame(1, frame(20)) == answer
        assert b"x" * (2 << 20) == read(one, 2 << 20)


def test_the_trunk_is_closed_behind_the_last_channel(trunk: tuple[Mux, socket.socket]) -> None:
    """There is nothing more to say; what was written before goes out first."""
    mux, peer = trunk
    with take(mux, 1) as one, take(mux, 2) as two:
        one.sendall(frame(1 << 16))
        two.sendall(frame(20))
    wire = read_to_end(peer)

    assert (1 << 16) + 20 == sum(len(payload) for _, payload in split(wire))
    assert mux.wait(PATIENCE_S)
    assert mux.error is None


def test_close_ends_everything_and_may_be_repeated(trunk: tuple[Mux, socket.socket]) -> None:
    """What the channels have written leaves; a channel that nobody took is closed as well."""
    mux, peer = trunk
    with take(mux, 1) as one:
        one.sendall(frame(5000))
        mux.close()
        mux.close()

        assert b"" == read_to_end(one)
        assert [FIRST_CUT, 5000 - FIRST_CUT] == [len(payload) for _, payload in split(read_to_end(peer))]
        assert mux.is_closed
        assert mux.wait(0)
        assert mux.error is None


@pytest.mark.parametrize("end", ["close", "hang up"])
def test_calls_in_flight_fail_when_the_trunk_ends(ends: Ends, end: str) -> None:
    """Whichever side ends it, a caller hears that its connection is closed."""
    with serve(ends.far, PLUGIN_SERVICE, ends.service()), Client(ends.near.channel(PLUGIN_SERVICE)) as client:
        errors: list[BaseException] = []

        def call() -> None:
            try:
                client.call(HOLD, BytesValue(), timeout_s=PATIENCE_S)
            except ConnectionClosedError as error:
                errors.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        client.call(ECHO, BytesValue(), timeout_s=PATIENCE_S)
        (ends.near if end == "close" else ends.far).close()
        caller.join(PATIENCE_S)

        assert ["test.v1.Echo/Hold: ttrpc: closed"] == [str(error) for error in errors]
        ends.gate.set()


def test_an_idle_mux_uses_no_processor(trunk: tuple[Mux, socket.socket]) -> None:
    """Also where one side has hung up while the other is not read: nothing is reported over and over."""
    mux, peer = trunk
    one, two = take(mux, 1), take(mux, 2)
    used = []

    def measure() -> None:
        time.sleep(0.1)
        before = time.process_time()
        time.sleep(0.2)
        used.append(time.process_time() - before)

    measure()
    one.shutdown(socket.SHUT_WR)
    measure()
    two.settimeout(0.2)
    with pytest.raises(TimeoutError):
        two.sendall(frame(1 << 16) * 64)
    measure()
    one.close()
    two.shutdown(socket.SHUT_RDWR)
    two.close()
    measure()
    peer.close()
    measure()

    assert max(used) < 0.1, used
