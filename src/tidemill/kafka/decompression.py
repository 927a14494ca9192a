"""Limits the decompressed size of a batch of records: 150 MiB of one byte are 14 KB on the wire.

A broker limits the compressed size of a batch. aiokafka decompresses a batch as a whole, before any stage sees its
first record. The decoders of this module write into a buffer of bounded size instead. A batch beyond the bound
becomes one record without key and value, at the offset of its last record, with a header that gives the reason.
No stage can decode such a record, so it becomes a dead letter, and the partition continues.
"""

import struct
import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

import cramjam
from aiokafka import codec
from aiokafka.consumer import fetcher
from aiokafka.structs import ConsumerRecord

from tidemill.kafka.records import Fetched, Records
from tidemill.schemas.log.dead_letters import UNREAD

BATCH_BYTES_MAX: Final = 8 << 20
"""Size of a decompressed batch of records; a record has at most 1 MiB."""
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

_BEYOND: Final = f"is more than {BATCH_BYTES_MAX} bytes when decompressed"
_BROKEN: Final = "cannot be decompressed"
_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_HEAD_BYTES: Final = 16
_MODULES: Final = ("aiokafka.record.default_records", "aiokafka.record._crecords.default_records")
_LEGACY: Final = ("aiokafka.record.legacy_records", "aiokafka.record._crecords.legacy_records")


class DecompressionFailed(Exception):
    """A batch of records is beyond `BATCH_BYTES_MAX`, or cannot be decompressed."""


def decompress_gzip(packed: Any) -> bytes:
    """Decompress gzip.

    Raises:
        DecompressionFailed: Also raised by the functions below.
    """
    stream = zlib.decompressobj(wbits=31)
    try:
        found = stream.decompress(packed, BATCH_BYTES_MAX)
        more = b"" if stream.eof else stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error as error:
        raise DecompressionFailed(_BROKEN) from error
    if more:
        raise DecompressionFailed(_BEYOND)
    if not stream.eof:
        raise DecompressionFailed(_BROKEN)
    return found


def decompress_snappy(packed: Any) -> bytes:
    """Decompress snappy, with or without the framing of Java clients; each block has its size in its head."""
    view = memoryview(packed)
    blocks = _blocks(view) if bytes(view[: len(_XERIAL)]) == _XERIAL else [view]
    try:
        if sum(cramjam.snappy.decompress_raw_len(block) for block in blocks) > BATCH_BYTES_MAX:
            raise DecompressionFailed(_BEYOND)
        return b"".join(bytes(cramjam.snappy.decompress_raw(block)) for block in blocks)
    except cramjam.DecompressionError as error:
        raise DecompressionFailed(_BROKEN) from error


def decompress_lz4(packed: Any) -> bytes:
    """Decompress a frame of lz4."""
    return _into_buffer(cramjam.lz4.decompress_into, packed)


def decompress_zstd(packed: Any) -> bytes:
    """Decompress a frame of zstd."""
    return _into_buffer(cramjam.zstd.decompress_into, packed)


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
                setattr(module, decoder, bounded)
        setattr(module, "lz4_encode", compress_lz4)  # noqa: B010  unknown to mypy
    fetcher.MemoryRecords = Fetched
    fetcher.PartitionRecords = _BoundedRecords


class _BoundedRecords(Records):
    """The records of a partition, with one record in place of a batch beyond the bound."""

    def __init__(self, tp: Any, records: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(tp, records, *args, **kwargs)
        self._fetched = records.fetched
        self.next_fetch_offset: int

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except DecompressionFailed as error:
            return self._replacement(error)

    def _replacement(self, error: DecompressionFailed) -> Any:
        start, (base_offset, length, magic, attributes, last, _, at_ms) = _batch_of(
            self._fetched, self.next_fetch_offset
        )
        first, final = base_offset, base_offset + (last if magic >= _V2 else 0)
        self._fetched = self._fetched[start + _OVERHEAD_BYTES + length :]
        self._records = Fetched(self._fetched)
        self._note_aborted()
        self._records_iterator = self._unpack_records()
        self.next_fetch_offset = final + 1
        reason = f"the batch of records {first} to {final} {error}".encode()
        kind = int(bool(attributes & _TIMESTAMP_TYPE))
        place = self._tp.topic, self._tp.partition, final
        return ConsumerRecord(*place, at_ms, kind, None, None, None, -1, -1, ((UNREAD, reason),))


def _batch_of(fetched: bytes, offset: int) -> tuple[int, tuple[int, ...]]:
    """The position and the head of the batch with this offset, or of the next batch after it."""
    start = 0
    while True:
        head = _HEAD.unpack_from(fetched, start)
        base_offset, length, magic, _, last, *_ = head
        if magic < _V2 or base_offset + last >= offset:
            return start, head
        start += _OVERHEAD_BYTES + length


def _into_buffer(decompress: Callable[[Any, bytearray], int], packed: Any) -> bytes:
    size = max(RATIO * len(packed), BUFFER_BYTES_MIN)
    while True:
        buffer = bytearray(min(size, BATCH_BYTES_MAX))
        try:
            return bytes(memoryview(buffer)[: decompress(packed, buffer)])
        # No variable may keep the error: its traceback refers to this frame, so the buffer would live until a
        # collection.
        except cramjam.DecompressionError as error:
            if size >= BATCH_BYTES_MAX:
                raise DecompressionFailed(f"{_BEYOND}, or {_BROKEN}") from error
        size *= GROWTH


def _blocks(view: memoryview) -> list[memoryview]:
    blocks, at = [], _XERIAL_HEAD_BYTES
    while at < len(view):
        size = int.from_bytes(view[at : at + 4])
        blocks.append(view[at + 4 : at + 4 + size])
        at += 4 + size
    return blocks


_DECODERS: Final[dict[str, Callable[[Any], bytes]]] = {
    "gzip_decode": decompress_gzip,
    "snappy_decode": decompress_snappy,
    "lz4_decode": decompress_lz4,
    "zstd_decode": decompress_zstd,
}
