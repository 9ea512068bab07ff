"""Unary calls, every client with every server."""

import threading
import time

import pytest
from google.protobuf.empty_pb2 import Empty

from shim.ttrpc import Code, LocalProtocolError, RpcError
from tests.fakes import PATIENCE_S, wait_until
from tests.protos.conformance_pb2 import Failure, Nap, Payload
from tests.protos.conformance_ttrpc import ConformanceRpcs as Rpcs
from tests.ttrpc.conformance.ends import End
from tests.ttrpc.conformance.scene import HOLD, WAIT, Scene
from tests.ttrpc.conformance.script import SERVICE
from tests.ttrpc.conformance.servers import ServerEnd


def test_echo(client: End) -> None:
    """Integration Echo: the same data, `seq` one higher."""
    assert Payload(seq=8, data=b"x") == client.call(Rpcs.ECHO, Payload(seq=7, data=b"x"))


def test_two_concurrent_calls_with_metadata(client: End, scene: Scene) -> None:
    """Go TestServer: both are answered, and the handler sees what came with them."""
    started = [client.start(Rpcs.SLEEP, HOLD) for _ in range(2)]
    assert wait_until(lambda: len(scene.contexts) == 2)
    answer = client.call(Rpcs.METADATA, Empty(), metadata={"foo": "bar"})

    assert [("foo", "bar")] == [(pair.key, pair.value) for pair in answer.pairs]
    scene.gate.open()
    assert [Empty(), Empty()] == [one.result() for one in started]


def test_default_valued_request_is_delivered(client: End, scene: Scene) -> None:
    """Rust run_examples (ttrpc-rust#208): an empty payload is a message; so is an empty answer."""
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    assert Empty() == client.call(Rpcs.SLEEP, Nap())
    assert 2 == len(scene.contexts)


@pytest.mark.parametrize(
    ("service", "method", "text"),
    [("no.Such", "Echo", "service no.Such"), ("", "", "service "), (SERVICE, "Nope", "method Nope")],
)
def test_unknown_names_are_unimplemented(client: End, service: str, method: str, text: str) -> None:
    """Go TestServerUnimplemented, and table 3.1: code 12 with the text that peers match on; the connection goes on."""
    with pytest.raises(RpcError) as caught:
        client.call_raw(service, method, b"")

    assert (Code.UNIMPLEMENTED, text) == (caught.value.code, caught.value.message)
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())


def test_bad_message_is_internal(client: End) -> None:
    """Table 3.1, bad message inside the payload: code 13."""
    with pytest.raises(RpcError, match="INTERNAL: ttrpc: error unmarshalling payload: "):
        client.call_raw(SERVICE, "Echo", b"\x0a\x05")
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())


@pytest.mark.parametrize("code", [5, 16, 99, 2**31 - 1, -1])
def test_status_keeps_code_text_and_details(client: End, code: int) -> None:
    """Table 3.1, handler returns a status error; table 3.2, status code 99."""
    with pytest.raises(RpcError) as caught:
        client.call(Rpcs.FAIL, Failure(code=code, message="näh"))

    error = caught.value
    assert (code, "näh", (("type.example/Detail", b"\x08\x01"),)) == (error.code, error.message, error.details)
    assert f"{SERVICE}/Fail" == error.method


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError("gone"), 5),
        (FileExistsError("there"), 6),
        (PermissionError("no"), 7),
        (TimeoutError("late"), 4),
        (BrokenPipeError("pipe"), 9),
        (OSError("other"), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_builtin_errors_have_codes(client: End, scene: Scene, error: Exception, code: int) -> None:
    """Table 3.1, handler returns a plain error: mapped as Go's server maps its counterpart, text kept."""
    scene.error = error
    with pytest.raises(RpcError) as caught:
        client.call(Rpcs.FAIL, Failure())

    assert (code, str(error)) == (caught.value.code, caught.value.message)


def test_deadline_reaches_the_handler(client: End, scene: Scene) -> None:
    """Go TestServerRequestTimeout: ten minutes away there too."""
    client.call(Rpcs.ECHO, Payload(), timeout_s=600.0)
    remaining = scene.contexts[0].remaining()

    assert remaining is not None
    assert 570 < remaining <= 600
    assert scene.contexts[0].deadline is not None
    assert abs(scene.contexts[0].deadline - time.monotonic() - remaining) < 1


def test_call_without_a_deadline_has_none(client: End, scene: Scene) -> None:
    """Absent means for ever, not zero."""
    client.start(Rpcs.ECHO, Payload()).result()

    assert (None, None) == (scene.contexts[0].deadline, scene.contexts[0].remaining())


def test_deadline_ends_one_call_alone(client: End, scene: Scene, server: ServerEnd) -> None:
    """Rust unary_request_timeout and run_examples: the slow one fails, the others are answered; nothing stays."""
    slow = client.start(Rpcs.SLEEP, HOLD, timeout_s=0.05)
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    with pytest.raises(RpcError) as caught:
        slow.result()

    assert (Code.DEADLINE_EXCEEDED, "context deadline exceeded") == (caught.value.code, caught.value.message)
    assert f"{SERVICE}/Sleep" == caught.value.method
    assert wait_until(lambda: any(context.is_cancelled for context in scene.contexts if "Sleep" in context.method))
    scene.gate.open()
    assert wait_until(lambda: (client.active, server.calls) == (0, 0))


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, 1e-12])
def test_deadline_that_has_passed(client: End, timeout_s: float) -> None:
    """It is over before it began, and the connection goes on."""
    with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
        client.call(Rpcs.SLEEP, HOLD, timeout_s=timeout_s)
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())


@pytest.mark.parametrize("timeout_s", [1e12, float("inf")])
def test_deadline_in_another_age(client: End, timeout_s: float) -> None:
    """As good as none."""
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload(), timeout_s=timeout_s)


def test_method_name_is_full(client: End, scene: Scene) -> None:
    """Go Test_MethodFullNameGeneration: service and method, as the .proto has them."""
    client.call(Rpcs.ECHO, Payload())

    assert ["shim.conformance.v1.Conformance/Echo"] == [context.method for context in scene.contexts]


def test_long_polls_delay_nobody(client: End, scene: Scene) -> None:
    """Deadlock H: a call that waits for another one that comes later is answered."""
    waits = [client.start(Rpcs.SLEEP, HOLD) for _ in range(40)]
    assert wait_until(lambda: len(scene.contexts) == 40)
    assert Payload(seq=1) == client.call(Rpcs.ECHO, Payload())
    assert not any(wait.is_done for wait in waits)
    scene.gate.open()

    assert [Empty()] * 40 == [wait.result() for wait in waits]


def test_handler_context_ends_with_the_call(client: End, scene: Scene) -> None:
    """Table 2.2, handler returned: its context is cancelled on every way out."""
    client.call(Rpcs.ECHO, Payload())
    with pytest.raises(RpcError):
        client.call(Rpcs.FAIL, Failure(code=5))

    assert wait_until(lambda: [context.is_cancelled for context in scene.contexts] == [True, True])


def test_answers_come_in_any_order(client: End, scene: Scene) -> None:
    """Table 3.1, reply ordering: none; the later call is answered first."""
    first = client.start(Rpcs.SLEEP, WAIT)
    assert wait_until(lambda: len(scene.contexts) == 1)
    assert Payload(seq=2) == client.call(Rpcs.ECHO, Payload(seq=1))
    assert not first.is_done
    scene.finish()

    assert Empty() == first.result()


def test_a_method_of_the_wrong_kind_is_refused_here(client: End, scene: Scene) -> None:
    """Opening a unary method, calling a streaming one, a request too many or too few: nothing is sent."""
    with pytest.raises(LocalProtocolError, match="call it"):
        client.open(Rpcs.ECHO, Payload())
    with pytest.raises(LocalProtocolError, match="open it"):
        client.call(Rpcs.ECHO_STREAM, Payload())
    with pytest.raises(LocalProtocolError, match="sends its requests on the stream"):
        client.open(Rpcs.ECHO_STREAM, Payload())
    with pytest.raises(LocalProtocolError, match="needs a request"):
        client.open(Rpcs.EMPTY_REQUEST)

    assert (0, []) == (client.active, scene.contexts)


def test_sixteen_threads_share_a_client(client: End) -> None:
    """Every caller gets its own answer."""
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(10):
                payload = Payload(seq=number * 100 + step, data=b"%d" % number)
                assert Payload(seq=payload.seq + 1, data=payload.data) == client.call(Rpcs.ECHO, payload)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert [] == errors
