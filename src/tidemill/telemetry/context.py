"""The ids that every log line of a piece of work has: those of its batch, of its request, and of its trace."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Final

from opentelemetry import trace

_NONE: Final[Mapping[str, str]] = MappingProxyType({})
_bound: Final[ContextVar[Mapping[str, str]]] = ContextVar("tidemill_ids", default=_NONE)


@contextmanager
def bound(**given: str) -> Iterator[None]:
    """Add these ids to the log lines of the block and of the tasks that it starts; empty ids are ignored."""
    token = _bound.set({**_bound.get(), **{name: value for name, value in given.items() if value}})
    try:
        yield
    finally:
        _bound.reset(token)


def ids() -> dict[str, str]:
    """The ids of the current work: `batch_id`, `request_id` and `trace_id`, as far as they are known."""
    found = dict(_bound.get())
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        found["trace_id"] = trace.format_trace_id(span.trace_id)
    return found
