"""Trace context: from the metadata of a call to whoever works on it, log lines and child processes included.

Rule: a call without a `traceparent` costs one look at its metadata.  With opentelemetry-api installed each call is a
span of its own; without it the caller's span is handed on as it is.
Spec: W3C Trace Context level 1; OpenTelemetry's environment variables as context carriers; contract 5.3.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from shim.ttrpc.context import Deferred

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shim.ttrpc.context import CallContext
    from shim.ttrpc.service import Handler, Interceptor

_HEX = frozenset("0123456789abcdef")
_WIDTHS = (2, 32, 16, 2)


class Trace(NamedTuple):
    """Where in a trace a call stands: `traceparent`'s parts in lower-case hex, and what came with them."""

    trace_id: str
    span_id: str
    flags: str = "00"
    state: str = ""
    baggage: str = ""

    @property
    def traceparent(self) -> str:
        """The value of the W3C header."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"

    def environment(self) -> dict[str, str]:
        """Return the variables by which child processes find the trace."""
        values = {"TRACEPARENT": self.traceparent, "TRACESTATE": self.state, "BAGGAGE": self.baggage}
        return {name: value for name, value in values.items() if value}


_CURRENT: ContextVar[Trace | None] = ContextVar("trace", default=None)


def current_trace() -> Trace | None:
    """Return the trace of the call that this thread or task works on, or None."""
    return _CURRENT.get()


def child_environment() -> Mapping[str, str]:
    """Return what the environment of a child process has of the current trace."""
    trace = _CURRENT.get()
    return {} if trace is None else trace.environment()


def parse_traceparent(text: str, state: str = "", baggage: str = "") -> Trace | None:
    """Return what a `traceparent` says, or None if it is none; later versions may have more parts than 00."""
    parts = text.strip().split("-")
    if len(parts) < 4 or (parts[0] == "00" and len(parts) != 4) or parts[0] == "ff":
        return None
    for part, width in zip(parts, _WIDTHS, strict=False):
        if len(part) != width or not _HEX.issuperset(part):
            return None
    if not parts[1].strip("0") or not parts[2].strip("0"):
        return None
    return Trace(parts[1], parts[2], parts[3], state, baggage)


def trace_of(context: CallContext) -> Trace | None:
    """Return the trace that a caller sent with a call, or None."""
    if not context.metadata:
        return None
    parents = context.values("traceparent")
    if not parents:
        return None
    return parse_traceparent(parents[0], ",".join(context.values("tracestate")), ",".join(context.values("baggage")))


class Span:
    """One call's part in a trace: made current around its work, then ended.  This one only hands the caller's on."""

    def __init__(self, trace: Trace | None) -> None:
        self.trace = trace

    def attach(self) -> Any:
        """Make this the current trace of the thread or task, and return what undoes it."""
        return _CURRENT.set(self.trace)

    def detach(self, token: Any) -> None:
        """Undo `attach`."""
        _CURRENT.reset(token)

    def end(self, error: BaseException | None) -> None:
        """The call has been answered: well, or with an error."""


def interceptor() -> Interceptor:
    """Return what stands around each call of a shim's server."""
    try:
        from shim.runtime.otel import OtelSpan
    except ImportError:  # opentelemetry-api is not there
        return _continue_trace

    def intercept(context: CallContext, request: Any, handler: Handler) -> Any:
        return _work_in(OtelSpan(context), context, request, handler)

    return intercept


def _continue_trace(context: CallContext, request: Any, handler: Handler) -> Any:
    trace = trace_of(context)
    if trace is None:
        return handler(context, request)
    return _work_in(Span(trace), context, request, handler)


def _work_in(span: Span, context: CallContext, request: Any, handler: Handler) -> Any:
    """Run a handler in its span, which ends with the answer: a coroutine takes it along, a `Deferred` ends it later."""
    token = span.attach()
    try:
        result = handler(context, request)
    except BaseException as error:
        span.end(error)
        raise
    finally:
        span.detach(token)
    if hasattr(result, "__await__"):
        return _await_in(span, result)
    if isinstance(result, Deferred):
        result.on_done(lambda deferred: span.end(deferred.error))
    else:
        span.end(None)
    return result


async def _await_in(span: Span, coroutine: Any) -> Any:
    token = span.attach()
    try:
        result = await coroutine
    except BaseException as error:
        span.end(error)
        raise
    finally:
        span.detach(token)
    span.end(None)
    return result
