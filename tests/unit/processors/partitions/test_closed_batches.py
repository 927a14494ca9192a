"""Which batches processors call no more."""

import time

import pytest

from tidemill.configuration.settings import Settings
from tidemill.kafka.catalog import Catalog
from tidemill.processors.app import Processors
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.completed_lines import CompletedLines
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import Erasure

BATCH = f"batch_{1:032x}"


async def test_a_deleted_batch_is_closed_until_its_deletion_is_forgotten(tmp_path):
    """Then a batch of the same idempotency key may have its id."""
    settings = Settings(kafka="127.0.0.1:1", data=tmp_path)
    processors = Processors(settings, settings.cluster, Catalog(None))
    processors._erased(BATCH, codec.encode(Erasure(project="p", at=1)))
    processors._erased(f"{BATCH}/key", None)
    assert BATCH in processors._closed
    processors._erased(BATCH, None)
    assert BATCH not in processors._closed


def test_the_batch_closed_first_is_forgotten_first():
    """The number of batches has a bound."""
    closed = ClosedBatches(batches_max=2)
    for batch in "abac":
        closed.close(batch)
    assert [batch in closed for batch in "abc"] == [False, True, True]


@pytest.mark.parametrize(
    ("remembered", "add"),
    [
        pytest.param(ClosedBatches, lambda closed, batch: closed.close(batch), id="closed batches"),
        pytest.param(CompletedLines, lambda completed, batch: completed.mark(batch, 0), id="completed lines"),
    ],
)
def test_a_batch_costs_the_same_once_the_memory_is_full(remembered, add):
    """The first key of a plain dict is found behind all keys that were deleted before it: 30 times the cost."""
    most = 44_000
    full = remembered(batches_max=most)
    names = [f"batch_{number}" for number in range(2 * most)]
    seconds = []
    for part in (names[:most], names[most:]):
        began = time.process_time()
        for name in part:
            add(full, name)
        seconds.append(time.process_time() - began)
    assert seconds[1] < 8 * seconds[0]
