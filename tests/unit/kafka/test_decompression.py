"""Batches of records that are small on the wire and large in memory: consumers skip what is beyond the bounds."""

import gc
import struct
import tracemalloc
from importlib import import_module

import pytest
from aiokafka import codec
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c, encode_varint
from aiokafka.structs import TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.kafka import decompression, follower
from tidemill.kafka.decompression import BATCH_BYTES_MAX, DecompressionFailed
from tidemill.kafka.records import HEADERS_MAX
from tidemill.schemas.log import dead_letters

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
COMPRESSED = [GZIP, SNAPPY, LZ4, ZSTD]
CODECS = {
    "gzip": (codec.gzip_encode, decompression.decompress_gzip),
    "snappy of Java": (codec.snappy_encode, decompression.decompress_snappy),
    "snappy": (lambda data: codec.snappy_encode(data, xerial_compatible=False), decompression.decompress_snappy),
    "lz4": (codec.lz4_encode, decompression.decompress_lz4),
    "zstd": (codec.zstd_encode, decompression.decompress_zstd),
}
ENCODERS = [bytes, codec.gzip_encode, codec.snappy_encode, codec.lz4_encode, codec.zstd_encode]
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


def with_headers(offset, kind, heads):
    """A batch of records with these numbers of short headers, and with the first bytes of their headers."""
    content = b""
    for place, (count, first) in enumerate(heads):
        body = b"\0\0" + varint(place) + varint(1) + b"k" + varint(1) + b"v" + varint(count)
        body += first + b"\0\0" * (count - (1 if first else 0))
        content += varint(len(body)) + body
    packed = bytes(ENCODERS[kind](content))
    last = len(heads) - 1
    rest = struct.pack(">hiqqqhii", kind, last, 1_000, 1_000 + last, -1, -1, -1, len(heads)) + packed
    return struct.pack(">qiibI", offset, len(rest) + 9, 0, 2, calc_crc32c(rest)) + rest


def varint(number):
    """As records have it."""
    found = bytearray()
    encode_varint(number, found.append)
    return bytes(found)


def opened(fetched, offset=0):
    """The records as every consumer of a process gets them."""
    return fetcher.PartitionRecords(
        TopicPartition("t", 3), fetcher.MemoryRecords(fetched), None, offset, None, None, True, 0
    )


def read(fetched, offset=0):
    """The offsets, values and headers of all records, and the next position."""
    records = opened(fetched, offset)
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


@pytest.mark.parametrize("kind", COMPRESSED)
def test_a_large_batch_delivers_its_records(kind):
    """Those of Java are large: it fills a batch by the estimated size after compression. Memory stays bounded."""
    values = [b'{"custom_id":"%d","text":"%s"}' % (number, b"shared prompt " * 300) for number in range(5_120)]
    fetched = batch(5, NONE, [b"a"]) + batch(6, kind, values) + batch(6 + len(values), kind, [b"b"])
    del values
    gc.collect()
    tracemalloc.start()
    try:
        found, size = [], 0
        for record in opened(fetched, 5):
            found.append(record.offset)
            size += len(record.value)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == [*range(5, 7 + 5_120)]
    assert size > 20 << 20
    assert peak < 4 * decompression.PIECE_BYTES


@pytest.mark.parametrize("kind", COMPRESSED)
@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.sampled_from([0, 1, 30, 900, 3_000]), min_size=1, max_size=12), data=st.data())
def test_pieces_change_no_record(kind, sizes, data):
    """Wherever a piece ends, from each offset, and beside other batches; beyond the bound one record stands in."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in (("BATCH_BYTES_MAX", 50), ("PIECE_BYTES", 1_000), ("RECORD_BYTES_MAX", 2_000)):
            patch.setattr(decompression, name, size)
        most = data.draw(st.sampled_from([5_000, 50_000]))
        patch.setattr(decompression, "LARGE_BYTES_MAX", most)
        fetched = batch(0, kind, [b"%d" % size + b"v" * size for size in sizes]) + batch(
            len(sizes), NONE, [b"end"]
        )
        start = data.draw(st.integers(0, len(sizes) - 1))
        found, position = read(fetched, start)
    assert position == len(sizes) + 1
    assert found[-1][:2] == (len(sizes), b"end")
    whole = [(offset, None if size > 2_000 else b"%d" % size + b"v" * size) for offset, size in enumerate(sizes)]
    delivered = [record[:2] for record in found[:-1]]
    if delivered != whole[start:]:
        assert sum(sizes) + 50 * len(sizes) > most
        assert delivered[:-1] == whole[start : start + len(delivered) - 1]
        assert delivered[-1] == (len(sizes) - 1, None)


@pytest.mark.parametrize("kind", COMPRESSED)
def test_a_record_beyond_the_bound_stands_alone(kind):
    """Its neighbours in the batch are delivered, and the one in its place says why."""
    values = [b"a", b"x" * (decompression.RECORD_BYTES_MAX + 1), b"c"]
    found, position = read(batch(7, kind, values))
    assert [record[:2] for record in found] == [(7, b"a"), (8, None), (9, b"c")]
    assert position == 10
    assert found[1][2] == {dead_letters.UNREAD: b"the record 8 is more than 8388608 bytes when decompressed"}


@pytest.mark.parametrize("kind", COMPRESSED)
def test_a_batch_beyond_the_bound_ends_with_one_record(kind, monkeypatch):
    """The first records come, one stands in for the rest, and the next batch follows, from any offset."""
    monkeypatch.setattr(decompression, "LARGE_BYTES_MAX", 16 << 20)
    fetched = batch(6, kind, [b"x"] * 30, size=1 << 20) + batch(36, kind, [b"b", b"c"])
    for start in (6, 10, 35):
        found, position = read(fetched, start)
        *delivered, unread, last, end = found
        first = max(start, 21)
        assert [record[0] for record in delivered] == [*range(start, first)]
        assert (unread[:2], last[:2], end[:2], position) == ((35, None), (36, b"b"), (37, b"c"), 38)
        said = dead_letters.headers("t/3/35", list(unread[2].items()), key=None, stage="ingest", reason="no key")
        reason = dict(said)[dead_letters.REASON].decode()
        assert (
            reason
            == f"the records {first} to 35 are lost: their batch is more than 16777216 bytes when decompressed"
        )


@pytest.mark.parametrize("first", [b"", b"\x02\xff\0"], ids=["empty", "not UTF-8"])
@pytest.mark.parametrize(
    ("kind", "count", "records"), [(NONE, 900_000, 1), (GZIP, 4_000_000, 1), (ZSTD, 4_000_000, 8)]
)
def test_no_record_decodes_into_millions_of_headers(kind, count, records, first):
    """Whichever decoder gets it: memory holds its bytes and not its headers."""
    heads = [(0, b""), *[(count, first)] * records, (HEADERS_MAX, first)]
    fetched = with_headers(7, kind, heads) + batch(8 + len(heads) - 1, kind, [b"b"])
    assert kind == NONE or len(fetched) < 20_000
    gc.collect()
    tracemalloc.start()
    try:
        found, position = read(fetched)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    end = 8 + records
    assert [record[:2] for record in found] == [
        (7, b"v"), *[(offset, None) for offset in range(8, end)], (end, b"v"), (end + 1, b"b")
    ]  # fmt: skip
    reason = f"the record {end - 1} has {count} headers; the most are 1000"
    assert found[-3][2] == {dead_letters.UNREAD: reason.encode()}
    assert position == end + 2
    assert peak < 2 * decompression.LARGE_BYTES_MAX


@pytest.mark.parametrize("kind", [NONE, *COMPRESSED])
@settings(deadline=None, max_examples=30)
@given(counts=st.lists(st.sampled_from([0, 3, 999, 1_000, 1_001, 1_200]), min_size=1, max_size=4), data=st.data())
def test_every_record_beside_one_with_many_headers_is_delivered(kind, counts, data):
    """From each offset, with the headers that the bound allows."""
    first = data.draw(st.sampled_from([b"", b"\x02\xff\0"]))
    fetched = with_headers(5, kind, [(count, first if count else b"") for count in counts])
    start = 5 + data.draw(st.integers(0, len(counts) - 1))
    found = [(record.offset, record.value, len(record.headers)) for record in opened(fetched, start)]
    whole = [(5 + at, None, 1) if n > HEADERS_MAX else (5 + at, b"v", n) for at, n in enumerate(counts)]
    assert found == whole[start - 5 :]


@settings(deadline=None, max_examples=20)
@given(kinds=st.lists(st.tuples(st.sampled_from([NONE, GZIP, LZ4, ZSTD]), st.booleans()), max_size=4))
def test_any_sequence_of_batches(kinds):
    """The consumer gets each record once and in order."""
    fetched, expected, offset = b"", [], 0
    for kind, is_large in kinds:
        size = 5 << 20 if is_large and kind != NONE else 1
        fetched += batch(offset, kind, [b"x", b"y"], size=size)
        expected += [(offset, b"x" * size), (offset + 1, b"y" * size)]
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
