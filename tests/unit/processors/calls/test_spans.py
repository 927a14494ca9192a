"""Spans of calls: for few lines, bounded, and ended whatever becomes of the call."""

import re
from collections import Counter

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.dispatching import World, joinable
from support.waiting import until

from tidemill.processors.calls.spans import CALLS_MAX
from tidemill.schemas import ids, traces
from tidemill.telemetry import tracing

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def spans(monkeypatch):
    """The spans that ended."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    return kept.get_finished_spans


def sent(world):
    """How often each line's trace went to the server."""
    found = Counter()
    for lines, count in world.inference.names.items():
        if match := re.search(rb"traceparent: 00-(\w+)-(\w+)-(\w+)\r\n", lines):
            found[tuple(part.decode() for part in match.groups())] += count
    return found


@pytest.mark.parametrize("inputs", [1, 3])
async def test_few_lines_have_spans_of_few_calls(tmp_path, spans, inputs):
    """Failed calls too; the server gets the span of the call, and for other lines no sample."""
    world = World(tmp_path, faults=0.6, inputs_per_call=inputs)
    world.traceparent = f"00-{TRACE}-{PARENT}-01"
    world.line = joinable if inputs > 1 else world.line
    world.publish(ids.new_batch_id(), 0, 120)
    await world.finish()
    calls = Counter(span.attributes["tidemill.line.index"] for span in spans() if span.name != "wait")
    assert set(calls) <= {index for index in range(120) if traces.has_spans(index)}
    assert len(calls) >= (20 if inputs == 1 else 1)
    assert max(calls.values()) <= CALLS_MAX
    assert {span.parent.span_id for span in spans()} == {int(PARENT, 16)}
    assert any(not span.status.is_ok for span in spans())
    if inputs == 1:
        own = {(TRACE, f"{span.context.span_id:016x}", "01") for span in spans() if span.name != "wait"}
        assert set(sent(world)) == own | {(TRACE, PARENT, "00")}


async def test_an_aborted_call_ends_its_span(tmp_path, spans):
    """As a failed one."""
    world = World(tmp_path, grace=0.0)
    world.traceparent = f"00-{TRACE}-{PARENT}-01"
    world.inference.gate.clear()
    batch_id = ids.new_batch_id()
    world.publish(batch_id, 0, 4)
    await until(lambda: world.inference.in_flight == 4, "calls")
    world.end(batch_id)
    await world.finish()
    calls = [span for span in spans() if span.name != "wait"]
    assert [span.attributes["error.type"] for span in calls] == ["aborted"] * 4


async def test_a_batch_without_a_trace_has_no_spans_and_no_header(tmp_path, spans):
    """Nor does the server get one."""
    world = World(tmp_path)
    world.publish(ids.new_batch_id(), 0, 20)
    await world.finish()
    assert not spans()
    assert not sent(world)
