r"""Delivers records whose header names are not UTF-8, instead of stopping their partition.

Kafka's protocol requires UTF-8 for the name of a header, but no broker checks it. aiokafka 0.14 raises on such a
name in its fetcher, before any stage sees the record, and does so at every fetch: the partition stops for every
consumer. This module decodes the batch of such a record a second time, with aiokafka's own Python code, and writes
invalid bytes as `\xff`; other names do not change.

It also bounds the headers of a record: a million empty ones are some hundred bytes when compressed, and decode
into 70 MB. A record with more than `HEADERS_MAX` becomes one without key and value, with a header that gives the
reason; no stage can decode it, so it becomes a dead letter.
"""

from typing import Any, Final

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy, _DefaultRecordPy
from aiokafka.record.memory_records import MemoryRecords, _MemoryRecordsPy
from aiokafka.record.util import decode_varint

from tidemill.schemas.log.dead_letters import UNREAD

HEADERS_MAX: Final = 1_000
"""Headers of a record; stages and producers use some ten."""
_HEADER_BYTES_MIN: Final = 2
_LENGTH: Final = slice(8, 12)
"""The place of a batch's length, which does not count the bytes up to its end."""
_MAGIC: Final = 16
_CODEC: Final = 22
"""The place of the byte whose lower three bits are a batch's codec; 0 if it is not compressed."""
_V2: Final = 2


def has_many_headers(content: bytes) -> bool:
    """Whether a record has more than `HEADERS_MAX` headers, by the decompressed records of a batch.

    A record that is too short for so many costs no more than a look at its length. Malformed records have none.
    """
    place, end = 0, len(content)
    try:
        while place < end:
            length, place = decode_varint(content, place)
            if length > _HEADER_BYTES_MIN * HEADERS_MAX and _outline(content, place)[1] > HEADERS_MAX:
                return True
            if length < 0:
                return False
            place += length
    except (ValueError, IndexError):
        pass
    return False


def _outline(content: bytes | bytearray, place: int) -> tuple[int, int]:
    """The offset delta and the number of headers of a record, given the place behind its length.

    Raises:
        ValueError, IndexError: It is malformed.
    """
    for _ in range(2):
        _, place = decode_varint(content, place)
    delta, place = decode_varint(content, place)
    for _ in range(2):
        size, place = decode_varint(content, place)
        place += max(size, 0)
    return delta, decode_varint(content, place)[0]


class _Text(bytearray):
    """Bytes whose decoding never fails."""

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        del errors
        return super().decode(encoding, "backslashreplace")


class TolerantBuffer(bytearray):
    """Bytes whose slices are `_Text`."""

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        return _Text(found) if isinstance(place, slice) else found


class Batch(_DefaultRecordBatchPy):  # type: ignore[misc]  # final
    """A batch of records whose header names may have any bytes, and whose headers are bounded."""

    _buffer: bytearray
    _pos: int

    def _maybe_uncompress(self) -> None:
        if not self._decompressed:
            super()._maybe_uncompress()
            self._buffer = TolerantBuffer(self._buffer)

    def _read_msg(self, *_: Any) -> Any:
        """The next record, or the one that stands in for it."""
        length, begin = decode_varint(self._buffer, self._pos)
        delta, count = _outline(self._buffer, begin)
        if count <= HEADERS_MAX:
            return super()._read_msg()
        self._pos = begin + length
        offset = self.base_offset + delta
        reason = f"the record {offset} has {count} headers; the most are {HEADERS_MAX}"
        headers: list[tuple[str, bytes | None]] = [(UNREAD, reason.encode())]
        return _DefaultRecordPy(offset, self.max_timestamp, self.timestamp_type, None, None, headers)


class _Batches(_MemoryRecordsPy):  # type: ignore[misc]  # as above
    def next_batch(self, *_: Any) -> Any:
        found = self._next_slice
        if found is not None and len(found) > self.MAGIC_OFFSET and found[self.MAGIC_OFFSET] >= _V2:
            self._cache_next()
            return Batch(found)
        # Batches in older formats have no headers.
        return super().next_batch()


class Fetched(MemoryRecords):  # type: ignore[misc]  # of the extension
    """Fetched batches of records that keep their bytes."""

    def __init__(self, fetched: bytes) -> None:
        super().__init__(fetched)
        self.fetched = fetched
        self._end = 0
        """Where the last batch ended."""

    def next_batch(self, *_: Any) -> Any:
        """The next batch; one with too many headers that is not compressed, by the decoder that bounds them.

        The decoders of compressed batches raise `DecompressionFailed` for it, see `decompression.py`.
        """
        found, start = super().next_batch(), self._end
        after = start + _LENGTH.stop
        self._end = after + int.from_bytes(self.fetched[start + _LENGTH.start : after])
        head = self.fetched[start : start + Batch.HEADER_STRUCT.size]
        if head[_MAGIC] < _V2 or head[_CODEC] & Batch.CODEC_MASK:
            return found
        if not has_many_headers(self.fetched[start + len(head) : self._end]):
            return found
        return Batch(self.fetched[start : self._end])


class Records(fetcher.PartitionRecords):  # type: ignore[misc]  # aiokafka is untyped here
    """The records of a partition, also those with invalid header names."""

    _records: Any
    _records_iterator: Any
    _aborted_transactions: list[Any]
    _aborted_producers: set[Any]

    def __init__(self, tp: Any, records: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(tp, records, *args, **kwargs)
        self._note_aborted()

    def _note_aborted(self) -> None:
        """Note the aborted transactions where the bytes begin: decoding forgets those that it passes."""
        self._aborted = list(self._aborted_transactions), set(self._aborted_producers)

    def __next__(self) -> Any:
        try:
            return next(self._records_iterator)
        except StopIteration:
            self._records_iterator = None
            raise
        except UnicodeDecodeError:
            # The bytes begin with delivered batches; decoding one sets `next_fetch_offset` back to its end.
            start = self.next_fetch_offset
            self._records = _Batches(self._records.fetched)
            self._aborted_transactions, self._aborted_producers = list(self._aborted[0]), set(self._aborted[1])
            self._records_iterator = (record for record in self._unpack_records() if record.offset >= start)
            return next(self._records_iterator)
