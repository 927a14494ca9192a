"""Tables of Faust as the owner of one partition uses them."""

from collections.abc import Iterator
from typing import Any

from tidemill.faust import stage_app


class PartitionTable:
    """See `owned_table.Table`. Faust writes to the partition of the event; its own reads look through all."""

    def __init__(self, table: Any, number: int) -> None:
        """Take a table made by `table` and the number of the partition."""
        self._table = table
        self._number = number

    def get(self, key: bytes) -> bytes | None:
        """See `owned_table.Table`."""
        with stage_app.of_the_table():
            value: bytes | None = self._database.get(key)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """See `owned_table.Table`."""
        with stage_app.of_the_table():
            self._table[key] = value

    def delete(self, key: bytes) -> None:
        """See `owned_table.Table`."""
        with stage_app.of_the_table():
            del self._table[key]

    def scan(self, prefix: bytes, *, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """See `owned_table.Table`."""
        with stage_app.of_the_table():
            place = self._database.iter()
            place.seek(max(prefix, after))
            while place.valid() and (key := place.key()).startswith(prefix):
                yield key, place.value()
                place.next()

    async def delivered(self) -> None:
        """See `owned_table.Table`."""
        await self._table.delivered()

    @property
    def _database(self) -> Any:
        return self._table.data._db_for_partition(self._number)  # noqa: SLF001  Faust shows it nowhere


def table(app: stage_app.StageApp, name: str, partitions: int, *, cache_bytes: int) -> Any:
    """Declare a table of bytes; RocksDB takes `cache_bytes` for reads and half as much for writes."""
    # Faust takes options out of the mapping it is given, so each table gets its own.
    options = {"block_cache_size": cache_bytes, "write_buffer_size": cache_bytes // 2, "max_open_files": 256}
    return app.Table(name, partitions=partitions, key_type=bytes, value_type=bytes, options=options)
