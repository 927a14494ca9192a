"""The state of a stream fits into a record, and the buffers of all partitions have one bound."""

from support.largest import largest

from tidemill.ingest.streams.stream import BufferedBytes, State
from tidemill.schemas.bounds import RECORD_BYTES_EXTRA, RECORD_BYTES_MAX

NOT_YET = ("Batch.errors", "Extras.receipt", "Extras.output_file_ids", "Extras.reruns")
"""Its batch is in its first state."""


def test_the_largest_stream_fits():
    """With as many parts and journal entries as it may have."""
    assert largest(State, NOT_YET) + RECORD_BYTES_EXTRA < RECORD_BYTES_MAX


async def test_all_partitions_together_hold_a_bounded_number_of_bytes():
    """A partition flushes its lines if the others have many."""
    held, (one, two) = BufferedBytes(), (object(), object())
    assert held.now(one, 5) == 5
    assert held.now(two, 7) == 12
    assert held.now(one, 1) == 8
    held.forget(two)
    assert held.now(one, 1) == 1
