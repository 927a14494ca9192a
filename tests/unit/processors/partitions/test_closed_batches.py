"""Which batches processors call no more."""

import json
import time

import pytest
from support.dependencies import batch_of

from tidemill.configuration.settings import Settings
from tidemill.kafka.catalog import Catalog
from tidemill.processors.app import Processors
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.completed_lines import CompletedLines
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import BatchRecord, Erasure
from tidemill.schemas.resources.batch import Extras, ModelShare, RequestCounts, Status

BATCH = f"batch_{1:032x}"


@pytest.fixture
async def processors(tmp_path):
    """The stage, without a broker."""
    settings = Settings(kafka="127.0.0.1:1", data=tmp_path)
    return Processors(settings, settings.cluster, Catalog(None))


def record(batch_id, **fields):
    """A record of a batch with a field that processors do not need, and which only a full decoder refuses."""
    decoded = json.loads(codec.encode(BatchRecord(project="p", batch=batch_of(batch_id, **fields))))
    decoded["batch"]["created_at"] = "not a time"
    return json.dumps(decoded).encode()


class TopicOffsets:
    """The offsets of a topic with a record each day, the last one now."""

    def __init__(self, days):
        self._days = days

    async def since(self, places, at):
        age_days = (time.time() - at) / 86_400
        return {place: max(0, self._days - int(age_days)) for place in places}


async def test_a_start_skips_batches_whose_deadline_has_passed(processors):
    """It does not take longer after a year: no line is called after its deadline, of whatever batch."""
    processors._offsets = TopicOffsets(days=365)
    assert await processors._first_recent() == 365 - 8
    with pytest.raises(ValueError, match="longer than the 7 days"):
        Settings(windows={"169h": 0.5})
    processors._offsets = TopicOffsets(days=3)
    assert await processors._first_recent() == 0


async def test_a_record_is_decoded_only_in_part(processors):
    """A process reads all batches at its start: a full decoding takes 8 to 20 times the CPU."""
    one, several, ended = (f"batch_{number:032x}" for number in range(3))
    counts = RequestCounts(total=1, completed=0, failed=0)
    shares = tuple(ModelShare(model=model, request_counts=counts) for model in ("b", "c"))
    extras = Extras(models=shares)
    processors._apply(one, record(one, model="a", status=Status.IN_PROGRESS), 0)
    processors._apply(several, record(several, status=Status.IN_PROGRESS, tidemill=extras), 1)
    processors._apply(ended, record(ended, model="d", status=Status.COMPLETED), 2)
    assert [batch_id in processors._closed for batch_id in (one, several, ended)] == [False, False, True]
    assert set(processors._models.open_batches) == {"a", "b", "c"}


async def test_a_record_of_another_version_is_skipped(processors, caplog):
    """The log says so."""
    processors._apply(BATCH, record(BATCH, status=Status.COMPLETED).replace(b'"v": 1', b'"v": 2'), 7)
    assert BATCH not in processors._closed
    assert "at 7 cannot be read" in caplog.text


async def test_a_deleted_batch_is_closed_until_its_deletion_is_forgotten(processors):
    """Then a batch of the same idempotency key may have its id."""
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
