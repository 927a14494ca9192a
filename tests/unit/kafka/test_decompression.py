"""Batches of records that are small on the wire and large in memory: consumers skip them, and nothing else."""

import gc
import tracemalloc
from importlib import import_module

import pytest
from aiokafka import codec
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.kafka import decompression, follower
from tidemill.kafka.decompression import BATCH_BYTES_MAX, DecompressionFailed
from tidemill.schemas.log import dead_letters

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
CODECS = {
    "gzip": (codec.gzip_encode, decompression.decompress_gzip),
    "snappy of Java": (codec.snappy_encode, decompression.decompress_snappy),
    "snappy": (lambda data: codec.snappy_encode(data, xerial_compatible=False), decompression.decompress_snappy),
    "lz4": (codec.lz4_encode, decompression.decompress_lz4),
    "zstd": (codec.zstd_encode, decompression.decompress_zstd),
}
assert follower.Follower, "whose module sets the bound"


@pytest.fixture(params=CODECS.values(), ids=CODECS)
def pair(request):
    """The compressor, and the decompressor with the bound."""
    compress, decompress = request.param
    return lambda data: bytes(compress(data)), decompress


def batch(offset, kind, values, *, size=None):
    """The bytes of a batch of records as a broker gives them out."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=kind, is_transactional=False, producer_id=-1, producer_epoch=-1,
        base_sequence=-1, batch_size=1 << 30,
    )  # fmt: skip
    for place, value in enumerate(values):
        builder.append(place, 1_000 + offset + place, b"k", value if size is None else value * size, [])
    return offset.to_bytes(8) + bytes(builder.build())[8:]


def read(fetched, offset=0):
    """The records as every consumer of a process gets them."""
    records = fetcher.PartitionRecords(
        TopicPartition("t", 3), fetcher.MemoryRecords(fetched), None, offset, None, None, True, 0
    )
    return [(found.offset, found.value, dict(found.headers)) for found in records], records.next_fetch_offset


def test_data_up_to_the_bound_is_decompressed(pair):
    """To the last byte."""
    compress, decompress = pair
    for data in (b"", b"x", b'{"a":1}\n' * 10_000, b"x" * BATCH_BYTES_MAX):
        assert decompress(compress(data)) == data


def test_data_beyond_the_bound_is_refused(pair):
    """However large it is."""
    compress, decompress = pair
    for size in (BATCH_BYTES_MAX + 1, 3 * BATCH_BYTES_MAX):
        with pytest.raises(DecompressionFailed, match="8388608 bytes"):
            decompress(compress(b"x" * size))


@pytest.mark.parametrize("kind", ["lz4", "zstd"])
def test_a_buffer_that_was_too_small_leaves_nothing_behind(kind):
    """Lines that are alike fill the first buffer; no larger one may wait for a garbage collection."""
    compress, decompress = CODECS[kind]
    packed = bytes(compress(b"".join(b'{"n":%d,"text":"%s"}\n' % (n, b"x" * 300) for n in range(1_000))))
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        size = max(len(decompress(packed)) for _ in range(5))
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert size > decompression.RATIO * len(packed)
    assert left < 100_000
    assert peak < 8 * size


@settings(deadline=None, max_examples=30)
@given(data=st.binary(max_size=64), cut=st.integers(1, 8))
def test_damaged_data_raises_one_kind_of_error(data, cut):
    """Any bytes give a result or `DecompressionFailed`."""
    for compress, decompress in CODECS.values():
        for given_bytes in (data, bytes(compress(data * 9))[:-cut]):
            try:
                decompress(given_bytes)
            except DecompressionFailed:
                continue


@pytest.mark.parametrize("kind", [GZIP, SNAPPY, LZ4, ZSTD])
def test_a_batch_beyond_the_bound_becomes_one_record(kind):
    """Its neighbours are unchanged and the position advances, also from an offset inside the batch."""
    fetched = batch(5, NONE, [b"a"]) + batch(6, kind, [b"x"] * 9, size=1 << 20) + batch(15, kind, [b"b", b"c"])
    for offset in (5, 6, 10):
        found, position = read(fetched, offset)
        (unread,) = [record for record in found if record[1] is None]
        assert [record[:2] for record in found if record != unread] == [(5, b"a")] * (offset == 5) + [
            (15, b"b"),
            (16, b"c"),
        ]
        assert (unread[0], position) == (14, 17)
        said = dead_letters.headers("t/3/14", list(unread[2].items()), key=None, stage="ingest", reason="no key")
        reason = dict(said)[dead_letters.REASON].decode()
        assert reason.startswith("the batch of records 6 to 14 is more than 8388608 bytes")


@settings(deadline=None, max_examples=20)
@given(kinds=st.lists(st.tuples(st.sampled_from([NONE, GZIP, LZ4, ZSTD]), st.booleans()), max_size=4))
def test_any_sequence_of_batches(kinds):
    """The consumer gets each record once and in order, or one record for its batch."""
    fetched, expected, offset = b"", [], 0
    for kind, is_large in kinds:
        is_bomb = is_large and kind != NONE
        fetched += batch(offset, kind, [b"x", b"y"], size=5 << 20 if is_bomb else 1)
        expected += [(offset + 1, None)] if is_bomb else [(offset, b"x"), (offset + 1, b"y")]
        offset += 2
    found, position = read(fetched)
    assert [record[:2] for record in found] == expected
    assert position == offset


def test_producers_compress_fast():
    """At the cheapest level, with both of aiokafka's implementations."""
    content = b"".join(b'{"custom_id": "%d"}\n' % number for number in range(2_000))
    fast, slow = codec.lz4_encode(content, decompression.LZ4_LEVEL), codec.lz4_encode(content)
    assert len(slow) < len(fast) < len(content)
    for name in decompression._MODULES:
        assert import_module(name).lz4_encode(content) == fast
    assert decompression.decompress_lz4(fast) == content
