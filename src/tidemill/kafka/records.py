r"""How records come out of the client: one that it cannot decode comes out all the same.

A header's name is UTF-8, says Kafka's protocol, and no broker looks. aiokafka 0.14 raises over a name that is not,
in its fetcher, before any stage has seen the record, and again each time the record is fetched: the partition
stands still for every consumer. Here the batch of such a record is read once more, by the client's own code in
Python, with the bytes that are no UTF-8 written as `\xff`; the names of all other records are what they were.
"""

from typing import Any, Final

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords, _MemoryRecordsPy

_V2: Final = 2


class _Text(bytearray):
    """Bytes whose decoding does not fail."""

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        del errors
        return super().decode(encoding, "backslashreplace")


class _Buffer(bytearray):
    """Gives its pieces as such bytes."""

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        return _Text(found) if isinstance(place, slice) else found


class _Batch(_DefaultRecordBatchPy):  # type: ignore[misc]  # said to be final
    _buffer: bytearray

    def _maybe_uncompress(self) -> None:
        if not self._decompressed:
            super()._maybe_uncompress()
            self._buffer = _Buffer(self._buffer)


class _Batches(_MemoryRecordsPy):  # type: ignore[misc]  # as above
    def next_batch(self, *_: Any) -> Any:
        found = self._next_slice
        if found is not None and len(found) > self.MAGIC_OFFSET and found[self.MAGIC_OFFSET] >= _V2:
            self._cache_next()
            return _Batch(found)
        # Before that format there were no headers.
        return super().next_batch()


class Fetched(MemoryRecords):  # type: ignore[misc]  # of the extension
    """What was fetched, with its bytes."""

    def __init__(self, fetched: bytes) -> None:
        super().__init__(fetched)
        self.fetched = fetched


class _Records(fetcher.PartitionRecords):  # type: ignore[misc]  # aiokafka is untyped here
    _records: Any
    _records_iterator: Any

    def __next__(self) -> Any:
        try:
            return next(self._records_iterator)
        except StopIteration:
            self._records_iterator = None
            raise
        except UnicodeDecodeError:
            # `next_fetch_offset` says which records of the batch have come out already.
            self._records = _Batches(self._records.fetched)
            self._records_iterator = self._unpack_records()
            return next(self._records_iterator)


def tolerate() -> None:
    """Have every consumer of this process, Faust's too, read like that."""
    fetcher.MemoryRecords = Fetched
    fetcher.PartitionRecords = _Records
