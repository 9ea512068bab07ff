"""Trace context: from the metadata of a call to whoever works on it, log lines and child processes included.

Rule: a call without a `traceparent` costs one look at its metadata.  With opentelemetry-api installed each call is a
span of its own; without it the caller's span is handed on as it is.  Nothing of a call's trace may reach another call.
Of a method whose server streams only the call itself is traced, not what its generator does.
Spec: W3C Trace Context level 1; OpenTelemetry's environment variables as context carriers; contract 5.3.
"""

from __future__ import annotations

from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from shim.ttrpc.context import Deferred
from shim.ttrpc.status import Code, RpcError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shim.ttrpc.context import CallContext
    from shim.ttrpc.service import Handler, Interceptor

_HEX = frozenset("0123456789abcdef")
_WIDTHS = (2, 32, 16, 2)
_VARIABLES = ("TRACEPARENT", "TRACESTATE", "BAGGAGE")
_LONGEST = 8192  # what W3C asks to hand on of baggage at least; all of it has to fit into an environment


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
        values = zip(_VARIABLES, (self.traceparent, self.state, self.baggage), strict=True)
        return {name: value for name, value in values if value}


_CURRENT: ContextVar[Trace | None] = ContextVar("trace", default=None)


def current_trace() -> Trace | None:
    """Return the trace of the call that this thread or task works on, or None."""
    return _CURRENT.get()


def traced_environment(environment: Mapping[str, str]) -> Mapping[str, str]:
    """Return an environment with the current trace, if there is one, in the place of the one it has."""
    trace = _CURRENT.get()
    if trace is None:
        return environment
    others = {name: value for name, value in environment.items() if name not in _VARIABLES}
    return others | trace.environment()


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
    # We write version 00, where only this bit of a later version's means the same.
    flags = parts[3] if parts[0] == "00" else f"{int(parts[3], 16) & 1:02x}"
    return Trace(parts[1], parts[2], flags, _fit(state), _fit(baggage))


def _fit(text: str) -> str:
    """Return what may stand in an environment, or nothing: a caller's list must not keep a child from starting."""
    return text if text.isascii() and text.isprintable() and len(text) <= _LONGEST else ""


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
        return _Traced(span, context, result if hasattr(result, "send") else _coroutine(result))
    if isinstance(result, Deferred):
        context.on_cancel(lambda: span.end(result.error if result.is_done else _given_up(context)))
    else:
        span.end(None)
    return result


def _given_up(context: CallContext) -> RpcError:
    if context.remaining() == 0:
        return RpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
    return RpcError(Code.CANCELED, "context canceled")


async def _coroutine(awaitable: Any) -> Any:
    return await awaitable


class _Traced:
    """A coroutine that runs in its span, each step of it in a context of its own.

    One that runs inline begins in the loop's context and goes on in a task's: in the first it would leave its trace to
    other calls, in the second it could not undo it.
    """

    def __init__(self, span: Span, call: CallContext, coroutine: Any) -> None:
        self._span: Span | None = span
        self._call = call
        self._coroutine = coroutine
        self._context = copy_context()
        self._context.run(span.attach)

    def __await__(self) -> Self:
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        return self._step(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._coroutine.throw, *error)

    def close(self) -> None:
        try:
            self._context.run(self._coroutine.close)
        finally:
            self._end(_given_up(self._call))

    def _step(self, step: Callable[..., Any], *values: Any) -> Any:
        try:
            return self._context.run(step, *values)
        except StopIteration:
            self._end(None)
            raise
        except BaseException as error:  # none that is no Exception is an answer: the coroutine has been cancelled
            self._end(error if isinstance(error, Exception) else _given_up(self._call))
            raise

    def _end(self, error: BaseException | None) -> None:
        span, self._span = self._span, None
        if span is not None:
            span.end(error)
