"""Whose past is known: a record is called at once only where nobody can have worked on its lines before."""

import pytest

from tidemill.processors.partitions.assignment import Assignment, Record
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.window import PartitionWindow
from tidemill.schemas.log.codec import RequestHead

NOW = 1_790_000_000.0
BATCH = f"batch_{1:032x}"


class Tap:
    def ack(self, token):
        raise AssertionError(token)

    def pause(self): ...

    def resume(self): ...


@pytest.fixture
def taken():
    return []


@pytest.fixture
def seats(taken):
    made = Assignment(
        ClosedBatches(), lambda *record: taken.append(record), lambda batch_id: len(batch_id) - len(BATCH)
    )
    made.assign({"tp": PartitionWindow(Tap())}, NOW)
    return made


def record(seats, offset, *, created, time=NOW + 5):
    head = RequestHead(batch_id=BATCH, project="p", first=0, deadline=1 << 33, url="/v1/x", created=created)
    entry = seats.lane("tp").admit(object(), 1, 1)
    return Record(tp="tp", offset=offset, time=time, entry=entry, head=head, texts=[b"x"])


def test_a_new_record_of_a_new_batch_is_called_at_once(seats, taken):
    """Nobody can have seen it."""
    seats.end({"tp": 7})
    assert seats.take(record(seats, 7, created=int(NOW) + 1))
    assert taken
    assert not seats.wanted()


@pytest.mark.parametrize("created", [int(NOW) - 100, None])
def test_a_new_record_of_an_older_batch_waits(seats, taken, created):
    """Ingest may have published it before, and our predecessor may have called it."""
    seats.end({"tp": 7})
    assert not seats.take(record(seats, 9, created=created))
    assert seats.wanted()[0] <= (created or NOW + 5)
    seats.read(seats.wanted())
    assert not seats.release()
    assert taken


def test_a_record_from_before_waits(seats, taken):
    """The owner before may have called it, whatever the clocks say."""
    seats.end({"tp": 7})
    assert not seats.take(record(seats, 6, created=int(NOW) + 1))
    assert not taken


def test_without_the_end_nothing_is_known(seats, taken):
    """The first records may come before the end has been asked for."""
    assert not seats.take(record(seats, 9, created=int(NOW) + 1))
    assert not seats.wanted()
    seats.end({"tp": 9})
    assert not seats.release()
    assert taken


def test_what_is_held_is_forgotten_with_its_partition(seats, taken):
    """It comes again to the next owner."""
    seats.take(record(seats, 0, created=None))
    seats.leave()
    assert not seats.release()
    assert not taken
    assert seats.lane("tp") is None
