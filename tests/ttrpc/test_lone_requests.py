"""Requests that come alone, each in one piece, which take a shorter way: it says and refuses the same."""

import pytest

from shim.ttrpc._envelope import encode_request
from shim.ttrpc._events import RequestReceived
from shim.ttrpc._frame import REQUEST, encode_frame
from shim.ttrpc._server_connection import ServerConnection
from shim.ttrpc._streams import Kind
from tests.ttrpc.pairs import METHODS, heard, request
from tests.ttrpc.test_server_connection import EVEN, REUSED, Server, say, server

__all__ = ["server"]


@pytest.mark.parametrize("size", [1, 127, 128, 300])
def test_a_request_says_the_same_whole_and_in_pieces(size: int) -> None:
    """One that comes alone, of the same method as the one before, takes a shorter way."""
    frame = request(3, payload=bytes(size))
    method = METHODS.find("a.B", "C")
    for pieces in ([frame], [frame[:20], frame[20:]], [frame[at : at + 1] for at in range(len(frame))]):
        server: Server = ServerConnection(METHODS)
        server.receive_data(request(1))

        assert [RequestReceived(3, method, bytes(size), 0, ())] == [
            event for piece in pieces for event in server.receive_data(piece)
        ]
        assert server.is_active(3)


def test_a_payload_that_looks_like_a_request_is_none(server: Server) -> None:
    """Though it comes by itself, behind the rest of its frame."""
    server.receive_data(request(1))
    inner = request(5)
    frame = request(3, payload=inner)

    assert [] == server.receive_data(frame[: -len(inner)])
    assert [f"3 call C {inner.hex()}"] == heard(server.receive_data(inner))
    assert not server.is_active(5)


def test_a_request_that_comes_alone_is_judged_as_any_other(server: Server) -> None:
    """By its id, its method and its bytes, also when the one before was of the same method."""
    assert (["9 call C 0807"], []) == say(server, request(9))
    assert ([], [f"9 {REUSED}"]) == say(server, request(9))
    assert ([], [f"10 {EVEN}"]) == say(server, request(10))
    assert ([], ["11 error 3 unmarshal request error: unexpected end of message"]) == say(
        server, encode_frame(11, REQUEST, 0, encode_request("a.B", "C", b"") + b"\x1a\x80")
    )
    assert (["13 call E"], []) == say(server, request(13, Kind.BIDI, 6, b""))
    assert (["15 call T 0807"], []) == say(server, request(15, Kind.SERVER_STREAM, 1))
    assert (["17 call T 0807"], []) == say(server, request(17, Kind.SERVER_STREAM, 1))
    assert (["19 call C 0807"], []) == say(server, request(19))
