"""Spans of OpenTelemetry's, by its own API and SDK, which are installed beside .venv: nothing else may need them."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from shim.api.task_v3_ttrpc import TaskRpcs
from shim.ttrpc import Client, ConnectionClosedError, RpcError
from tests.fakes import PATIENCE_S, ROOT, wait_until
from tests.runtime.home import Home, ask, facts_of

TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN: Final = "00f067aa0ba902b7"
CALL: Final = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "a=1", "baggage": "k=v"}
# The first one waits for pip.
pytestmark = [pytest.mark.timeout(180), pytest.mark.parametrize("spawn", ["fork"], indirect=True)]


@pytest.fixture(scope="session")
def packages() -> Path:
    """A folder with the dependency group `otel`, as pinned; made once for each set of pins."""
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["otel"]
    key = hashlib.sha256("\n".join([*pins, sys.version]).encode()).hexdigest()[:16]
    folder = ROOT / ".work" / "otel"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / key / "complete").exists():
            command = [sys.executable, "-m", "pip", "install", "-q", "--upgrade", "--target", str(folder / key), *pins]
            subprocess.run([*command, "--disable-pip-version-check"], check=True)
            (folder / key / "complete").touch()
    return folder / key


class Traced(Home):
    """A shim with OpenTelemetry."""

    def become(self, packages: Path, *program: str, sdk: bool = True) -> None:
        """Run another program, which finds OpenTelemetry."""
        self.program = ("tests.runtime.otel_shims", *program)
        self.environment["PYTHONPATH"] += os.pathsep + str(packages)
        self.environment["SPANS"] = str(self.spans_file) if sdk else ""

    @property
    def spans_file(self) -> Path:
        """Where spans come."""
        return self.bundle / "spans"

    def spans(self, *names: str) -> list[dict[str, Any]]:
        """Return the spans so far, or those of some methods."""
        with contextlib.suppress(FileNotFoundError):
            lines = [json.loads(line) for line in self.spans_file.read_text().splitlines()]
            return [line for line in lines if not names or line["name"].rpartition("/")[2] in names]
        return []

    def wait_span(self, name: str) -> dict[str, Any]:
        """Return a method's one span, once it has ended."""
        assert wait_until(lambda: self.spans(name)), self.log()
        (span,) = self.spans(name)
        return span


@pytest.fixture(params=["blocking", "asyncio"])
def home(request: pytest.FixtureRequest, tmp_path: Path, sockets: Path, spawn: str, packages: Path) -> Iterator[Traced]:
    """A shim of either style, with the SDK."""
    home = Traced(tmp_path, sockets, spawn)
    home.become(packages, request.param, "plain")
    yield home
    home.close()
    assert [] == re.findall(r".*(?:Failed to detach|ended span|never awaited|Traceback).*", home.log())


@pytest.fixture
def client(home: Traced) -> Iterator[Client]:
    """Who calls it."""
    with home.connect() as client:
        yield client


def parts(span: dict[str, Any]) -> tuple[str, str, str | None]:
    """Return a span's trace, its own id and its parent's, in bare hex."""
    context = span["context"]
    parent = span["parent_id"]
    bare = [str(value).removeprefix("0x") for value in (context["trace_id"], context["span_id"])]
    return bare[0], bare[1], parent and parent.removeprefix("0x")


def test_each_call_is_a_span_of_its_caller(home: Traced, client: Client) -> None:
    """A server's, named and described as otelttrpc does."""
    ask(client, TaskRpcs.CONNECT, metadata=CALL)
    span = home.wait_span("Connect")

    assert "containerd.task.v3.Task/Connect" == span["name"]
    assert "SpanKind.SERVER" == span["kind"]
    assert (TRACE, SPAN) == (parts(span)[0], parts(span)[2])
    assert "UNSET" == span["status"]["status_code"]
    assert {
        "rpc.system": "ttrpc",
        "rpc.service": "containerd.task.v3.Task",
        "rpc.method": "Connect",
        "rpc.ttrpc.status_code": 0,
    } == span["attributes"]
    assert "containerd-shim-" + home.id == span["resource"]["attributes"]["service.name"]


def test_a_call_without_a_trace_begins_one(home: Traced, client: Client) -> None:
    """Another one each time."""
    told = [facts_of(client)["trace"] for _ in range(2)]
    assert wait_until(lambda: len(home.spans("Connect")) == 2)
    spans = [parts(span) for span in home.spans("Connect")]

    assert [f"00-{trace}-{span}" for trace, span, _ in spans] == [traceparent[:-3] for traceparent in told]
    assert [None, None] == [parent for _, _, parent in spans]
    assert spans[0][0] != spans[1][0]


def test_what_is_handed_on_is_the_span_itself(home: Traced, client: Client, tmp_path: Path) -> None:
    """To log lines and to children, with the caller's state and baggage."""
    output = tmp_path / "output"
    ask(client, TaskRpcs.CREATE, metadata=CALL, stdin="env", stdout=str(output))
    ask(client, TaskRpcs.STATE, metadata=CALL)
    own = parts(home.wait_span("Create"))[1]
    logged = parts(home.wait_span("State"))[1]
    environment = dict(line.split("=", 1) for line in output.read_text().splitlines() if "=" in line)

    assert f"00-{TRACE}-{own}" == environment["TRACEPARENT"][:-3]
    assert ("a=1", "k=v") == (environment["TRACESTATE"], environment["BAGGAGE"])
    assert {f"traceid={TRACE} spanid={logged}"} == set(re.findall(r'msg="from state \w+" (.*) runtime=', home.log()))


def test_a_state_without_a_trace_is_nobodys(client: Client, tmp_path: Path) -> None:
    """It belongs to a traceparent, and this one is none."""
    output = tmp_path / "output"
    ask(client, TaskRpcs.CREATE, metadata={**CALL, "traceparent": "nonsense"}, stdin="env", stdout=str(output))

    assert "TRACEPARENT=00-" in output.read_text()
    assert "TRACESTATE" not in output.read_text()


@pytest.mark.parametrize(("name", "code", "text"), [("Stats", 2, "a bug"), ("Checkpoint", 12, "method Checkpoint")])
def test_a_fault_is_the_spans_status(home: Traced, client: Client, name: str, code: int, text: str) -> None:
    """With the exception as its event."""
    with pytest.raises(RpcError, match=text):
        ask(client, getattr(TaskRpcs, name.upper()), metadata=CALL)
    span = home.wait_span(name)

    assert (code, "ERROR") == (span["attributes"]["rpc.ttrpc.status_code"], span["status"]["status_code"])
    assert text == span["status"]["description"]
    assert ["exception"] == [event["name"] for event in span["events"]]


def test_an_answer_that_comes_later_ends_its_span_then(home: Traced, client: Client) -> None:
    """Well, or by a refusal, which is the caller's business and no fault of this side."""
    threads = [threading.Thread(target=_wait, args=(client, name)) for name in ("c", "fails")]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: home.log().count("msg=wait ") == 2)
    before = home.spans("Wait")
    ask(client, TaskRpcs.DELETE)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert wait_until(lambda: len(home.spans("Wait")) == 2)
    told = {(s["attributes"]["rpc.ttrpc.status_code"], s["status"]["status_code"]) for s in home.spans("Wait")}

    assert [] == before
    assert {(0, "UNSET"), (5, "UNSET")} == told
    assert {(TRACE, SPAN)} == {(parts(span)[0], parts(span)[2]) for span in home.spans("Wait")}


def _wait(client: Client, name: str) -> None:
    with contextlib.suppress(RpcError):
        ask(client, TaskRpcs.WAIT, metadata=CALL, id=name)


def test_a_call_that_is_given_up_ends_its_span(home: Traced, client: Client) -> None:
    """Nobody would ever hear of it otherwise; it says whether that was the deadline."""
    with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
        client.call(TaskRpcs.WAIT, TaskRpcs.WAIT.request(id="c"), timeout_s=0.05)
    span = home.wait_span("Wait")

    assert (4, "ERROR") == (span["attributes"]["rpc.ttrpc.status_code"], span["status"]["status_code"])
    assert "context deadline exceeded" == span["status"]["description"]


def test_a_caller_that_goes_ends_its_calls_spans(home: Traced) -> None:
    """As canceled, which is no fault."""
    client = home.connect()
    thread = threading.Thread(target=_gone, args=(client,))
    thread.start()
    assert wait_until(lambda: "msg=wait " in home.log())
    client.close()
    thread.join(PATIENCE_S)
    span = home.wait_span("Wait")

    assert (1, "UNSET") == (span["attributes"]["rpc.ttrpc.status_code"], span["status"]["status_code"])


def _gone(client: Client) -> None:
    with pytest.raises(ConnectionClosedError):
        ask(client, TaskRpcs.WAIT, id="c")


def test_spans_of_the_shims_own_are_the_calls_children(home: Traced, packages: Path) -> None:
    """Also after a coroutine has waited, inline or not; nothing is left of them for the next call."""
    for program in ["inner", *(["inline"] if "asyncio" in home.program else [])]:
        home.program = (*home.program[:2], program)
        home.spans_file.unlink(missing_ok=True)
        with home.connect() as client:
            for _ in range(2):
                ask(client, TaskRpcs.STATE, metadata=CALL)
            ask(client, TaskRpcs.STATE)
            assert wait_until(lambda: len(home.spans("State")) == 3)
        os.kill(home.daemons()[0], 15)
        assert home.has_ended()
        calls = {parts(span)[1]: parts(span) for span in home.spans("State")}
        inner = {parts(span)[1]: (span["name"], *parts(span)) for span in home.spans() if "inner " in span["name"]}
        innermost = [parts(span) for span in home.spans("innermost")]

        assert [SPAN, SPAN, None] == [parent for _, _, parent in calls.values()]
        assert ["inner v", "inner v", "inner None"] == [name for name, *_ in inner.values()]
        assert [*calls] == [parent for *_, parent in inner.values()]
        assert all(calls[str(parent)][0] == trace for _, trace, _, parent in inner.values())
        assert len(innermost) == (3 if "asyncio" in home.program else 0)
        assert all(inner[str(parent)][1] == trace for trace, _, parent in innermost)


def test_without_an_sdk_the_trace_is_carried_on(home: Traced) -> None:
    """The API alone records nothing, and hands on the caller's span."""
    home.environment["SPANS"] = ""
    with home.connect() as client:
        facts = facts_of(client, CALL)
        none = facts_of(client)["trace"]

    assert (CALL["traceparent"], None) == (facts["trace"], none)
    assert "shim.runtime.otel" in facts["modules"]
    assert "opentelemetry.sdk" not in facts["modules"]
