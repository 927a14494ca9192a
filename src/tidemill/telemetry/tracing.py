"""Spans of a batch through all stages, by OpenTelemetry's API; its SDK sends them if it is installed and set up.

The api decides at the creation of a batch whether its trace is recorded. The batch and its records carry that
decision with the context. Without an SDK this module only passes on the context of the caller.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any, Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tidemill import __version__
from tidemill.schemas import traces
from tidemill.schemas.resources.batch import Batch

BATCH_ID: Final = "tidemill.batch.id"
COUNT: Final = "messaging.batch.message_count"
ERROR_TYPE: Final = "error.type"
FLUSH_SECONDS_MAX: Final = 3.0
"""How long the end of a process waits for its last spans."""
EXTRA: Final = "pip install 'tidemill[otel]'"
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_tracer: Final = trace.get_tracer("tidemill", __version__)
_propagator: Final = TraceContextTextMapPropagator()
_log = logging.getLogger(__name__)

Attributes = dict[str, str | int | float]


def set_up(stage: str) -> Callable[[], None]:
    """Send spans where the variables `OTEL_…` say; returns a function that flushes the last ones, within a bound.

    A process without such variables, or with a tracer provider of another library, stays as it is.
    """
    exporter = os.environ.get("OTEL_TRACES_EXPORTER") or (
        "otlp" if any(map(os.environ.get, _ENDPOINTS)) else "none"
    )
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if exporter == "none" or is_disabled or not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return lambda: None
    try:
        provider, processor = _provider(stage, exporter)
    except ImportError as error:
        _log.warning("no traces are sent: %s is not installed (%s)", error.name, EXTRA)
        return lambda: None
    except (LookupError, ValueError) as error:
        _log.warning("no traces are sent: %s", str(error))
        return lambda: None
    trace.set_tracer_provider(provider)
    return lambda: processor.shutdown(timeout_millis=int(1000 * FLUSH_SECONDS_MAX))


def _provider(stage: str, exporter: str) -> tuple[Any, Any]:
    """A tracer provider and its span processor; the SDK reads all other options from variables."""
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  the extra may be missing
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    if exporter == "otlp":
        variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        protocol = next(filter(None, map(os.environ.get, variables)), "http/protobuf")
        exporter = f"otlp_proto_{protocol.partition('/')[0]}"
    found = metadata.entry_points(group="opentelemetry_traces_exporter", name=exporter)
    if not found:
        raise LookupError(f"there is no exporter {exporter}; install it, or set OTEL_EXPORTER_OTLP_PROTOCOL")
    named: Attributes = {"service.namespace": "tidemill", "service.version": __version__, "tidemill.stage": stage}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        named["service.name"] = f"tidemill-{stage}"
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    processor = BatchSpanProcessor(next(iter(found)).load()())
    provider.add_span_processor(processor)
    return provider, processor


def context_of(traceparent: str | None) -> Context:
    """The context that a batch or a request carries; an empty one for None."""
    return _propagator.extract({"traceparent": traceparent} if traceparent else {}, context=Context())


def traceparent_of(span: Span) -> str | None:
    """The context of a span as batches and records carry it; None without a trace."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, trace.set_span_in_context(span, Context()))
    return traces.parsed(carrier.get("traceparent"))


@contextmanager
def continued(traceparent: str | None) -> Iterator[None]:
    """Continue the trace of a caller in the block, unless the block is in a trace already."""
    if traceparent is None or trace.get_current_span().get_span_context().is_valid:
        yield
        return
    token = contexts.attach(context_of(traceparent))
    try:
        yield
    finally:
        contexts.detach(token)


@contextmanager
def span(name: str, kind: SpanKind, attributes: Attributes, *, parent: Context | None = None) -> Iterator[Span]:
    """A span of the block, in the current trace or in that of `parent`. Errors show their kind only.

    A root of a new trace has the empty context as `parent`.
    """
    with _tracer.start_as_current_span(
        name,
        context=parent,
        kind=kind,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as made:
        try:
            yield made
        except Exception as error:
            failed(made, type(error).__name__)
            raise


@contextmanager
def step(name: str, kind: SpanKind, batch: Batch, attributes: Attributes | None = None) -> Iterator[Span]:
    """A span of a batch; records nothing if the batch has no trace."""
    if (traceparent := batch.tidemill.traceparent) is None:
        yield trace.INVALID_SPAN
        return
    with span(name, kind, _of(batch, attributes), parent=context_of(traceparent)) as made:
        yield made


def past(name: str, kind: SpanKind, batch: Batch, attributes: Attributes, *, since: int) -> None:
    """A span of a batch that ends now and began at a Unix time in nanoseconds."""
    if (traceparent := batch.tidemill.traceparent) is not None:
        begin(name, kind, traceparent, _of(batch, attributes), at=since).end()


def _of(batch: Batch, attributes: Attributes | None) -> Attributes:
    return {BATCH_ID: batch.id, **(attributes or {})}


def begin(name: str, kind: SpanKind, traceparent: str, attributes: Attributes, *, at: int | None = None) -> Span:
    """Begin a span of a batch that the caller ends, now or at a Unix time in nanoseconds."""
    return _tracer.start_span(name, context_of(traceparent), kind, attributes, start_time=at)


def ago(seconds: float) -> int:
    """The Unix time this long ago, in nanoseconds."""
    return time.time_ns() - int(1e9 * max(0.0, seconds))


def failed(made: Span, kind: str) -> None:
    """Mark a span as failed; `kind` contains no text of users."""
    made.set_status(StatusCode.ERROR)
    made.set_attribute(ERROR_TYPE, kind)


def messaging(operation: str, kind: str, topic: str) -> Attributes:
    """The attributes of a span about a topic; the kind is `send` or `process` (OpenTelemetry for Kafka)."""
    return {
        "messaging.system": "kafka",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.destination.name": topic,
    }
