"""A record is enqueued at once only if no other process can have called its lines."""

import pytest

from tidemill.processors.partitions.assignment import Assignment, Record
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.window import PartitionWindow
from tidemill.schemas.log.codec import RequestHead

NOW = 1_790_000_000.0
BATCH = f"batch_{1:032x}"


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
    assignment.assign({"tp": PartitionWindow(Handle())}, NOW)
    return assignment


def record(assignment, offset, *, created, time=NOW + 5):
    head = RequestHead(batch_id=BATCH, project="p", first=0, deadline=1 << 33, url="/v1/x", created=created)
    entry = assignment.window("tp").admit(object(), 1, 1)
    return Record(tp="tp", offset=offset, time=time, entry=entry, head=head, texts=[b"x"],
        enqueue=lambda *record: assignment.enqueued.append(record),
    )  # fmt: skip


def test_a_new_record_of_a_new_batch_is_enqueued_at_once(assignment, enqueued):
    """No other process can have fetched it."""
    assignment.set_ends({"tp": 7})
    assert assignment.take(record(assignment, 7, created=int(NOW) + 1))
    assert enqueued
    assert not assignment.wanted()


@pytest.mark.parametrize("created", [int(NOW) - 100, None])
def test_a_new_record_of_an_older_batch_waits(assignment, enqueued, created):
    """Ingest may have published it before, and the previous owner may have called it."""
    assignment.set_ends({"tp": 7})
    assert not assignment.take(record(assignment, 9, created=created))
    assert assignment.wanted()[0] <= (created or NOW + 5)
    assignment.recovered(assignment.wanted())
    assert not assignment.release()
    assert enqueued


def test_a_record_from_before_the_assignment_waits(assignment, enqueued):
    """The previous owner may have called it, whatever the clocks say."""
    assignment.set_ends({"tp": 7})
    assert not assignment.take(record(assignment, 6, created=int(NOW) + 1))
    assert not enqueued


def test_all_records_wait_until_the_ends_are_known(assignment, enqueued):
    """The first records may arrive earlier."""
    assert not assignment.take(record(assignment, 9, created=int(NOW) + 1))
    assert not assignment.wanted()
    assignment.set_ends({"tp": 9})
    assert not assignment.release()
    assert enqueued


def test_held_records_are_forgotten_with_their_partition(assignment, enqueued):
    """Kafka delivers them to the next owner."""
    assignment.take(record(assignment, 0, created=None))
    assignment.leave()
    assert not assignment.release()
    assert not enqueued
    assert assignment.window("tp") is None
