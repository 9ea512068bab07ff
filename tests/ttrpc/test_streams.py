"""Streams: the table of states, walked over every side, kind, state and step; what Go's peers were seen to do; and two
cores against the reference, under whatever steps and bytes.
"""

import itertools
from typing import Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shim.ttrpc._client_connection import ClientConnection
from shim.ttrpc._envelope import encode_error, encode_response
from shim.ttrpc._events import EndReceived, MessageReceived, RequestReceived, ServerEvent
from shim.ttrpc._frame import RESPONSE, encode_frame
from shim.ttrpc._inbox import Inbox
from shim.ttrpc._server_connection import ServerConnection
from shim.ttrpc._streams import NEW, START, TRANSITIONS, Kind, Side, State, Step, advance
from shim.ttrpc.status import ConnectionClosedError, LocalProtocolError
from shim.ttrpc.wire import DecodeError, fields, number_field
from tests import strategies
from tests.fuzz.reference import ComparedPair
from tests.strategies import FrameValues
from tests.ttrpc.pairs import METHODS, ConnectionPair, Method, data, head, heard, request, told

_CLIENT: Final = {
    (State.OPEN, Step.SEND_MESSAGE): State.OPEN,
    (State.OPEN, Step.SEND_END): State.LOCAL_CLOSED,
    (State.OPEN, Step.RECV_FINAL): State.FINISHED,
    (State.LOCAL_CLOSED, Step.RECV_FINAL): State.FINISHED,
}
_CLIENT_READS: Final = {
    (State.OPEN, Step.RECV_MESSAGE): State.OPEN,
    (State.LOCAL_CLOSED, Step.RECV_MESSAGE): State.LOCAL_CLOSED,
}
_SERVER: Final = {
    (State.OPEN, Step.RECV_MESSAGE): State.OPEN,
    (State.OPEN, Step.RECV_END): State.REMOTE_CLOSED,
    (State.OPEN, Step.SEND_FINAL): State.FINISHED,
    (State.REMOTE_CLOSED, Step.SEND_FINAL): State.FINISHED,
}
_SERVER_WRITES: Final = {
    (State.OPEN, Step.SEND_MESSAGE): State.OPEN,
    (State.REMOTE_CLOSED, Step.SEND_MESSAGE): State.REMOTE_CLOSED,
}
ALLOWED: Final = {
    (Side.CLIENT, Kind.UNARY): _CLIENT,
    (Side.CLIENT, Kind.SERVER_STREAM): _CLIENT | _CLIENT_READS,
    (Side.CLIENT, Kind.CLIENT_STREAM): _CLIENT,
    (Side.CLIENT, Kind.BIDI): _CLIENT | _CLIENT_READS,
    (Side.SERVER, Kind.UNARY): _SERVER,
    (Side.SERVER, Kind.SERVER_STREAM): _SERVER | _SERVER_WRITES,
    (Side.SERVER, Kind.CLIENT_STREAM): _SERVER,
    (Side.SERVER, Kind.BIDI): _SERVER | _SERVER_WRITES,
}
ROLES: Final = list(itertools.product(Side, Kind))


@pytest.mark.parametrize(("side", "kind"), ROLES)
def test_advance_allows_what_the_protocol_does(side: Side, kind: Kind) -> None:
    """Every other step is refused, in every state."""
    rules = TRANSITIONS[side, kind]
    found = {}
    for state, step in itertools.product(State, Step):
        try:
            found[state, step] = advance(rules, state, step)
        except LocalProtocolError:
            continue

    assert ALLOWED[side, kind] == found


@pytest.mark.parametrize(
    ("state", "step", "expected"),
    [
        (State.LOCAL_CLOSED, Step.SEND_MESSAGE, "cannot send message: the stream is local closed"),
        (State.LOCAL_CLOSED, Step.SEND_END, "cannot send end: the stream is local closed"),
        (State.FINISHED, Step.RECV_FINAL, "cannot recv final: the stream is finished"),
        (State.REMOTE_CLOSED, Step.RECV_MESSAGE, "cannot recv message: the stream is remote closed"),
    ],
)
def test_advance_names_the_step_and_the_state(state: State, step: Step, expected: str) -> None:
    """When it refuses."""
    with pytest.raises(LocalProtocolError) as caught:
        advance(TRANSITIONS[Side.CLIENT, Kind.BIDI], state, step)

    assert expected == str(caught.value)


def test_a_side_without_a_stream_begins_closed() -> None:
    """So that it can never send or take a message of one."""
    expected = {
        (side, kind): State.OPEN
        if kind.has_client_stream
        else State.LOCAL_CLOSED
        if side is Side.CLIENT
        else State.REMOTE_CLOSED
        for side, kind in ROLES
    }

    assert expected == START
    assert {role: (TRANSITIONS[role], state) for role, state in expected.items()} == NEW


@pytest.mark.parametrize(("side", "kind"), ROLES)
def test_every_walk_can_end(side: Side, kind: Kind) -> None:
    """From each state that is reached, one step of the server's finishes the stream, and nothing follows."""
    rules, start = NEW[side, kind]
    reached = {start}
    while new := {advance(rules, state, step) for state in reached for step in rules[state]} - reached:
        reached |= new
    final = Step.RECV_FINAL if side is Side.CLIENT else Step.SEND_FINAL

    assert State.FINISHED in reached
    assert {} == rules[State.FINISHED]
    assert {State.FINISHED} == {rules[state][final] for state in reached - {State.FINISHED}}


@pytest.mark.parametrize(("side", "kind"), ROLES)
def test_the_table_cannot_be_changed(side: Side, kind: Kind) -> None:
    """It is data that everybody shares."""
    rules = TRANSITIONS[side, kind]
    for mapping in (TRANSITIONS, START, NEW, rules, rules[State.FINISHED]):
        with pytest.raises(TypeError):
            mapping["x"] = {}  # type: ignore[index]


def test_a_kind_knows_which_sides_stream() -> None:
    """In the order of its names."""
    assert [(False, False), (True, False), (False, True), (True, True)] == [
        (kind.has_server_stream, kind.has_client_stream) for kind in Kind
    ]


class Calculator:
    """The service of the transcripts: `T` divides, `S` sums, `E` counts up."""

    def __init__(self, *, fails_after: int = 99, is_early: bool = False) -> None:
        self.server = ServerConnection(METHODS)
        self.kinds: dict[int, Kind] = {}
        self.sums: dict[int, list[int]] = {}
        self.fails_after = fails_after
        self.is_early = is_early

    def receive(self, *frames: bytes) -> list[str]:
        """Return all that is sent for some frames, without the stream's id."""
        sent = []
        for frame in frames:
            sent += [self._handle(event) for event in self.server.receive_data(frame)]
            sent.append(self.server.data_to_send())
        return [line.partition(" ")[2] for line in told(b"".join(sent))]

    def _handle(self, event: ServerEvent[Method]) -> bytes:
        number = event.stream_id
        if isinstance(event, RequestReceived):
            self.kinds[number] = event.method.kind
            self.sums[number] = []
            if event.method.kind is Kind.SERVER_STREAM:
                return self._divide(number, event.payload)
            return self.server.send_end(number) if self.is_early else b""
        if self.is_early:
            return b""
        if isinstance(event, MessageReceived):
            try:
                value = {field: value for field, _, value in fields(event.payload)}.get(1, 0)
            except DecodeError:
                return self.server.send_error(number, 13, "garbage")
            assert isinstance(value, int)
            self.sums[number].append(value)
            return self.server.send_message(number, part(value + 1)) if self.kinds[number] is Kind.BIDI else b""
        assert isinstance(event, EndReceived)
        if self.kinds[number] is Kind.BIDI:
            return self.server.send_end(number)
        values = self.sums[number]
        return self.server.send_response(number, part(sum(values)) + number_field(b"\x10", len(values)))

    def _divide(self, number: int, payload: bytes) -> bytes:
        sent: list[bytes] = []
        for value in range(payload[1] if payload else 0):
            if value == self.fails_after:
                return b"".join([*sent, self.server.send_error(number, 2, "after parts")])
            sent.append(self.server.send_message(number, part(value)))
        return b"".join([*sent, self.server.send_end(number)])


def part(value: int) -> bytes:
    """Return a message with one number."""
    return number_field(b"\x08", value)


DIVIDE: Final = request(1, Kind.SERVER_STREAM, 1, b"\x08\x02")
SUM: Final = request(1, Kind.CLIENT_STREAM, 2, b"")
ECHO: Final = request(1, Kind.BIDI, 2, b"")
STRAY: Final = "error 3 StreamID is no longer active"


@pytest.mark.parametrize(
    ("calculator", "frames", "expected"),
    [
        pytest.param({}, [DIVIDE], ["D/0", "D/0 0801", "D/5"], id="divide"),
        pytest.param(
            {}, [request(1, Kind.SERVER_STREAM, 0, b"\x08\x02")], ["D/0", "D/0 0801", "D/5"], id="divide without flags"
        ),
        pytest.param({}, [request(1, Kind.SERVER_STREAM, 1, b"")], ["D/5"], id="divide nothing"),
        pytest.param({"fails_after": 1}, [DIVIDE], ["D/0", "error 2 after parts"], id="divide fails"),
        *(
            pytest.param(
                {},
                [request(1, Kind.CLIENT_STREAM, flags, b""), data(1, 0, "0805"), data(1, 5)],
                ["OK 08051001"],
                id=f"sum opened with {flags}",
            )
            for flags in (6, 2, 0)
        ),
        pytest.param({}, [SUM, data(1, 0, "0805"), data(1), data(1, 5)], ["OK 08051002"], id="sum of an empty message"),
        pytest.param(
            {},
            [request(1, Kind.CLIENT_STREAM, 2), data(1, 0, "0805"), data(1, 5)],
            ["OK 080c1002"],
            id="sum with a payload in its request",
        ),
        # Go answers twice, code 3 and this; a message and the end is what the client means.
        pytest.param({}, [SUM, data(1, 1, "0805")], ["OK 08051001"], id="sum closed with a message"),
        pytest.param({}, [SUM, data(1, 1)], ["OK 1001"], id="sum closed with an empty message"),
        pytest.param({}, [SUM, data(1, 0, "08"), data(1, 5)], ["error 13 garbage", STRAY], id="sum of garbage"),
        pytest.param({}, [SUM, data(1, 4), data(1, 4, "0805"), data(1, 5)], ["OK"], id="sum of lone no-data"),
        pytest.param({}, [ECHO, data(1, 0, "0801"), data(1), data(1, 5)], ["D/0 0802", "D/0 0801", "D/5"], id="echo"),
        pytest.param({}, [request(1, Kind.BIDI, 1, b"")], [], id="echo closed in its request"),
        # Go sends its 3 for each frame; one for the stream says as much.
        pytest.param({"is_early": True}, [ECHO, data(1), data(1, 5)], ["D/5", STRAY], id="echo that returns early"),
    ],
)
def test_server_transcripts(calculator: dict[str, Any], frames: list[bytes], expected: list[str]) -> None:
    """What a Go server was seen to answer; where ours differs, it says why."""
    assert expected == Calculator(**calculator).receive(*frames)


def test_server_transcript_of_a_deadline() -> None:
    """A handler that stands still is answered for, and its late words are lost."""
    calculator = Calculator()
    calculator.receive(ECHO)

    assert ["1 error 4 context deadline exceeded"] == told(
        calculator.server.send_error(1, 4, "context deadline exceeded")
    )
    assert [STRAY] == calculator.receive(data(1, 5))
    assert b"" == calculator.server.send_end(1)


def test_server_transcript_of_a_stalled_handler() -> None:
    """200 messages wait for their owner, and the unary call behind them does not."""
    calculator = Calculator(is_early=False)
    events = heard(calculator.server.receive_data(ECHO + data(1) * 200 + request(3)))

    assert ["1 call E", *["1 message"] * 200, "3 call C 0807"] == events
    assert ["3 OK 78"] == told(calculator.server.send_response(3, b"x"))


NOT_FOUND: Final = encode_frame(1, RESPONSE, 0, encode_error(5, "nf"))
EMPTY_OK: Final = encode_frame(1, RESPONSE, 0, b"")
OK: Final = encode_frame(1, RESPONSE, 0, encode_response(b"x"))


@pytest.mark.parametrize(
    ("kind", "frames", "expected"),
    [
        pytest.param(
            Kind.SERVER_STREAM, [data(1, 0, "08"), data(1), data(1, 5)], ["message 08", "message", "end"], id="parts"
        ),
        pytest.param(
            Kind.SERVER_STREAM,
            [data(1, 0, "08"), data(1, 1, "09")],
            ["message 08", "message 09", "end"],
            id="closed with a message",
        ),
        # Go's caller gets one more message, an empty one.
        pytest.param(Kind.SERVER_STREAM, [data(1, 0, "08"), EMPTY_OK], ["message 08", "end"], id="ended by a response"),
        pytest.param(
            Kind.BIDI, [data(1, 0, "08"), OK], ["message 08", "message 78", "end"], id="ended by a full response"
        ),
        pytest.param(Kind.SERVER_STREAM, [data(1, 0, "08"), NOT_FOUND], ["message 08", "error 5 nf"], id="failed"),
        # Go's caller gets an empty message; the flag says that there is none.
        pytest.param(Kind.BIDI, [data(1, 4), data(1, 5)], ["end"], id="lone no-data"),
        pytest.param(Kind.CLIENT_STREAM, [OK], ["OK 78"], id="answered before the client has ended"),
        pytest.param(Kind.BIDI, [data(1, 5), data(1, 5)], ["end"], id="ended twice"),
        pytest.param(
            Kind.CLIENT_STREAM,
            [data(1)],
            ['fault unexpected "data" message received: protocol error'],
            id="data for a client's stream",
        ),
    ],
)
def test_client_transcripts(kind: Kind, frames: list[bytes], expected: list[str]) -> None:
    """What a scripted server makes our caller see; afterwards nothing of the call can go out."""
    client = ClientConnection()
    client.send_request(head(kind), b"", kind)

    assert expected == [line.partition(" ")[2] for line in heard(client.receive_data(b"".join(frames)))]
    assert b"" == client.send_end(1)
    with pytest.raises(LocalProtocolError, match=r"^cannot send message: the stream is finished$"):
        client.send_message(1, b"x")


def test_client_transcript_of_a_lost_connection() -> None:
    """The message that has come is read first; then it is closed, however often one asks."""
    client, inbox = ClientConnection(), Inbox()
    client.send_request(head(Kind.SERVER_STREAM), b"", Kind.SERVER_STREAM)
    for event in client.receive_data(data(1, 0, "08")):
        assert isinstance(event, MessageReceived)
        inbox.put(event.payload)
    inbox.end(ConnectionClosedError("ttrpc: closed"))

    assert b"\x08" == inbox.take()
    for _ in range(2):
        with pytest.raises(ConnectionClosedError, match=r"^ttrpc: closed$"):
            inbox.take()


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        (Kind.UNARY, ["1 call C 01", "1 OK 02"]),
        (Kind.SERVER_STREAM, ["1 call T 01", "1 message 02", "1 message", "1 end"]),
        (Kind.CLIENT_STREAM, ["1 call S", "1 message 01", "1 message", "1 end", "1 OK 02"]),
        (Kind.BIDI, ["1 call E", "1 message 01", "1 message", "1 end", "1 message 02", "1 message", "1 end"]),
    ],
)
def test_a_whole_call_of_each_kind(kind: Kind, steps: list[str]) -> None:
    """Between our two ends."""
    pair = ConnectionPair()
    number = pair.call(kind, b"" if kind.has_client_stream else b"\x01")
    if kind.has_client_stream:
        for payload in (b"\x01", b""):
            pair.to_server.put(pair.client.send_message(number, payload))
        pair.to_server.put(pair.client.send_end(number))
    events = pair.serve()
    if kind.has_server_stream:
        for payload in (b"\x02", b""):
            pair.to_client.put(pair.server.send_message(number, payload))
        pair.to_client.put(pair.server.send_end(number))
    else:
        pair.to_client.put(pair.server.send_response(number, b"\x02"))

    assert steps == events + pair.read()
    assert [0, 0] == [pair.client.active, pair.server.active]


BODIES: Final = st.one_of(st.just(b""), st.binary(max_size=8), strategies.ENVELOPES, st.just(bytes(201)))
INTRUDERS: Final[st.SearchStrategy[FrameValues]] = st.tuples(
    st.integers(0, 14), strategies.KINDS, strategies.FLAGS, BODIES
)


class PairMachine(RuleBasedStateMachine):
    """Two cores and their owners: legal steps, illegal ones, intruders, and bytes that arrive as they like."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = ComparedPair()

    def _any_call(self, data: st.DataObject) -> int:
        """Return the id of some call, or of none."""
        return data.draw(st.integers(0, self.pair.client.next + 2))

    @rule(kind=st.sampled_from(Kind), payload=st.sampled_from([b"", b"\x08\x07"]))
    def call(self, kind: Kind, payload: bytes) -> None:
        """The client calls."""
        self.pair.call(kind, payload)

    @precondition(lambda self: self.pair.client.next > 1)
    @rule(data=st.data(), step=st.sampled_from(["send", "send", "end", "forget"]))
    def client_steps(self, data: st.DataObject, step: str) -> None:
        """The client sends more, or gives up; whether it may or not."""
        stream_id = self._any_call(data)
        if step == "send":
            self.pair.send(stream_id, data.draw(st.binary(max_size=3)))
        elif step == "end":
            self.pair.close_send(stream_id)
        else:
            self.pair.forget(stream_id)

    @precondition(lambda self: self.pair.client.next > 1)
    @rule(data=st.data(), step=st.sampled_from(["respond", "fail", "emit", "emit", "finish"]))
    def server_steps(self, data: st.DataObject, step: str) -> None:
        """The server answers; whether it may or not."""
        stream_id = self._any_call(data)
        if step == "respond":
            self.pair.respond(stream_id, data.draw(st.binary(max_size=3)))
        elif step == "fail":
            self.pair.fail(stream_id, data.draw(st.integers(1, 99)), data.draw(strategies.TEXTS))
        elif step == "emit":
            self.pair.emit(stream_id, data.draw(st.binary(max_size=3)))
        else:
            self.pair.finish(stream_id)

    @rule(frame=INTRUDERS, is_for_server=st.booleans())
    def intrude(self, frame: FrameValues, *, is_for_server: bool) -> None:
        """A frame comes that nobody has sent."""
        self.pair.inject(frame, is_for_server=is_for_server)

    @rule(size=st.one_of(st.integers(0, 30), st.just(1 << 16)), is_for_server=st.booleans())
    def deliver(self, size: int, *, is_for_server: bool) -> None:
        """Some bytes arrive."""
        self.pair.deliver(size, is_for_server=is_for_server)

    @invariant()
    def both_agree(self) -> None:
        """On which calls are alive."""
        self.pair.check()

    def teardown(self) -> None:
        """All that is left arrives."""
        for is_for_server in (True, False):
            self.pair.deliver(1 << 20, is_for_server=is_for_server)
        self.pair.check()


TestPairMachine = PairMachine.TestCase
TestPairMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
