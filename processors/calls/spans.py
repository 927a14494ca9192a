"""Spans of calls, for a few lines of each batch whose trace is recorded (`schemas/traces.py`)."""

from typing import Final
from urllib.parse import urlsplit

from opentelemetry.trace import Span, SpanKind

from tidemill.processors.backends.backend import Backend
from tidemill.processors.calls.request_codec import Success
from tidemill.processors.failures import CallFailure
from tidemill.processors.lines import Line
from tidemill.schemas import traces
from tidemill.schemas.endpoints import ENDPOINTS, UNKNOWN
from tidemill.telemetry import tracing

CALLS_MAX: Final = 8
"""Calls of one line that have spans."""


def header(line: Line, backend: Backend, model: str, now: float) -> bytes:
    """The header line with the trace of a call; begins its span if the line has spans. `now` is the loop's time.

    The line must have a trace. Without a span the server gets the line's trace, flagged as not recorded.
    """
    given = line.head.traceparent
    assert given is not None
    if line.span is None and traces.is_sampled(given) and traces.has_spans(line.index):
        line.span = _begun(line, backend, model, given, now) if line.attempts <= CALLS_MAX else None
    context = traces.unsampled(given) if line.span is None else tracing.traceparent_of(line.span)
    return b"traceparent: %b\r\n" % (context or given).encode()


def end(line: Line, outcome: Success | CallFailure | None) -> None:
    """End the span of a line's call; None if it was aborted, or if its reply fits no line."""
    span, line.span = line.span, None
    if span is None:
        return
    status = None
    if isinstance(outcome, Success):
        status = outcome.answer.status
        if outcome.tokens is not None:
            span.set_attribute("gen_ai.usage.input_tokens", outcome.tokens[0])
            span.set_attribute("gen_ai.usage.output_tokens", outcome.tokens[2])
    elif outcome is None:
        tracing.failed(span, "aborted")
    else:
        status = outcome.status
        tracing.failed(span, str(status or outcome.kind.name.lower()))
    if status is not None:
        span.set_attribute("http.response.status_code", status)
    span.end()


def _begun(line: Line, backend: Backend, model: str, traceparent: str, now: float) -> Span:
    """The span of a call, after a span for the time that its line waited for the call."""
    first = line.attempts == 1
    place: tracing.Attributes = {
        tracing.BATCH_ID: line.head.batch_id,
        "tidemill.line.index": line.index,
        "http.request.resend_count": line.attempts - 1,
    }
    since = line.entries[0].published_at if first else line.since
    began = tracing.ago(now - line.began_at)
    waited = tracing.begin("wait", SpanKind.INTERNAL, traceparent, place, at=tracing.ago(now - since))
    waited.end(began)
    endpoint, server = ENDPOINTS.get(line.head.url, UNKNOWN), urlsplit(backend.base)
    operation = endpoint.operation or line.head.url.rpartition("/")[2]
    attributes: tracing.Attributes = {
        **place,
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "anthropic" if endpoint.is_anthropics else "openai",
        "gen_ai.request.model": model,
        "http.request.method": "POST",
        "server.address": server.hostname or "",
        "server.port": server.port or (443 if server.scheme == "https" else 80),
        "tidemill.server": backend.server.name,
    }
    return tracing.begin(f"{operation} {model}", SpanKind.CLIENT, traceparent, attributes, at=began)
