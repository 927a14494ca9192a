"""What is kept of a stream on its way to be a batch fits into a record."""

from support.largest import largest

from tidemill.ingest.streams.stream import BufferedBytes, State
from tidemill.schemas.bounds import RECORD_BYTES_EXTRA, RECORD_BYTES_MAX

NOT_YET = ("Batch.errors", "Extras.receipt", "Extras.output_file_ids", "Extras.reruns")
"""Its batch is in its first state."""


def test_the_largest_stream_fits():
    """With as many parts and records as it may have before it is sealed and flushed."""
    assert largest(State, NOT_YET) + RECORD_BYTES_EXTRA < RECORD_BYTES_MAX


async def test_all_partitions_together_hold_a_bounded_number_of_bytes():
    """One flushes what it has where the others have much."""
    held, (one, two) = BufferedBytes(), (object(), object())
    assert held.now(one, 5) == 5
    assert held.now(two, 7) == 12
    assert held.now(one, 1) == 8
    held.forget(two)
    assert held.now(one, 1) == 1
