"""A record is enqueued at once only if no other process can have called its lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.partitions.assignment import Assignment, PlacedRecord
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.window import PartitionWindow
from tidemill.schemas.bounds import CLOCK_SKEW_SECONDS
from tidemill.schemas.log.codec import RequestHead

NOW = 1_790_000_000.0
BATCH = f"batch_{1:032x}"


records = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1e6)), max_size=20)


class Handle:
    def ack(self, token):
        raise AssertionError(token)

    def pause(self): ...

    def resume(self): ...


@pytest.fixture
def enqueued():
    return []


@pytest.fixture
def assignment(enqueued):
    assignment = Assignment(ClosedBatches(), lambda batch_id: len(batch_id) - len(BATCH))
    assignment.enqueued = enqueued
    begin(assignment)
    return assignment


def begin(assignment):
    assignment.assign(NOW)
    assignment.add({"tp": PartitionWindow(Handle())}, {"tp": 7})


def record(assignment, offset, *, created, time=NOW + 5, partition=0, tp="tp"):
    head = RequestHead(
        batch_id=BATCH + partition * "0", project="p", first=0, deadline=1 << 33, url="/v1/x", created=created
    )
    entry = assignment.window(tp).admit(object(), 1, 1)
    return PlacedRecord(tp=tp, offset=offset, time=time, entry=entry, head=head, texts=[b"x"],
        enqueue=lambda *record: assignment.enqueued.append(record),
    )  # fmt: skip


def test_a_new_record_of_a_new_batch_is_enqueued_at_once(assignment, enqueued):
    """No other process can have fetched it."""
    assert assignment.take(record(assignment, 7, created=int(NOW) + 1))
    assert enqueued
    assert not assignment.wanted()


@pytest.mark.parametrize("created", [int(NOW) - 100, None])
def test_a_new_record_of_an_older_batch_waits(assignment, enqueued, created):
    """Ingest may have published it before, and the previous owner may have called it."""
    assert not assignment.take(record(assignment, 9, created=created))
    assert assignment.wanted()[0] <= (created or NOW + 5)
    assignment.recovered(assignment.wanted(), assignment.handovers)
    assert not assignment.release()
    assert enqueued


def test_a_record_from_before_the_assignment_waits(assignment, enqueued):
    """The previous owner may have called it, whatever the clocks say."""
    assert not assignment.take(record(assignment, 6, created=int(NOW) + 1))
    assert not enqueued


def test_held_records_are_forgotten_with_their_partition(assignment, enqueued):
    """Kafka delivers them to the next owner."""
    assignment.take(record(assignment, 0, created=None))
    assignment.leave()
    assert not assignment.release()
    assert not enqueued
    assert assignment.window("tp") is None


@given(records, records)
def test_a_record_is_known_once_outcomes_since_its_time_are_read(before, after):
    """A later record may need older outcomes."""
    assignment = Assignment(ClosedBatches(), lambda batch_id: len(batch_id) - len(BATCH))
    assignment.enqueued = []
    begin(assignment)
    read: dict[int, float] = {}
    for asked in (before, after):
        for partition, time in asked:
            known = assignment.take(record(assignment, 0, created=None, time=time, partition=partition))
            assert known == (partition in read and read[partition] <= time - CLOCK_SKEW_SECONDS)
        wanted = assignment.wanted()
        for partition, since in wanted.items():
            read[partition] = min(since, read.get(partition, since))
        assignment.recovered(wanted, assignment.handovers)
        assert assignment.wanted() == {}
        assert not assignment.release()
    assert len(assignment.enqueued) == len(before) + len(after)


def test_an_older_record_that_arrives_while_reading_stays_wanted(assignment):
    """It needs older outcomes than those that were read."""
    assert not assignment.take(record(assignment, 0, created=None, time=1000.0))
    wanted = assignment.wanted()
    assert not assignment.take(record(assignment, 0, created=None, time=500.0))
    assignment.recovered(wanted, assignment.handovers)
    assert assignment.wanted() == {0: 500.0 - CLOCK_SKEW_SECONDS}


def test_a_new_assignment_forgets_what_was_read(assignment):
    """Other processes may have called lines of the partitions."""
    assignment.take(record(assignment, 0, created=None))
    assignment.recovered(assignment.wanted(), assignment.handovers)
    begin(assignment)
    assert not assignment.take(record(assignment, 0, created=None))


def test_a_hand_over_delays_no_other_partition(assignment, enqueued):
    """What was read before it, or is being read, lacks outcomes for the partition that is handed over alone."""
    assert not assignment.take(record(assignment, 0, created=None))
    wanted, handovers = assignment.wanted(), assignment.handovers
    assignment.hand_over()
    assignment.add({"late": PartitionWindow(Handle())}, {"late": 7})
    assert not assignment.take(record(assignment, 0, created=None, tp="late"))
    assignment.recovered(wanted, handovers)
    assert assignment.release()
    assert len(enqueued) == 1
    assert assignment.take(record(assignment, 1, created=None))
    assignment.recovered(assignment.wanted(), assignment.handovers)
    assert not assignment.release()
    assert len(enqueued) == 3
