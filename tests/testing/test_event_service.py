"""containerd's event service: what it takes, what it refuses, and how it fails when told to."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue

from shim.api.events_pb2 import TaskExecStarted, TaskExit, TaskOOM
from shim.api.events_service_pb2 import ForwardRequest
from shim.api.events_service_ttrpc import EventsClient
from shim.testing import Event, EventService
from shim.ttrpc import Client, Code, ConnectionClosedError, RpcError, connect
from tests.fakes import PATIENCE_S


@pytest.fixture
def service(tmp_path: Path) -> Iterator[EventService]:
    """A service that listens; none of its handlers may have failed."""
    with EventService(tmp_path / "events") as service:
        yield service
        assert [] == service.faults


@pytest.fixture
def client(service: EventService) -> Iterator[Client]:
    """A connection to it."""
    with connect(service.path) as client:
        yield client


def forward(client: Client, message: Message, topic: str = "/tasks/oom", **changes: object) -> None:
    """Forward an event as a shim does."""
    request = ForwardRequest()
    envelope = request.envelope
    if not changes.get("is_timeless"):
        envelope.timestamp.seconds = 5
    envelope.namespace = str(changes.get("namespace", "ns"))
    envelope.topic = topic
    prefix = str(changes.get("prefix", ""))
    envelope.event.CopyFrom(Any(type_url=f"{prefix}{message.DESCRIPTOR.full_name}", value=message.SerializeToString()))
    EventsClient(client).forward(request, timeout_s=PATIENCE_S)


@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/"])
def test_events_are_recorded_in_order_and_decoded(service: EventService, client: Client, prefix: str) -> None:
    """Whatever comes before the last slash of the type."""
    forward(client, TaskOOM(container_id="a"), prefix=prefix)
    forward(client, TaskExit(container_id="b", id="b", pid=7), "/tasks/exit", prefix=prefix)

    assert [
        Event("/tasks/oom", "ns", TaskOOM(container_id="a")),
        Event("/tasks/exit", "ns", TaskExit(container_id="b", id="b", pid=7)),
    ] == service.events
    assert [5_000_000_000] * 2 == [event.timestamp_ns for event in service.events]
    assert ["/tasks/exit"] == service.topics("b")
    assert [("a", ""), ("b", "")] == [(event.container, event.exec) for event in service.events]


def test_events_of_execs_say_so(service: EventService, client: Client) -> None:
    """By the field that each message has for it."""
    forward(client, TaskExecStarted(container_id="a", exec_id="e"), "/tasks/exec-started")
    forward(client, TaskExit(container_id="a", id="e"), "/tasks/exit")

    assert ["e", "e"] == [event.exec for event in service.of("a")]
    assert service.wait_for("/tasks/exit", exec="e") == service.events[1]


def test_a_message_of_another_kind_stays_an_any(service: EventService, client: Client) -> None:
    """Also one that has the name of an event in another package."""
    forward(client, StringValue(value="x"))

    assert Any(type_url="google.protobuf.StringValue", value=b"\n\x01x") == service.events[0].message


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"namespace": ""}, "event envelope has invalid namespace: identifier must not be empty: invalid argument"),
        ({"topic": ""}, 'envelope topic "": must not be empty: invalid argument'),
        ({"topic": "tasks"}, "envelope topic \"tasks\": must start with '/': invalid argument"),
        ({"topic": "/"}, 'envelope topic "/": must have at least one component: invalid argument'),
        ({"is_timeless": True}, "timestamp must be set on forwarded event: invalid argument"),
        (
            {"topic": "/tasks/?"},
            'envelope topic "/tasks/?": failed validation on component "?": identifier "?" must match '
            "^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$: invalid argument",
        ),
        (
            {"namespace": "n" * 77},
            f'event envelope has invalid namespace: identifier "{"n" * 77}" greater than maximum length '
            "(76 characters): invalid argument",
        ),
    ],
)
def test_what_containerd_refuses_is_refused_in_its_words(
    service: EventService, client: Client, changes: dict[str, str], text: str
) -> None:
    """And does not count."""
    with pytest.raises(RpcError) as caught:
        forward(client, TaskOOM(), **{"topic": "/tasks/oom", **changes})

    assert (Code.INVALID_ARGUMENT, text) == (caught.value.code, caught.value.message)
    assert [] == service.events


def test_refusals_are_for_a_topic_and_a_number_of_times(service: EventService, client: Client) -> None:
    """Others pass."""
    service.refuse("/tasks/oom", code=Code.INTERNAL, text="broken", times=1)
    forward(client, TaskOOM(), "/tasks/start")
    with pytest.raises(RpcError, match="broken"):
        forward(client, TaskOOM())
    forward(client, TaskOOM())
    service.refuse()
    with pytest.raises(RpcError, match="not now"):
        forward(client, TaskOOM())
    service.behave()
    forward(client, TaskOOM())

    assert ["/tasks/start", "/tasks/oom", "/tasks/oom"] == [event.topic for event in service.events]


def test_what_is_held_is_answered_on_release(service: EventService, client: Client) -> None:
    """It has come all the same."""
    gate = service.hold()
    thread = threading.Thread(target=lambda: forward(client, TaskOOM(container_id="a")))
    thread.start()
    gate.wait_reached()
    service.wait_for("/tasks/oom", container="a")

    assert thread.is_alive()
    gate.release()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    forward(client, TaskOOM())


@pytest.mark.parametrize("counts", [True, False])
def test_a_dropped_connection_is_closed_instead_of_an_answer(
    service: EventService, client: Client, counts: bool
) -> None:
    """The event has been taken or not; the next connection works."""
    service.drop(counts=counts)
    with pytest.raises(ConnectionClosedError):
        forward(client, TaskOOM())
    with connect(service.path) as again:
        forward(again, TaskOOM())

    assert (2 if counts else 1) == len(service.events)


def test_a_stopped_service_is_gone_until_it_starts(service: EventService, client: Client) -> None:
    """At the same address, with what it knew."""
    forward(client, TaskOOM())
    service.stop()
    with pytest.raises(ConnectionClosedError):
        forward(client, TaskOOM())
    with pytest.raises(FileNotFoundError):
        connect(service.path)
    assert not service.is_running
    service.restart()
    with connect(service.path) as again:
        forward(again, TaskOOM())

    assert 2 == len(service.events)


def test_waiting_in_vain_names_what_came(service: EventService, client: Client) -> None:
    """Which is the first question."""
    forward(client, TaskOOM(container_id="a"))
    with pytest.raises(AssertionError, match=r"^0 of 1 times /tasks/exit within 0.01 s; came: /tasks/oom$"):
        service.wait_for("/tasks/exit", timeout_s=0.01)
    with pytest.raises(AssertionError, match=r"expected \['/tasks/exit'\], came \['/tasks/oom'\]"):
        service.wait_for_topics("a", ["/tasks/exit"], timeout_s=0.01)
