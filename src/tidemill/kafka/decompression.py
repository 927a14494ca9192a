"""Limits the decompressed size of a batch of records: 150 MiB of one byte are 14 KB on the wire.

A broker limits the compressed size of a batch. aiokafka decompresses a batch as a whole, before any stage sees its
first record. The decoders of this module write into a buffer of bounded size instead. The records of a batch that
is larger come from pieces of it, one by one. Those beyond the bounds become one record without key and value, at
the offset of the last of them, with a header that gives the reason. No stage can decode such a record, so it
becomes a dead letter, and the partition continues. So does a record with too many headers, see `records.py`.
"""

import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, Final

import cramjam
from aiokafka import codec
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.util import decode_varint
from aiokafka.structs import ConsumerRecord

from tidemill.kafka.records import HEADERS_MAX, Batch, Fetched, Records, TolerantBuffer, has_many_headers
from tidemill.schemas.log.dead_letters import UNREAD

BATCH_BYTES_MAX: Final = 8 << 20
"""Size of a batch of records that aiokafka decompresses as a whole."""
LARGE_BYTES_MAX: Final = 64 << 20
"""Size of a larger batch; its records come one by one. Java clients fill `batch.size` by the compressed size."""
PIECE_BYTES: Final = 16 << 20
"""A large batch is decompressed up to a multiple of this size, when a record there is due."""
RECORD_BYTES_MAX: Final = 8 << 20
"""Size of a record in a large batch; the stages that read records of users have smaller bounds."""
_RECORD_HEAD_BYTES: Final = 26
"""The most bytes of a record before its key: length, attributes, and the deltas of time and offset."""
RATIO: Final = 16
"""The first buffer's size over the compressed size, for JSON; for data that needs more it grows by `GROWTH`."""
GROWTH: Final = 8
BUFFER_BYTES_MIN: Final = 64 * 1024
LZ4_LEVEL: Final = 1
"""Level 9, aiokafka's own, costs four to seven times the CPU and saves 6 to 15 % of the bytes."""

_HEAD: Final = struct.Struct(">qi4xb4xhiqq")
"""The head of a batch: base offset, length, magic, attributes, last offset delta, first and last timestamp."""
_OVERHEAD_BYTES: Final = 12
"""The bytes of a batch before those that its length counts."""
_V2: Final = 2
_TIMESTAMP_TYPE: Final = 0x08

_BEYOND: Final = "is more than {} bytes when decompressed"
_MANY: Final = f"has a record with more than {HEADERS_MAX} headers"
_BROKEN: Final = "cannot be decompressed"
_FULL: Final = "failed to write whole buffer"
"""What cramjam says once it has filled a buffer and has further data."""
_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_HEAD_BYTES: Final = 16
_MODULES: Final = ("aiokafka.record.default_records", "aiokafka.record._crecords.default_records")
_LEGACY: Final = ("aiokafka.record.legacy_records", "aiokafka.record._crecords.legacy_records")


class DecompressionFailed(Exception):
    """A batch of records is beyond `BATCH_BYTES_MAX` or `HEADERS_MAX`, or cannot be decompressed."""


def decompress_gzip(packed: Any) -> bytes:
    """Decompress gzip.

    Raises:
        DecompressionFailed: Also raised by the functions below.
    """
    return _whole(_begin_gzip(packed, BATCH_BYTES_MAX))


def decompress_snappy(packed: Any) -> bytes:
    """Decompress snappy, with or without the framing of Java clients; each block has its size in its head."""
    try:
        if sum(map(cramjam.snappy.decompress_raw_len, _blocks(packed))) > BATCH_BYTES_MAX:
            raise DecompressionFailed(_BEYOND.format(BATCH_BYTES_MAX))
    except cramjam.DecompressionError as error:
        raise DecompressionFailed(_BROKEN) from error
    return _whole(_begin_snappy(packed, BATCH_BYTES_MAX))


def decompress_lz4(packed: Any) -> bytes:
    """Decompress a frame of lz4."""
    return _whole(_begin_lz4(packed, BATCH_BYTES_MAX))


def decompress_zstd(packed: Any) -> bytes:
    """Decompress a frame of zstd."""
    return _whole(_begin_zstd(packed, BATCH_BYTES_MAX))


def compress_lz4(content: Any) -> bytes:
    """Compress a batch of records into a frame of lz4."""
    return bytes(codec.lz4_encode(content, LZ4_LEVEL))


def limit_decompression() -> None:
    """Patch aiokafka for every client of this process, including Faust's.

    Also lowers the level of lz4, and delivers records with invalid header names, see `records.py`.
    """
    for name in (*_MODULES, *_LEGACY):
        module = import_module(name)
        for decoder, bounded in _DECODERS.items():
            if hasattr(module, decoder):
                setattr(module, decoder, bounded if name in _LEGACY else _with_few_headers(bounded))
        setattr(module, "lz4_encode", compress_lz4)  # noqa: B010  unknown to mypy
    fetcher.MemoryRecords = Fetched
    fetcher.PartitionRecords = _BoundedRecords


def _with_few_headers(decompress: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """A decoder that fails if a record has too many headers: aiokafka decodes all headers of a record."""

    def decompressed(packed: Any) -> bytes:
        found = decompress(packed)
        if has_many_headers(found):
            raise DecompressionFailed(_MANY)
        return found

    return decompressed


class _BoundedRecords(Records):
    """The records of a partition, with one record in place of those beyond the bounds."""

    def __init__(self, tp: Any, records: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(tp, records, *args, **kwargs)
        self._fetched = records.fetched
        self.next_fetch_offset: int

    def __next__(self) -> Any:
        while True:
            try:
                return super().__next__()
            except DecompressionFailed as error:
                # The error itself would keep the buffer alive, see `_into_buffer`.
                self._records_iterator = self._resumed(str(error))

    def _resumed(self, fault: str) -> Iterator[Any]:
        """The records of the batch that aiokafka failed to decompress, and those behind it."""
        start, head = _batch_of(self._fetched, self.next_fetch_offset)
        end = start + _OVERHEAD_BYTES + head[1]
        packed, self._fetched = self._fetched[start:end], self._fetched[end:]
        self._records = Fetched(self._fetched)
        self._note_aborted()
        yield from self._piecewise(packed, head, fault)
        del packed
        yield from self._unpack_records()

    def _piecewise(self, packed: bytes, head: tuple[int, ...], fault: str) -> Iterator[Any]:
        """The records of a large batch, and one in place of those beyond the bounds."""
        base_offset, _, magic, attributes, last, _, at_ms = head
        final = base_offset + (last if magic >= _V2 else 0)
        place = self._tp.topic, self._tp.partition
        kind = int(bool(attributes & _TIMESTAMP_TYPE))

        def stand_in(offset: int, reason: str) -> Any:
            self.next_fetch_offset = offset + 1
            return ConsumerRecord(
                *place, offset, at_ms, kind, None, None, None, -1, -1, ((UNREAD, reason.encode()),)
            )

        first = self.next_fetch_offset
        try:
            # Batches in older formats have no pieces.
            for record in LargeBatch(packed).records() if magic >= _V2 else ():
                if isinstance(record, int):
                    if record >= first:
                        yield stand_in(record, f"the record {record} {_BEYOND.format(RECORD_BYTES_MAX)}")
                elif record.offset >= first:
                    self.next_fetch_offset = record.offset + 1
                    yield self._consumer_record(self._tp, record)
        except DecompressionFailed as error:
            fault = str(error)
        else:
            fault = fault if magic < _V2 else ""
        if fault:
            missing = max(base_offset, self.next_fetch_offset)
            yield stand_in(final, f"the records {missing} to {final} are lost: their batch {fault}")
        self.next_fetch_offset = final + 1


class LargeBatch(Batch):
    """A batch of records that is decompressed piece by piece, up to `LARGE_BYTES_MAX`.

    The libraries cannot go on where they stopped, so each piece is decompressed from the beginning, into a buffer
    that lives until the end of the piece is copied. A batch of the largest size costs 2.5 times its bytes.
    """

    _buffer: bytearray
    _pos: int
    _num_records: int

    def __init__(self, packed: bytes) -> None:
        """Take a batch as it was fetched, without decompressing any of it."""
        super().__init__(packed)
        self._packed = packed[self._pos :]
        self._begin = _CODECS[self.compression_type]
        self._buffer, self._pos = TolerantBuffer(), 0
        self._start = 0
        """Where the buffer begins in the decompressed batch."""
        self._is_whole = False

    def records(self) -> Iterator[Any]:
        """The records in their order, or the offset of one with more than `RECORD_BYTES_MAX` bytes.

        Raises:
            DecompressionFailed: The rest is damaged, or beyond `LARGE_BYTES_MAX`.
        """
        try:
            for _ in range(self._num_records):
                self._require(_RECORD_HEAD_BYTES)
                length, begin = decode_varint(self._buffer, self._pos)
                if length > RECORD_BYTES_MAX:
                    yield self._skipped(begin, length)
                else:
                    self._require(begin - self._pos + length)
                    yield self._read_msg()
        except (ValueError, IndexError, CorruptRecordException) as error:
            raise DecompressionFailed(_BROKEN) from error

    def _skipped(self, begin: int, length: int) -> int:
        """Pass a record; returns its offset."""
        _, place = decode_varint(self._buffer, begin)
        _, place = decode_varint(self._buffer, place)
        delta, _ = decode_varint(self._buffer, place)
        self._pos = begin + length
        return int(self.base_offset + delta)

    def _require(self, size: int) -> None:
        """Let the buffer have this many bytes from the present position on, or all that are left."""
        if self._is_whole or self._pos + size <= len(self._buffer):
            return
        self._start, self._pos = self._start + self._pos, 0
        if self._start + size > LARGE_BYTES_MAX:
            raise DecompressionFailed(_BEYOND.format(LARGE_BYTES_MAX))
        self._buffer = TolerantBuffer()  # the former piece makes room for the next one
        pieces = -(-(self._start + size) // PIECE_BYTES)
        found, self._is_whole = self._begin(self._packed, min(pieces * PIECE_BYTES, LARGE_BYTES_MAX))
        self._buffer = TolerantBuffer(memoryview(found)[self._start :])
        if not self._is_whole and len(self._buffer) < size:
            raise DecompressionFailed(_BEYOND.format(LARGE_BYTES_MAX))


def _batch_of(fetched: bytes, offset: int) -> tuple[int, tuple[int, ...]]:
    """The position and the head of the batch with this offset, or of the next batch after it."""
    start = 0
    while True:
        head = _HEAD.unpack_from(fetched, start)
        base_offset, length, magic, _, last, *_ = head
        if magic < _V2 or base_offset + last >= offset:
            return start, head
        start += _OVERHEAD_BYTES + length


def _whole(begun: tuple[Any, bool]) -> bytes:
    found, is_whole = begun
    if not is_whole:
        raise DecompressionFailed(_BEYOND.format(BATCH_BYTES_MAX))
    return bytes(found)


def _room(most: int, found: bytearray) -> int:
    return min(most - len(found), BATCH_BYTES_MAX)


def _begin_gzip(packed: Any, most: int) -> tuple[Any, bool]:
    """Up to `most` decompressed bytes, and whether these are all; so do the functions below.

    Raises:
        DecompressionFailed: The data is damaged.
    """
    stream, left = zlib.decompressobj(wbits=31), packed
    found = bytearray()
    try:
        while len(found) < most and not stream.eof and (piece := stream.decompress(left, _room(most, found))):
            found += piece
            left = stream.unconsumed_tail
        more = b"" if stream.eof else stream.decompress(left, 1)
    except zlib.error as error:
        raise DecompressionFailed(_BROKEN) from error
    if not more and not stream.eof:
        raise DecompressionFailed(_BROKEN)
    return found, not more


def _begin_snappy(packed: Any, most: int) -> tuple[Any, bool]:
    # A client without framing makes one block, which may have more than `most` bytes.
    found, blocks = bytearray(), _blocks(packed)
    try:
        while blocks and len(found) < most:
            if len(found) + cramjam.snappy.decompress_raw_len(blocks[0]) > LARGE_BYTES_MAX:
                break
            found += memoryview(cramjam.snappy.decompress_raw(blocks.popleft()))
    except cramjam.DecompressionError as error:
        raise DecompressionFailed(_BROKEN) from error
    return found, not blocks


def _begin_lz4(packed: Any, most: int) -> tuple[Any, bool]:
    return _into_buffer(cramjam.lz4.decompress_into, packed, most)


def _begin_zstd(packed: Any, most: int) -> tuple[Any, bool]:
    return _into_buffer(cramjam.zstd.decompress_into, packed, most)


def _into_buffer(decompress: Callable[[Any, bytearray], int], packed: Any, most: int) -> tuple[Any, bool]:
    size = max(RATIO * len(packed), BUFFER_BYTES_MIN)
    while True:
        buffer = bytearray(min(size, most))
        try:
            return memoryview(buffer)[: decompress(packed, buffer)], True
        # No variable may keep the error: its traceback refers to this frame, so the buffer would live until a
        # collection.
        except cramjam.DecompressionError as error:
            if size >= most and str(error) != _FULL:
                raise DecompressionFailed(_BROKEN) from error
        if size >= most:
            return buffer, False
        size *= GROWTH


def _blocks(packed: Any) -> deque[memoryview]:
    view = memoryview(packed)
    if bytes(view[: len(_XERIAL)]) != _XERIAL:
        return deque([view])
    blocks: deque[memoryview] = deque()
    at = _XERIAL_HEAD_BYTES
    while at < len(view):
        size = int.from_bytes(view[at : at + 4])
        blocks.append(view[at + 4 : at + 4 + size])
        at += 4 + size
    return blocks


_CODECS: Final = {1: _begin_gzip, 2: _begin_snappy, 3: _begin_lz4, 4: _begin_zstd}
"""By their numbers in a batch."""
_DECODERS: Final[dict[str, Callable[[Any], bytes]]] = {
    "gzip_decode": decompress_gzip,
    "snappy_decode": decompress_snappy,
    "lz4_decode": decompress_lz4,
    "zstd_decode": decompress_zstd,
}
