"""Waiting lines take little more than their bytes, and all batches of a process share one bound."""

import dataclasses
import itertools
import tracemalloc

from support import result_files
from support.facts import batch_id
from support.simulated import Simulation

from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.results.files import part_writer
from tidemill.results.files.compaction import write_part
from tidemill.results.state.active_batch import ActiveBatch
from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.results.state.reducer import State
from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.resources.batch import Status
from tidemill.storage.directory import DirectoryStore

LINES, RECORD_LINES, LINE_BYTES = 20_000, 50, 400
TOTAL = 40


async def test_a_waiting_line_takes_little_more_than_its_bytes(tmp_path):
    """With objects for each line, it took twice its bytes; a part goes to the store in pieces, not as a copy."""
    store = DirectoryStore(tmp_path)
    active = ActiveBatch(state=State(id=batch_id(0), partition=0), bitmap=LineBitmap())
    tracemalloc.start()
    try:
        for first in range(0, LINES, RECORD_LINES):
            # Never in order, and each with numbers of its own.
            indices = [(first + 7 * place) % LINES for place in range(RECORD_LINES)]
            marks = [LineMark(index, LINE_BYTES, False, usage=(index, 0, 300 + index, 0)) for index in indices]
            active.add(marks, b"x" * (RECORD_LINES * LINE_BYTES), 0.0)
            del marks
        waiting, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        await write_part(store, batch_id(0), 0, active.output, failed=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert waiting < 1.3 * LINES * LINE_BYTES
    assert peak < 2 * LINES * LINE_BYTES


async def test_a_backlog_of_many_batches_has_the_bound_of_one(monkeypatch):
    """However many batches are at work, their lines share the bound of the process with its other partitions."""
    monkeypatch.setattr(part_writer, "WAITING_BYTES_MAX", 40_000)
    monkeypatch.setattr(part_writer, "SHARE_BYTES_MIN", 0)
    simulation = Simulation(1, part_bytes=1 << 20)
    simulation._limits = dataclasses.replace(simulation._limits, partitions=lambda: 4)
    streams = result_files.filled(simulation, TOTAL, *range(20))
    simulation.log.events += [event for some in itertools.zip_longest(*streams) for event in some if event]
    partition, gate = simulation.partition(), AckGate()
    await partition.load()
    most = at = 0
    while at < len(simulation.log.events):
        await simulation.handle(partition, gate, at)
        most = max(most, sum(active.waiting_bytes for active in partition.active_batches))
        at += 1
    assert 5_000 < most <= 10_000
    partition.abandon()
    await simulation.run(crashes_max=0)
    for number in range(20):
        result_files.check(simulation, number, TOTAL, Status.COMPLETED)
