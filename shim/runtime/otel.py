"""A span of OpenTelemetry's for each call; loaded only where opentelemetry-api is installed.

Rule: names and attributes as otelttrpc, containerd's own, has them.  Which exporter sees the spans is the author's
choice: without an SDK these spans record nothing and only carry the trace on.  The place to set one up is `preload`,
where OTEL_SERVICE_NAME is the daemon's and threads are its own; a daemon ends without Python's atexit, so what batches
wants `daemon.on_shutdown(provider.shutdown)`.
"""

from __future__ import annotations

from typing import Any, Final

from opentelemetry import context as otel_context  # type: ignore[import-not-found]
from opentelemetry import propagate
from opentelemetry import trace as otel_trace

from shim import __version__
from shim.runtime.tracing import Span, Trace
from shim.ttrpc.context import CallContext
from shim.ttrpc.status import Code, status_of

# The answers that say that this side failed; the others are the caller's business.
_FAULTS: Final = frozenset(
    {
        Code.UNKNOWN,
        Code.DEADLINE_EXCEEDED,
        Code.UNIMPLEMENTED,
        Code.INTERNAL,
        Code.UNAVAILABLE,
        Code.DATA_LOSS,
    }
)

_tracer = otel_trace.get_tracer("containerd-shim", __version__)


class OtelSpan(Span):
    """A server's span, child of the caller's."""

    def __init__(self, context: CallContext) -> None:
        carrier: dict[str, str] = {}
        for key, value in context.metadata:
            carrier.setdefault(key.lower(), value)
        parent = propagate.extract(carrier)
        service, _, method = context.method.partition("/")
        attributes = {"rpc.system": "ttrpc", "rpc.service": service, "rpc.method": method}
        self._span = _tracer.start_span(context.method, parent, kind=otel_trace.SpanKind.SERVER, attributes=attributes)
        self._context = otel_trace.set_span_in_context(self._span, parent)
        super().__init__(self._trace(carrier))

    def _trace(self, carrier: dict[str, str]) -> Trace | None:
        own = self._span.get_span_context()
        if not own.is_valid:
            return None
        return Trace(
            f"{own.trace_id:032x}",
            f"{own.span_id:016x}",
            f"{int(own.trace_flags):02x}",
            own.trace_state.to_header(),
            carrier.get("baggage", ""),
        )

    def attach(self) -> Any:
        """Make this the current span for OpenTelemetry too."""
        return otel_context.attach(self._context), super().attach()

    def detach(self, token: Any) -> None:
        """Undo `attach`."""
        otel_token, own_token = token
        super().detach(own_token)
        otel_context.detach(otel_token)

    def end(self, error: BaseException | None) -> None:
        """Record how the call was answered, and end the span."""
        code, message = (int(Code.OK), "") if error is None else status_of(error)
        self._span.set_attribute("rpc.ttrpc.status_code", int(code))
        if error is not None:
            self._span.record_exception(error)
        if code in _FAULTS:
            self._span.set_status(otel_trace.Status(otel_trace.StatusCode.ERROR, message))
        self._span.end()
