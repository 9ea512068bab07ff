"""Services: binding a .proto's rpcs to methods, finding them, and answers that come later."""

import threading
import time
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue

from shim.api import task_v2_pb2, task_v3_pb2
from shim.ttrpc.service import CallContext, Deferred, Endpoint, LateService, Method, Service, ServiceTable, snake_case
from shim.ttrpc.status import Code, RpcError

TASK = task_v2_pb2.DESCRIPTOR.services_by_name["Task"]


class Some:
    """Implements three of Task's rpcs."""

    def close_io(self, context: CallContext, request: object) -> Empty:
        """The rpc CloseIO."""
        return Empty()

    def resize_pty(self, context: CallContext, request: object) -> Empty:
        """The rpc ResizePty."""
        return Empty()

    def wait(self, context: CallContext, request: object) -> Deferred:
        """The rpc Wait."""
        return Deferred()


class Everything:
    """Has any method."""

    def __getattr__(self, name: str) -> object:
        return lambda context, request: name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("State", "state"),
        ("ResizePty", "resize_pty"),
        ("CloseIO", "close_io"),
        ("IOClose", "io_close"),
        ("GetHTTPInfo", "get_http_info"),
        ("CreateSandbox", "create_sandbox"),
        ("already_snake", "already_snake"),
        ("A", "a"),
        ("", ""),
    ],
)
def test_snake_case_keeps_abbreviations_together(name: str, expected: str) -> None:
    """As a Python programmer would spell the method."""
    assert expected == snake_case(name)


def test_from_descriptor_binds_every_rpc_of_task() -> None:
    """Names on the wire are the .proto's, those of the methods Python's."""
    service = Service.from_descriptor(TASK, Everything())

    assert "containerd.task.v2.Task" == service.name
    assert {
        "State": "state",
        "Create": "create",
        "Start": "start",
        "Delete": "delete",
        "Pids": "pids",
        "Pause": "pause",
        "Resume": "resume",
        "Checkpoint": "checkpoint",
        "Kill": "kill",
        "Exec": "exec",
        "ResizePty": "resize_pty",
        "CloseIO": "close_io",
        "Update": "update",
        "Wait": "wait",
        "Stats": "stats",
        "Connect": "connect",
        "Shutdown": "shutdown",
    } == {name: method.handler(CallContext(name), Empty()) for name, method in service.methods.items()}
    assert service.methods["Create"].request is task_v2_pb2.CreateTaskRequest
    assert service.methods["Create"].response is task_v2_pb2.CreateTaskResponse
    assert service.methods["CloseIO"].response is Empty


def test_from_descriptor_leaves_out_what_the_object_lacks() -> None:
    """And marks what never blocks."""
    service = Service.from_descriptor(TASK, Some(), inline={"Wait"})

    assert {"CloseIO": False, "ResizePty": False, "Wait": True} == {
        name: method.is_inline for name, method in service.methods.items()
    }


@pytest.mark.parametrize(
    ("service", "method", "expected"),
    [
        ("containerd.task.v9.Task", "State", "service containerd.task.v9.Task"),
        ("", "", "service "),
        ("containerd.task.v2.Task", "State", "method State"),
        ("containerd.task.v2.Task", "close_io", "method close_io"),
    ],
)
def test_find_answers_unimplemented_in_the_words_that_containerd_expects(
    service: str, method: str, expected: str
) -> None:
    """Its fallback from task v3 to v2 looks at the code."""
    table = ServiceTable([Service.from_descriptor(TASK, Some())])
    with pytest.raises(RpcError) as caught:
        table.find(service, method)

    assert (Code.UNIMPLEMENTED, expected) == (caught.value.code, caught.value.message)


def test_find_tells_two_versions_of_a_service_apart() -> None:
    """One server has both."""
    task_v3 = task_v3_pb2.DESCRIPTOR.services_by_name["Task"]
    table = ServiceTable([Service.from_descriptor(each, Some()) for each in (TASK, task_v3)])

    assert isinstance(table.find("containerd.task.v2.Task", "Wait").decode(b""), task_v2_pb2.WaitRequest)
    assert isinstance(table.find("containerd.task.v3.Task", "Wait").decode(b""), task_v3_pb2.WaitRequest)


def test_the_same_service_twice_is_an_error() -> None:
    """Which one to call would be a guess."""
    with pytest.raises(ValueError, match=r"^duplicate service containerd\.task\.v2\.Task registered$"):
        ServiceTable([Service.from_descriptor(TASK, Some())] * 2)


def test_decode_of_garbage_is_internal() -> None:
    """Go answers so too; the method is named for the caller."""
    method = Endpoint("a.B", Method("Echo", StringValue, StringValue, lambda _context, _request: None))
    with pytest.raises(RpcError, match=r"^a\.B/Echo: INTERNAL: ttrpc: error unmarshalling payload: ") as caught:
        method.decode(b"\x0a\x05")

    assert Code.INTERNAL == caught.value.code
    assert "x" == method.decode(b"\x0a\x01x").value  # type: ignore[attr-defined]


@pytest.mark.parametrize(("answer", "named"), [(None, "NoneType"), (Empty(), "Empty"), ("text", "str")])
def test_encode_of_something_else_is_internal(answer: object, named: str) -> None:
    """The text names the method, what it returned and what it should have."""
    method = Endpoint("a.B", Method("Echo", StringValue, StringValue, lambda _context, _request: None))
    with pytest.raises(RpcError) as caught:
        method.encode(answer)

    assert (Code.INTERNAL, f"method Echo returned {named}, not google.protobuf.StringValue") == (
        caught.value.code,
        caught.value.message,
    )


def test_deferred_tells_who_asked_before_and_after() -> None:
    """Each callback runs once."""
    deferred = Deferred()
    told: list[tuple[str, Message | None]] = []
    deferred.on_done(lambda done: told.append(("before", done.result())))
    states = [deferred.is_done]
    deferred.resolve(StringValue(value="x"))
    deferred.on_done(lambda done: told.append(("after", done.result())))

    assert [False, True] == [*states, deferred.is_done]
    assert [("before", StringValue(value="x")), ("after", StringValue(value="x"))] == told


def test_deferred_takes_the_first_end_only() -> None:
    """Later ones are ignored, whichever kind."""
    failed, resolved = Deferred(), Deferred()
    failed.fail(KeyError("k"))
    failed.resolve(Empty())
    resolved.resolve(Empty())
    resolved.fail(KeyError("k"))

    with pytest.raises(KeyError):
        failed.result()
    assert Empty() == resolved.result()


def test_an_abandoned_deferred_tells_who_would_answer_it() -> None:
    """Once, and only while there was no answer; one that comes later is dropped."""
    told: list[str] = []
    abandoned, answered, unwatched = Deferred(), Deferred(), Deferred()
    abandoned.on_abandoned = lambda: told.append("abandoned")
    abandoned.on_done(lambda _done: told.append("abandoned, done"))
    answered.on_abandoned = lambda: told.append("answered, abandoned")
    answered.on_done(lambda _done: told.append("answered"))
    answered.resolve(Empty())
    for deferred in (abandoned, abandoned, answered, unwatched):
        deferred.abandon()
    abandoned.resolve(Empty())

    assert ["answered", "abandoned"] == told
    assert abandoned.is_done


def test_deferred_ends_once_in_a_race() -> None:
    """Of many threads that resolve it, one wins, and the callback runs once."""
    for _ in range(20):
        deferred = Deferred()
        told: list[Message | None] = []
        deferred.on_done(lambda done, told=told: told.append(done.result()))  # type: ignore[misc]
        barrier = threading.Barrier(4)

        def race(number: int, deferred: Deferred = deferred, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            deferred.resolve(StringValue(value=str(number)))

        threads = [threading.Thread(target=race, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert [deferred.result()] == told


def test_context_knows_its_deadline() -> None:
    """Relative on the wire, absolute here; none is none."""
    without, later, past = CallContext("m"), CallContext("m", timeout_ns=10**12), CallContext("m", timeout_ns=-1)

    assert (None, None) == (without.deadline, without.remaining())
    assert later.deadline == pytest.approx(time.monotonic() + 1000, abs=60)
    assert later.remaining() == pytest.approx(1000, abs=60)
    assert 0.0 == past.remaining()


def test_context_values_ignore_case_and_keep_order() -> None:
    """A key may have several."""
    context = CallContext("m", metadata=(("Key", "1"), ("other", "2"), ("kEY", "3")))

    assert ["1", "3"] == context.values("kEy")
    assert [] == context.values("none")


def test_context_is_cancelled_once_told() -> None:
    """It stays so."""
    context = CallContext("m")
    states = [context.is_cancelled]
    for _ in range(2):
        context.cancel()
        states.append(context.is_cancelled)

    assert [False, True, True] == states


def test_handlers_get_the_message_class_of_their_method() -> None:
    """What a client sends arrives as what the .proto says."""
    seen: list[Any] = []
    service = Service("a.B", {"M": Method("M", StringValue, Empty, lambda _context, request: seen.append(request))})
    method = ServiceTable([service]).find("a.B", "M")
    method.handler(CallContext("a.B/M"), method.decode(StringValue(value="v").SerializeToString()))

    assert [StringValue(value="v")] == seen


def test_a_late_service_is_made_for_its_first_call() -> None:
    """Not for those of others, and once."""
    made: list[Service] = []

    def make() -> Service:
        made.append(Service.from_descriptor(TASK, Some()))
        return made[-1]

    table = ServiceTable([LateService(TASK.full_name, make)])
    with pytest.raises(RpcError, match="service other"):
        table.find("other", "Wait")
    assert not made
    assert not table.endpoints
    found = table.find(TASK.full_name, "Wait")
    with pytest.raises(RpcError, match="method Nothing"):
        table.find(TASK.full_name, "Nothing")

    assert found is table.find(TASK.full_name, "Wait")
    assert 1 == len(made)
    assert 3 == len(table.endpoints)


def test_a_late_service_has_its_name_from_the_beginning() -> None:
    """And gets another chance when it cannot be made."""
    outcomes: list[Any] = [ImportError("none"), Service.from_descriptor(TASK, Some())]

    def make() -> Service:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    table = ServiceTable([LateService(TASK.full_name, make)])
    with pytest.raises(ValueError, match="duplicate service"):
        table.add(Service.from_descriptor(TASK, Some()))
    with pytest.raises(ImportError):
        table.find(TASK.full_name, "Wait")

    assert table.find(TASK.full_name, "Wait").full_name.endswith("/Wait")
