"""How much a batch of records may be once it is decompressed: 150 MiB of one byte are 14 KB on the wire.

A broker bounds what a batch is as it is stored, compressed. aiokafka decompresses all of it in one go, before any
stage sees the first record. Here its decoders stop at a bound: each writes into a buffer that is no larger. A
batch beyond it comes out as one record without key and value, at the offset of its last one, with a header that
says why. No stage can read such a record, so it is buried, and its partition goes on.
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

from tidemill.kafka.records import Fetched
from tidemill.schemas.log.dead_letters import UNREAD

BATCH_BYTES_MAX: Final = 8 << 20
"""A batch of records, decompressed; a record may have 1 MiB."""
RATIO: Final = 16
"""What is made ready at first, for JSON that compresses well; what needs more is decompressed twice."""
BUFFER_BYTES_MIN: Final = 64 * 1024
LZ4_LEVEL: Final = 1
"""Level 9, which aiokafka takes, costs four to seven times the CPU for some 6 to 15 % fewer bytes."""

_HEAD: Final = struct.Struct(">qi4xb4xhiqq")
"""Of a batch of records: base offset, length, magic, attributes, last offset delta, first and last timestamp."""
_OVERHEAD_BYTES: Final = 12
"""Of a batch, before what its length counts."""
_V2: Final = 2
_TIMESTAMP_TYPE: Final = 0x08

_BEYOND: Final = f"is more than {BATCH_BYTES_MAX} bytes when decompressed"
_BROKEN: Final = "cannot be decompressed"
_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_HEAD_BYTES: Final = 16
_MODULES: Final = ("aiokafka.record.default_records", "aiokafka.record._crecords.default_records")
_LEGACY: Final = ("aiokafka.record.legacy_records", "aiokafka.record._crecords.legacy_records")


class Inflated(Exception):
    """A batch of records is beyond `BATCH_BYTES_MAX`, or cannot be decompressed."""


def gunzipped(packed: Any) -> bytes:
    """Decompress gzip.

    Raises:
        Inflated: See there; so do the others.
    """
    stream = zlib.decompressobj(wbits=31)
    try:
        found = stream.decompress(packed, BATCH_BYTES_MAX)
        more = b"" if stream.eof else stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error as error:
        raise Inflated(_BROKEN) from error
    if more:
        raise Inflated(_BEYOND)
    if not stream.eof:
        raise Inflated(_BROKEN)
    return found


def unsnapped(packed: Any) -> bytes:
    """Decompress snappy, in the framing of Java's clients or without one; each block says how large it is."""
    view = memoryview(packed)
    blocks = _blocks(view) if bytes(view[: len(_XERIAL)]) == _XERIAL else [view]
    try:
        if sum(cramjam.snappy.decompress_raw_len(block) for block in blocks) > BATCH_BYTES_MAX:
            raise Inflated(_BEYOND)
        return b"".join(bytes(cramjam.snappy.decompress_raw(block)) for block in blocks)
    except cramjam.DecompressionError as error:
        raise Inflated(_BROKEN) from error


def unlz4(packed: Any) -> bytes:
    """Decompress a frame of lz4."""
    return _into_buffer(cramjam.lz4.decompress_into, packed)


def unzstd(packed: Any) -> bytes:
    """Decompress a frame of zstd."""
    return _into_buffer(cramjam.zstd.decompress_into, packed)


def packed_lz4(content: Any) -> bytes:
    """Compress a batch of records into a frame of lz4."""
    return bytes(codec.lz4_encode(content, LZ4_LEVEL))


def bound() -> None:
    """Have every client of this process, Faust's too, decompress within the bound, and compress fast."""
    for name in (*_MODULES, *_LEGACY):
        module = import_module(name)
        for decoder, bounded in _DECODERS.items():
            if hasattr(module, decoder):
                setattr(module, decoder, bounded)
        setattr(module, "lz4_encode", packed_lz4)  # noqa: B010  mypy knows no such name
    fetcher.MemoryRecords = Fetched
    fetcher.PartitionRecords = _bounding(fetcher.PartitionRecords)


def _bounding(base: Any) -> Any:
    class Records(base):  # type: ignore[misc]  # aiokafka is untyped here
        """The records of a partition; of a batch that is beyond the bound there is one that says so."""

        def __init__(self, tp: Any, records: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(tp, records, *args, **kwargs)
            self._fetched = records.fetched
            self.next_fetch_offset: int

        def __next__(self) -> Any:
            try:
                return super().__next__()
            except Inflated as error:
                return self._stand_in(error)

        def _stand_in(self, error: Inflated) -> Any:
            start, (base_offset, length, magic, attributes, last, _, at_ms) = _batch_of(
                self._fetched, self.next_fetch_offset
            )
            first, final = base_offset, base_offset + (last if magic >= _V2 else 0)
            self._fetched = self._fetched[start + _OVERHEAD_BYTES + length :]
            self._records = Fetched(self._fetched)
            self._records_iterator = self._unpack_records()
            self.next_fetch_offset = final + 1
            reason = f"the batch of records {first} to {final} {error}".encode()
            kind = int(bool(attributes & _TIMESTAMP_TYPE))
            place = self._tp.topic, self._tp.partition, final
            return ConsumerRecord(*place, at_ms, kind, None, None, None, -1, -1, ((UNREAD, reason),))

    return Records


def _batch_of(fetched: bytes, offset: int) -> tuple[int, tuple[int, ...]]:
    """Where in the bytes the batch begins that holds the offset, or the next one after it, and its head."""
    start = 0
    while True:
        head = _HEAD.unpack_from(fetched, start)
        base_offset, length, magic, _, last, *_ = head
        if magic < _V2 or base_offset + last >= offset:
            return start, head
        start += _OVERHEAD_BYTES + length


def _into_buffer(decompress: Callable[[Any, bytearray], int], packed: Any) -> bytes:
    sizes = {min(max(RATIO * len(packed), BUFFER_BYTES_MIN), BATCH_BYTES_MAX), BATCH_BYTES_MAX}
    for size in sorted(sizes):
        buffer = bytearray(size)
        try:
            return bytes(memoryview(buffer)[: decompress(packed, buffer)])
        except cramjam.DecompressionError as error:
            failure = error
    raise Inflated(f"{_BEYOND}, or {_BROKEN}") from failure


def _blocks(view: memoryview) -> list[memoryview]:
    blocks, at = [], _XERIAL_HEAD_BYTES
    while at < len(view):
        size = int.from_bytes(view[at : at + 4])
        blocks.append(view[at + 4 : at + 4 + size])
        at += 4 + size
    return blocks


_DECODERS: Final[dict[str, Callable[[Any], bytes]]] = {
    "gzip_decode": gunzipped,
    "snappy_decode": unsnapped,
    "lz4_decode": unlz4,
    "zstd_decode": unzstd,
}
