"""The shims of shims.py and aio_shims.py with OpenTelemetry: `python -m tests.runtime.otel_shims STYLE NAME ARGUMENTS`.

Each span is a line of JSON in the file SPANS.  Where SPANS is not set there is no SDK, only the API.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence

from opentelemetry import baggage, trace  # type: ignore[import-not-found]

import shim
from shim import aio
from shim.api import StateRequest, StateResponse
from tests.runtime import aio_shims, shims


def write(spans: Sequence[object]) -> None:
    """Write what has ended."""
    with open(os.environ["SPANS"], "a") as file:
        for span in spans:
            file.write(json.dumps(json.loads(span.to_json(indent=None))) + "\n")  # type: ignore[attr-defined]


def set_up() -> None:
    """Install an SDK whose exporter is the file."""
    from opentelemetry.sdk.trace import TracerProvider  # type: ignore[import-not-found]
    from opentelemetry.sdk.trace.export import (  # type: ignore[import-not-found]
        SimpleSpanProcessor,
        SpanExporter,
        SpanExportResult,
    )

    class Exporter(SpanExporter):  # type: ignore[misc]
        def export(self, spans: Sequence[object]) -> object:
            write(spans)
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Exporter()))
    trace.set_tracer_provider(provider)


class Inner(shims.Plain):
    """Makes a span of its own."""

    def state(self, context: shim.CallContext, request: StateRequest, /) -> StateResponse:
        """Tell of the caller's baggage by the span's name."""
        with trace.get_tracer("test").start_as_current_span(f"inner {baggage.get_baggage('k')}"):
            return StateResponse()


class AsyncInner(aio_shims.Plain):
    """Makes a span of its own."""

    async def state(self, context: shim.CallContext, request: StateRequest, /) -> StateResponse:
        """Tell of the caller's baggage by the span's name, after it has waited."""
        with trace.get_tracer("test").start_as_current_span(f"inner {baggage.get_baggage('k')}"):
            await asyncio.sleep(0.001)
            with trace.get_tracer("test").start_as_current_span("innermost"):
                await asyncio.sleep(0.001)
        return StateResponse()


class AsyncInline(AsyncInner):
    """The same, without a task until it waits."""

    inline = frozenset({"State"})


class Prepared:
    """Sets up OpenTelemetry where its name and its threads are the daemon's."""

    def preload(self) -> None:
        """Install the SDK."""
        if os.environ.get("SPANS"):
            set_up()


if __name__ == "__main__":
    shims.use_own_sockets()
    style, name = sys.argv.pop(1), sys.argv.pop(1)
    if style == "blocking":
        blocking = {**shims.SHIMS, "inner": Inner}[name]
        shim.run("io.containerd.test.v1", type(blocking.__name__, (Prepared, blocking), {}))
    else:
        waiting = {**aio_shims.SHIMS, "inner": AsyncInner, "inline": AsyncInline}[name]
        aio.run("io.containerd.test.v1", type(waiting.__name__, (Prepared, waiting), {}))
