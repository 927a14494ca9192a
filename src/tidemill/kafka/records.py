r"""Delivers records whose header names are not UTF-8, instead of stopping their partition.

Kafka's protocol requires UTF-8 for the name of a header, but no broker checks it. aiokafka 0.14 raises on such a
name in its fetcher, before any stage sees the record, and does so at every fetch: the partition stops for every
consumer. This module decodes the batch of such a record a second time, with aiokafka's own Python code, and writes
invalid bytes as `\xff`; other names do not change.
"""

from typing import Any, Final

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords, _MemoryRecordsPy

_V2: Final = 2


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
    """A batch of records whose header names may have any bytes."""

    _buffer: bytearray

    def _maybe_uncompress(self) -> None:
        if not self._decompressed:
            super()._maybe_uncompress()
            self._buffer = TolerantBuffer(self._buffer)


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
