"""The consumer delivers records whatever the names of their headers."""

import struct

import pytest
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

import tidemill.kafka.connection  # noqa: F401  patches the consumer

NAMES = st.binary(max_size=12)
RECORDS = st.lists(
    st.tuples(
        st.none() | st.binary(max_size=8),
        st.none() | st.binary(max_size=20),
        st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=8)), max_size=3),
    ),
    min_size=1,
    max_size=6,
)


_ATTRIBUTES = 22
"""The place of the low byte of a batch's attributes."""
_CONTROL = 0x20


class _Name(str):
    """A name that is written as the bytes it stands for."""

    __slots__ = ("raw",)

    def encode(self, *_):
        return self.raw


def _named(raw):
    name = _Name("x")
    name.raw = raw
    return name


def _batch(found, compression):
    builder = _DefaultRecordBatchBuilderPy(
        magic=2, compression_type=compression, is_transactional=False, producer_id=-1, producer_epoch=-1,
        base_sequence=-1, batch_size=1 << 20,
    )  # fmt: skip
    for offset, (key, value, headers) in enumerate(found):
        builder.append(offset, 1, key, value, [(_named(name), content) for name, content in headers])
    return bytes(builder.build())


def _read(fetched, start=0):
    found = fetcher.PartitionRecords(
        TopicPartition("t", 0), fetcher.MemoryRecords(fetched), [], start, None, None, False, 0
    )
    return list(found)


@pytest.mark.parametrize("compression", [0, 1, 3, 4])
@given(found=RECORDS)
def test_all_records_are_delivered(compression, found):
    """In order and once, with unchanged keys, values and header values."""
    read = _read(_batch(found, compression))
    assert [record.offset for record in read] == list(range(len(found)))
    for record, (key, value, headers) in zip(read, found, strict=True):
        assert (record.key, record.value) == (key, value)
        assert list(record.headers) == [
            (name.decode("utf-8", "backslashreplace"), content) for name, content in headers
        ]


def _of_transaction(offset, *, is_marker=False):
    """A record of producer 7's transaction, or the marker that aborts it."""
    builder = _DefaultRecordBatchBuilderPy(
        magic=2, compression_type=0, is_transactional=True, producer_id=7, producer_epoch=0, base_sequence=0,
        batch_size=1 << 20,
    )  # fmt: skip
    builder.append(0, 1, bytes(4) if is_marker else b"k", b"v", [])
    batch = bytearray(builder.build())
    struct.pack_into(">q", batch, 0, offset)
    batch[_ATTRIBUTES] |= _CONTROL * is_marker
    return bytes(batch)


def test_aborted_records_are_not_delivered_beside_invalid_ones():
    """Decoding the fetched batches again begins with the transactions that are aborted there."""
    bad = bytearray(_batch([(b"a", b"", [(b"\xff", b"")])], 0))
    struct.pack_into(">q", bad, 0, 3)
    good = bytearray(_batch([(b"b", b"", [])], 0))
    struct.pack_into(">q", good, 0, 6)
    first = _of_transaction(0) + _of_transaction(1, is_marker=True) + _of_transaction(2)
    last = _of_transaction(4) + _of_transaction(5, is_marker=True)
    found = fetcher.PartitionRecords(
        TopicPartition("t", 0), fetcher.MemoryRecords(first + bytes(bad) + last + bytes(good)), [(7, 0), (7, 2)],
        0, None, None, False, fetcher.READ_COMMITTED,
    )  # fmt: skip
    assert [record.offset for record in found] == [3, 6]


@given(batches=st.lists(RECORDS, min_size=1, max_size=4), start=st.integers(0, 5))
def test_batches_before_it_are_not_delivered_again(batches, start):
    """A fetch may have many batches; records that were delivered before the invalid one are behind it."""
    # A broker sends no batch that ends before the offset that was asked for.
    fetched, offset, start = bytearray(), 0, start % len(batches[0])
    for found in batches:
        batch = bytearray(_batch(found, 0))
        # The checksum of a batch does not cover its first offset.
        struct.pack_into(">q", batch, 0, offset)
        fetched += batch
        offset += len(found)
    assert [record.offset for record in _read(bytes(fetched), start)] == list(range(start, offset))


def test_neighbours_of_an_invalid_record_are_delivered_once():
    """Also if the read starts inside the batch."""
    batch = _batch([(b"a", b"", []), (b"b", b"", [(b"\xff", b"")]), (b"c", b"", [("é".encode(), None)])], 0)
    assert [record.key for record in _read(batch * 2, 1)] == [b"b", b"c"]
    assert _read(batch, 2)[0].headers == (("é", None),)
