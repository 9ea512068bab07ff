"""The server's end of a connection: what it takes for a call, and what it answers to everything else."""

from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shim.ttrpc._connection import ServerConnection
from shim.ttrpc._envelope import decode_response, encode_error, encode_request
from shim.ttrpc._events import RequestReceived
from shim.ttrpc._frame import DATA, MAX_BODY, NO_DATA, REMOTE_CLOSED, REQUEST, RESPONSE, FrameReader, encode_frame
from tests import strategies
from tests.strategies import FrameValues

CALL: Final = encode_request("a.B", "C", b"\x08\x07")
EVEN: Final = (3, "StreamID must be odd for client initiated streams")
REUSED: Final = (3, "StreamID cannot be re-used and must increment")
INACTIVE: Final = (3, "StreamID is no longer active")


def request(stream_id: int, body: bytes = CALL, flags: int = 0) -> bytes:
    """Return a request's frame."""
    return encode_frame(stream_id, REQUEST, flags, body)


def answers(data: bytes) -> list[tuple[int, int, str]]:
    """Return (stream id, code, text) of every response in `data`."""
    reader = FrameReader()
    frames = reader.feed(data)
    assert reader.is_between_frames
    found = []
    for frame in frames:
        assert (RESPONSE, 0) == (frame.kind, frame.flags)
        assert frame.body is not None
        code, message, _ = decode_response(frame.body)
        found.append((frame.stream_id, code, message))
    return found


@pytest.fixture
def server() -> ServerConnection:
    """A fresh connection."""
    return ServerConnection()


def test_a_request_becomes_an_event(server: ServerConnection) -> None:
    """With everything the envelope says."""
    body = encode_request("a.B", "C", b"\x08\x07", 5, [("k", "v")])

    assert [RequestReceived(1, "a.B", "C", b"\x08\x07", 5, (("k", "v"),))] == server.receive_data(request(1, body))
    assert b"" == server.data_to_send()
    assert 1 == server.active


def test_request_flags_are_ignored(server: ServerConnection) -> None:
    """Go's client sets some on streaming calls, its server looks at none."""
    events = server.receive_data(b"".join(request(1 + 2 * flags, flags=flags) for flags in range(256)))

    assert 256 == len(events)
    assert b"" == server.data_to_send()


def test_an_empty_request_body_is_a_call_of_the_nameless_service(server: ServerConnection) -> None:
    """Which nobody has; the dispatcher says so."""
    assert [RequestReceived(1, "", "", b"", 0, ())] == server.receive_data(request(1, b""))


def test_send_response_matches_golden_bytes(server: ServerConnection) -> None:
    """As Go's server answers."""
    server.receive_data(request(1) + request(3) + request(5))

    assert "0000000400000001020012020808" == server.send_response(1, b"\x08\x08").hex()
    assert "00000000000000030200" == server.send_response(3, b"").hex()
    assert encode_frame(5, 2, 0, encode_error(12, "service a.B")) == server.send_error(5, 12, "service a.B")
    assert 0 == server.active


def test_a_call_is_answered_once(server: ServerConnection) -> None:
    """The second answer, such as the one after the deadline's, gives no bytes; so does one to no call at all."""
    server.receive_data(request(1))
    first = server.send_error(1, 4, "context deadline exceeded")

    assert [(1, 4, "context deadline exceeded")] == answers(first)
    assert b"" == server.send_response(1, b"late") + server.send_error(1, 2, "late") + server.send_response(7, b"x")


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        pytest.param(request(2), [(2, *EVEN)], id="even id"),
        pytest.param(request(0), [(0, *EVEN)], id="zero id"),
        pytest.param(request(5) + request(5), [(5, *REUSED)], id="id of a call in flight"),
        pytest.param(request(5) + request(3), [(3, *REUSED)], id="decreasing id"),
        pytest.param(request(5, b"\x00"), [(5, 3, "unmarshal request error: field number is zero")], id="bad body"),
        pytest.param(request(5, b"\x00") + request(5), None, id="the id of a bad request is used up"),
        pytest.param(request(2, b"\x00"), [(2, *EVEN)], id="parity comes before the body"),
        pytest.param(
            request(1, bytes(MAX_BODY + 1)),
            [(1, 8, f"message length {MAX_BODY + 1} exceed maximum message size of 4194304")],
            id="oversized request",
        ),
        pytest.param(
            request(4, bytes(MAX_BODY + 1)),
            [(4, 8, f"message length {MAX_BODY + 1} exceed maximum message size of 4194304")],
            id="oversized request on an even id",
        ),
        pytest.param(
            encode_frame(9, DATA, 0, bytes(MAX_BODY + 1)),
            [(9, 8, f"message length {MAX_BODY + 1} exceed maximum message size of 4194304")],
            id="oversized data",
        ),
        pytest.param(encode_frame(1, RESPONSE, 0, bytes(MAX_BODY + 1)), [], id="oversized response"),
        pytest.param(encode_frame(1, 77, 0, bytes(MAX_BODY + 1)), [], id="oversized frame of unknown type"),
        pytest.param(encode_frame(1, RESPONSE, 0, b"\x0a\x00"), [], id="response"),
        pytest.param(b"".join(encode_frame(1, kind, 0, b"x") for kind in (0, 4, 5, 255)), [], id="unknown types"),
        pytest.param(encode_frame(2, DATA, 0, b""), [(2, *EVEN)], id="data on an even id"),
        pytest.param(encode_frame(9, DATA, 0, b""), [(9, *INACTIVE)], id="data on an id never opened"),
        pytest.param(encode_frame(9, DATA, 5, b"") * 50, [(9, *INACTIVE)], id="data that ends, repeated"),
        pytest.param(
            request(1) + encode_frame(1, DATA, 0, b"x") * 50, [(1, *INACTIVE)], id="data for a call in flight"
        ),
        pytest.param(request(1) + encode_frame(1, DATA, 5, b""), [], id="a needless end of data"),
    ],
)
def test_bad_frames_are_answered_as_real_peers_expect(
    server: ServerConnection, frames: bytes, expected: list[tuple[int, int, str]] | None
) -> None:
    """Each in its own words, once, and the connection takes the next call as if nothing had been."""
    server.receive_data(frames)
    told = answers(server.data_to_send())

    if expected is None:
        assert [(5, 3, "unmarshal request error: field number is zero"), (5, *REUSED)] == told
    else:
        assert expected == told
    assert [99] == [event.stream_id for event in server.receive_data(request(99))]
    assert [(99, 0, "")] == answers(server.send_response(99, b"x"))
    assert b"" == server.data_to_send()


def test_a_rejected_duplicate_leaves_the_first_call_alone(server: ServerConnection) -> None:
    """Its own answer still goes out, on the same id."""
    server.receive_data(request(1) + request(1))

    assert [(1, *REUSED)] == answers(server.data_to_send())
    assert [(1, 0, "")] == answers(server.send_response(1, b"x"))


def test_stray_data_leaves_the_call_alone(server: ServerConnection) -> None:
    """It is neither cancelled nor answered by it; after its end data is a stray like any other."""
    server.receive_data(request(1) + encode_frame(1, DATA, 0, b"x"))
    server.data_to_send()

    assert [(1, 0, "")] == answers(server.send_response(1, b"x"))
    server.receive_data(encode_frame(1, DATA, 0, b"x") + encode_frame(1, DATA, 5, b""))
    assert b"" == server.data_to_send()


def test_a_flood_of_dead_streams_is_remembered_in_part(server: ServerConnection) -> None:
    """Memory is bounded: after hundreds of others an id may be answered a second time."""
    flood = b"".join(encode_frame(number, DATA, 0, b"") for number in range(1, 2001, 2))
    server.receive_data(flood)
    server.data_to_send()
    server.receive_data(encode_frame(1999, DATA, 0, b"") + encode_frame(1, DATA, 0, b""))

    assert [(1, *INACTIVE)] == answers(server.data_to_send())


def test_the_highest_id_is_taken_and_then_no_other(server: ServerConnection) -> None:
    """Gaps are fine; there is no wrap."""
    events = server.receive_data(request(9) + request(0xFFFFFFFF) + request(1))

    assert [9, 0xFFFFFFFF] == [event.stream_id for event in events]
    assert [(1, *REUSED)] == answers(server.data_to_send())


def test_an_answer_of_exactly_the_limit_goes_out(server: ServerConnection) -> None:
    """Five bytes of it are the envelope's."""
    server.receive_data(request(1))
    frame = server.send_response(1, bytes(MAX_BODY - 5))

    assert MAX_BODY + 10 == len(frame)
    assert [(1, 0, "")] == answers(frame)


def test_an_answer_over_the_limit_becomes_an_error(server: ServerConnection) -> None:
    """A frame that long would end a Go 1.1 client's process (containerd#6248)."""
    server.receive_data(request(1))
    expected = f"message length {MAX_BODY + 1} exceed maximum message size of 4194304"

    assert [(1, 8, expected)] == answers(server.send_response(1, bytes(MAX_BODY - 4)))


def test_an_error_text_over_the_limit_is_cut(server: ServerConnection) -> None:
    """The code is what counts."""
    server.receive_data(request(1))
    ((_, code, text),) = answers(server.send_error(1, 5, "x" * MAX_BODY))

    assert (5, "x" * 65536) == (code, text)


@given(st.lists(st.binary(max_size=80), max_size=5))
def test_garbage_never_raises(pieces: list[bytes]) -> None:
    """Whatever bytes come, the connection takes them, and what it answers is made of whole frames."""
    server = ServerConnection()
    for piece in pieces:
        for event in server.receive_data(piece):
            answers(server.send_response(event.stream_id, b"x"))
        answers(server.data_to_send())


@strategies.FEWER
@given(st.lists(st.one_of(strategies.FRAMES, st.tuples(strategies.STREAM_IDS, st.just(1), st.just(0), st.just(CALL)))))
def test_any_frames_never_raise(frames: list[FrameValues]) -> None:
    """Frames that are well formed but make no sense get further than garbage does."""
    server = ServerConnection()
    events = server.receive_data(b"".join(encode_frame(*frame) for frame in frames))
    answers(server.data_to_send())

    assert len(events) == server.active
    assert all(event.stream_id % 2 for event in events)
    assert sorted({event.stream_id for event in events}) == [event.stream_id for event in events]


class ServerMachine(RuleBasedStateMachine):
    """The connection against a few lines that say what it should do."""

    def __init__(self) -> None:
        super().__init__()
        self.server = ServerConnection()
        self.live: set[int] = set()
        self.told: set[int] = set()
        self.last = 0

    def feed(self, frame: bytes) -> tuple[int, list[tuple[int, int, str]]]:
        """Return how many calls came of a frame, and what it was answered."""
        return len(self.server.receive_data(frame)), answers(self.server.data_to_send())

    @rule(step=st.integers(1, 6))
    def a_new_call(self, step: int) -> None:
        """Ids that rise are taken if they are odd."""
        number = self.last + step
        if number % 2:
            self.last = number
            self.live.add(number)

            assert (1, []) == self.feed(request(number))
        else:
            assert (0, [(number, *EVEN)]) == self.feed(request(number))

    @precondition(lambda self: self.last)
    @rule(data=st.data(), body=st.sampled_from([CALL, b"\x00"]))
    def a_reused_id(self, data: st.DataObject, body: bytes) -> None:
        """Others are not."""
        number = data.draw(st.integers(0, (self.last - 1) // 2)) * 2 + 1

        assert (0, [(number, *REUSED)]) == self.feed(request(number, body))

    @rule()
    def a_bad_call(self) -> None:
        """A body that cannot be read uses its id up."""
        self.last += 1 if self.last % 2 == 0 else 2

        assert (0, [(self.last, 3, "unmarshal request error: field number is zero")]) == self.feed(
            request(self.last, b"\x00")
        )

    @rule(data=st.data(), flags=st.sampled_from([0, REMOTE_CLOSED, NO_DATA, REMOTE_CLOSED | NO_DATA]))
    def some_data(self, data: st.DataObject, flags: int) -> None:
        """Nobody takes any; each stream is told once, and a mere end of data is fine while the call lives."""
        number = data.draw(st.integers(0, self.last + 2))
        if not number % 2:
            expected = [(number, *EVEN)]
        elif number in self.told or (number in self.live and flags == 5):
            expected = []
        else:
            self.told.add(number)
            expected = [(number, *INACTIVE)]

        assert (0, expected) == self.feed(encode_frame(number, DATA, flags, b""))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), send=st.sampled_from(["response", "error"]))
    def an_answer(self, data: st.DataObject, send: str) -> None:
        """A call in flight is answered once."""
        number = data.draw(st.sampled_from(sorted(self.live)))
        self.live.discard(number)
        sends: dict[str, Callable[[], bytes]] = {
            "response": lambda: self.server.send_response(number, b"x"),
            "error": lambda: self.server.send_error(number, 5, "nf"),
        }
        expected = {"response": (number, 0, ""), "error": (number, 5, "nf")}

        assert [expected[send]] == answers(sends[send]())
        assert b"" == sends[send]()

    @invariant()
    def active_is_what_lives(self) -> None:
        """The number of calls in flight is never off."""
        assert len(self.live) == self.server.active


TestServerMachine = ServerMachine.TestCase
TestServerMachine.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
