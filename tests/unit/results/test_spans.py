"""Spans of a batch in results: its trace has a fold and a finalization, whichever process ends it."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.facts import commands, lines
from support.simulated import Simulation

from tidemill.results.spans import FOLD
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import BatchCreated
from tidemill.schemas.resources.batch import Extras
from tidemill.telemetry import tracing

TOTAL = 40
TRACE, PARENT = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7


class TracedLives(Simulation):
    """A simulation that looks at the spans of each process; `ends` counts those that wrote files."""

    def __init__(self, seed, part_bytes, monkeypatch):
        super().__init__(seed, part_bytes=part_bytes)
        self._kept = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
        self.ends = 0

    async def _life(self):
        self._kept.clear()
        try:
            await super()._life()
        finally:
            spans = self._kept.get_finished_spans()
            assert {(span.context.trace_id, span.parent.span_id) for span in spans} <= {(TRACE, PARENT)}
            assert all(span.start_time <= span.end_time for span in spans)
            names = [span.name for span in spans]
            assert names in ([], [FOLD, *["finalize"] * (len(names) - 1)])
            self.ends += len(names) > 1


def traced(events):
    """The creation of a batch whose trace is recorded, and what follows it."""
    (topic, headers, value), *others = events
    created = codec.decoder(BatchCreated)(value)
    fields = Extras(traceparent=f"00-{TRACE:032x}-{PARENT:016x}-01")
    batch = created.batch.model_copy(update={"tidemill": fields})
    return [(topic, headers, codec.encode(created.model_copy(update={"batch": batch}))), *others]


@pytest.mark.parametrize("part_bytes", [2_000, 1 << 20], ids=["by parts", "from memory"])
@pytest.mark.parametrize("seed", range(60))
async def test_who_writes_the_files_ends_the_fold(seed, part_bytes, monkeypatch):
    """Wherever owners crash, and even if a former one folded all lines, or lines come before the batch."""
    simulation = TracedLives(seed, part_bytes, monkeypatch)
    created, accepted = traced(commands(0, TOTAL))
    simulation.log.events.append(accepted)
    simulation.log.events += [*lines(simulation.chance, 0, TOTAL)]
    simulation.log.events.insert(simulation.chance.randrange(len(simulation.log.events)), created)
    await simulation.run(crashes_max=simulation.chance.randint(0, 6))
    assert simulation.ends
