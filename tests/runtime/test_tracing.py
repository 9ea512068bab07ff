"""Trace context: read from a call, there wherever the call is worked on, and nowhere else."""

import asyncio
import os
import re
import threading
from collections.abc import Generator, Iterator
from contextvars import Context
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf.empty_pb2 import Empty

from shim.api.task_v3_ttrpc import TaskRpcs
from shim.runtime import tracing
from shim.runtime.tracing import Trace, current_trace, parse_traceparent, trace_of, traced_environment
from shim.ttrpc import CallContext, Client, Deferred, Metadata, RpcError
from shim.ttrpc.aio_server import AsyncioLoop
from shim.ttrpc.loop import READABLE, WRITABLE
from tests.fakes import PATIENCE_S, wait_until
from tests.runtime.home import Home, Make, ask, facts_of

IDS: Final = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
PARENT: Final = f"00-{IDS[0]}-{IDS[1]}-01"
CALL: Final = {"traceparent": PARENT, "tracestate": "a=1", "baggage": "k=v"}
LOGGED: Final = f" traceid={IDS[0]} spanid={IDS[1]} "
# Both ways to a daemon are the same from its first call on.
once = pytest.mark.parametrize("spawn", ["fork"], indirect=True)


@pytest.fixture
def home(make: Make) -> Home:
    """A shim of either style."""
    return make("plain")


@pytest.fixture
def client(home: Home) -> Iterator[Client]:
    """Who calls it."""
    with home.connect() as client:
        yield client


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (PARENT, "01"),
        (f" {PARENT}\t", "01"),
        (f"00-{IDS[0]}-{IDS[1]}-00", "00"),
        (f"00-{IDS[0]}-{IDS[1]}-03", "03"),
        # A later version: its first four parts are read, of its flags only the one that is known.
        (f"01-{IDS[0]}-{IDS[1]}-01", "01"),
        (f"01-{IDS[0]}-{IDS[1]}-09", "01"),
        (f"01-{IDS[0]}-{IDS[1]}-f8", "00"),
        (f"cc-{IDS[0]}-{IDS[1]}-01-what-the-future-will-be-like", "01"),
        (f"cc-{IDS[0]}-{IDS[1]}-01-", "01"),
    ],
)
def test_a_traceparent_is_read(text: str, flags: str) -> None:
    """And written again as version 00."""
    trace = parse_traceparent(text)

    assert trace == Trace(*IDS, flags)
    assert f"00-{IDS[0]}-{IDS[1]}-{flags}" == trace.traceparent


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "00",
        "what is this",
        f"00-{IDS[0]}-{IDS[1]}",
        f"00-{IDS[0]}-{IDS[1]}-",
        f"00-{IDS[0]}-{IDS[1]}-1",
        f"00-{IDS[0]}-{IDS[1]}-001",
        f"00-{IDS[0]}-{IDS[1]}-0g",
        f"00-{IDS[0]}-{IDS[1]}-01-more",
        f"00-{IDS[0]}-{IDS[1]}-01-",
        f"cc-{IDS[0]}-{IDS[1]}-01.what",
        f"ff-{IDS[0]}-{IDS[1]}-01",
        f"FF-{IDS[0]}-{IDS[1]}-01",
        f"0-{IDS[0]}-{IDS[1]}-01",
        f"0x-{IDS[0]}-{IDS[1]}-01",
        f"00-{IDS[0].upper()}-{IDS[1]}-01",
        f"00-{IDS[0]}-{IDS[1].upper()}-01",
        f"00-{IDS[0][:-1]}-{IDS[1]}-01",
        f"00-{IDS[0]}0-{IDS[1]}-01",
        f"00-{IDS[0]}-{IDS[1][:-1]}-01",
        f"00-{'0' * 32}-{IDS[1]}-01",
        f"00-{IDS[0]}-{'0' * 16}-01",
        f"00 -{IDS[0]}-{IDS[1]}-01",
        "00-" + "\uff11" * 32 + f"-{IDS[1]}-01",
    ],
)
def test_what_is_no_traceparent_is_none(text: str) -> None:
    """W3C: such a call begins a trace of its own."""
    assert parse_traceparent(text) is None


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ((), None),
        ((("other", "x"),), None),
        ((("traceparent", "nonsense"), ("tracestate", "a=1")), None),
        ((("tracestate", "a=1"),), None),
        ((("Traceparent", PARENT),), Trace(*IDS, "01")),
        ((("traceparent", PARENT), ("tracestate", "a=1"), ("TraceState", "b=2")), Trace(*IDS, "01", "a=1,b=2")),
        ((("traceparent", PARENT), ("baggage", "k=v"), ("baggage", "l=w")), Trace(*IDS, "01", "", "k=v,l=w")),
        # What no child could be started with: the trace goes on without it.
        ((("traceparent", PARENT), ("tracestate", "a=\0"), ("baggage", "k=\n")), Trace(*IDS, "01")),
        ((("traceparent", PARENT), ("baggage", "k=" + "v" * 200_000)), Trace(*IDS, "01")),
        ((("traceparent", PARENT), ("tracestate", "a=\udcff")), Trace(*IDS, "01")),
    ],
)
def test_a_calls_metadata_hold_its_trace(metadata: tuple[tuple[str, str], ...], expected: Trace | None) -> None:
    """Names in any case; lists that came in parts are one."""
    assert expected == trace_of(CallContext("s/M", metadata=metadata))


@pytest.mark.parametrize(
    ("trace", "expected"),
    [
        (None, {"A": "b", "TRACEPARENT": "old", "TRACESTATE": "old", "BAGGAGE": "old"}),
        (Trace(*IDS, "01"), {"A": "b", "TRACEPARENT": PARENT}),
        (
            Trace(*IDS, "01", "a=1", "k=v"),
            {"A": "b", "TRACEPARENT": PARENT, "TRACESTATE": "a=1", "BAGGAGE": "k=v"},
        ),
    ],
)
def test_a_childs_environment_has_one_trace(trace: Trace | None, expected: dict[str, str]) -> None:
    """Nothing is left of another one, such as that of who started the daemon."""
    environment = {"A": "b", "TRACEPARENT": "old", "TRACESTATE": "old", "BAGGAGE": "old"}

    def run() -> Any:
        if trace is not None:
            tracing.Span(trace).attach()
        return traced_environment(environment)

    assert expected == Context().run(run)


@pytest.mark.parametrize("answer", ["message", "error", "deferred"])
def test_a_trace_ends_with_its_handler(answer: str) -> None:
    """On the same thread the next call finds none, however this one ended."""
    intercept = tracing.interceptor()
    seen: list[Trace | None] = []

    def handler(context: CallContext, request: object) -> Any:
        seen.append(current_trace())
        if answer == "error":
            raise ZeroDivisionError
        return Deferred() if answer == "deferred" else Empty()

    for metadata in (tuple(CALL.items()), ()):
        try:
            intercept(CallContext("s/M", metadata=metadata), Empty(), handler)
        except ZeroDivisionError:
            assert "error" == answer
        seen.append(current_trace())

    assert [Trace(*IDS, "01", "a=1", "k=v"), None, None, None] == seen


def test_a_coroutine_has_its_trace_in_every_step() -> None:
    """And nobody else in between, though it begins here and could go on elsewhere."""
    intercept = tracing.interceptor()
    seen: list[object] = []

    class Pause:
        def __await__(self) -> Generator[None]:
            yield

    async def handler(context: CallContext, request: object) -> Empty:
        try:
            for _ in range(2):
                seen.append(current_trace() is not None)
                await Pause()
        finally:
            seen.append(("end", current_trace() is not None))
        return Empty()

    def run(how: str) -> None:
        coroutine = intercept(CallContext("s/M", metadata=tuple(CALL.items())), Empty(), handler)
        coroutine.send(None)
        seen.append(current_trace())
        if how == "close":
            Context().run(coroutine.close)
        elif how == "throw":
            with pytest.raises(ZeroDivisionError):
                Context().run(coroutine.throw, ZeroDivisionError())
        else:
            Context().run(coroutine.send, None)
            with pytest.raises(StopIteration):
                Context().run(coroutine.send, None)
        seen.append(current_trace())

    stories = {}
    for how in ("send", "throw", "close"):
        seen.clear()
        run(how)
        stories[how] = list(seen)
    intercept(CallContext("s/M", metadata=tuple(CALL.items())), Empty(), handler).close()  # warns of nothing

    assert {
        "send": [True, None, True, ("end", True), None],
        "throw": [True, None, ("end", True), None],
        "close": [True, None, ("end", True), None],
    } == stories


def test_what_watches_a_descriptor_has_no_trace() -> None:
    """Though it was a call that began it: an event may be the first one to connect to containerd."""
    seen: list[tuple[int, Trace | None]] = []
    read_end, write_end = os.pipe()

    async def story() -> None:
        loop = AsyncioLoop(asyncio.get_running_loop())
        done = asyncio.Event()
        tracing.Span(Trace(*IDS)).attach()
        loop.register(read_end, READABLE, lambda events: read(events, done))
        loop.register(write_end, WRITABLE, lambda events: write(events, loop))
        assert current_trace() is not None
        await asyncio.wait_for(done.wait(), PATIENCE_S)
        loop.unregister(read_end)

    def read(events: int, done: asyncio.Event) -> None:
        os.read(read_end, 1)
        seen.append((events, current_trace()))
        done.set()

    def write(events: int, loop: AsyncioLoop) -> None:
        seen.append((events, current_trace()))
        loop.unregister(write_end)
        os.write(write_end, b"x")

    asyncio.run(story())
    os.close(read_end)
    os.close(write_end)

    assert [(WRITABLE, None), (READABLE, None)] == seen


@once
def test_a_handler_has_its_callers_trace(client: Client) -> None:
    """In a thread, in a task, and inline; the next call of the same connection, thread or task has none."""
    traces = [facts_of(client, metadata)["trace"] for metadata in (CALL, {}, CALL, {})]
    inline = [ask(client, TaskRpcs.PIDS, metadata=metadata).processes[1].pid for metadata in (CALL, {}, CALL, {})]
    waiting = [
        ask(client, TaskRpcs.PIDS, metadata=metadata, id="waits").processes[1].pid for metadata in (CALL, {}, CALL, {})
    ]

    assert [PARENT, None] * 2 == traces
    assert [1, 0] * 2 == inline == waiting


@once
def test_calls_at_the_same_time_keep_their_traces_apart(client: Client) -> None:
    """Of many on one connection, inline and not."""
    wrong: list[object] = []

    def call(number: int) -> None:
        parent = f"00-{number + 1:032x}-{number + 1:016x}-01"
        for step in range(15):
            metadata: Metadata = {"traceparent": parent} if step % 3 else {}
            told = facts_of(client, metadata)["trace"]
            inline = ask(client, TaskRpcs.PIDS, metadata=metadata, id="waits").processes[1].pid
            if (told, inline) != ((parent, 1) if metadata else (None, 0)):
                wrong.append((number, step, told, inline))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert [] == wrong


@once
def test_log_lines_tell_the_trace(home: Home, client: Client) -> None:
    """Those of the call, and no other's."""
    ask(client, TaskRpcs.STATE, metadata=CALL)
    ask(client, TaskRpcs.STATE)
    lines = re.findall(r'msg="from state \w+"(.*)runtime=', home.log())

    assert [LOGGED] * 3 + [" "] * 3 == lines


@once
def test_an_answer_that_comes_later_belongs_to_its_call(home: Home, client: Client) -> None:
    """It is worked on in its trace, and resolved by a call that has none."""
    threads = [threading.Thread(target=lambda name=name: _wait(client, name), daemon=True) for name in ("c", "fails")]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: home.log().count("msg=wait ") == 2)
    ask(client, TaskRpcs.DELETE)
    for thread in threads:
        thread.join(PATIENCE_S)
    lines = re.findall(r"msg=(?:wait|waited) container=\w+(.*)runtime=", home.log())

    assert {LOGGED} == set(lines)
    assert len(lines) >= 2


def _wait(client: Client, name: str) -> None:
    if name == "fails":
        with pytest.raises(RpcError, match="the container: not found"):
            ask(client, TaskRpcs.WAIT, metadata=CALL, id=name)
    else:
        ask(client, TaskRpcs.WAIT, metadata=CALL, id=name)


@once
def test_a_child_of_the_reaper_finds_the_trace_in_its_environment(client: Client, tmp_path: Path) -> None:
    """One that a call without a trace spawned finds none."""

    def variables(metadata: Metadata) -> dict[str, str]:
        output = tmp_path / "output"
        ask(client, TaskRpcs.CREATE, metadata=metadata, stdin="env", stdout=str(output))
        pairs = [line.partition("=") for line in output.read_text().splitlines()]
        return {name: value for name, _, value in pairs if name in ("TRACEPARENT", "TRACESTATE", "BAGGAGE")}

    assert {"TRACEPARENT": PARENT, "TRACESTATE": "a=1", "BAGGAGE": "k=v"} == variables(CALL)
    assert {} == variables({})


@once
def test_nothing_of_opentelemetry_is_loaded_where_it_is_not_installed(client: Client) -> None:
    """Nor the module that uses it."""
    loaded = facts_of(client)["modules"]

    assert [] == [name for name in loaded if name.startswith("opentelemetry") or name == "shim.runtime.otel"]
