"""The tables of Faust as the owners of partitions use them."""

from collections.abc import Iterator
from typing import Any

from tidemill.faust import stage_app
from tidemill.results.state.tables import Tables


class FaustTables:
    """The tables of all partitions of the process."""

    def __init__(self, app: stage_app.StageApp, partitions: int) -> None:
        def table(name: str) -> Any:
            # Faust takes options out of the mapping it is given, so each table gets its own.
            options = {"block_cache_size": 32 << 20, "write_buffer_size": 16 << 20, "max_open_files": 256}
            return app.Table(name, partitions=partitions, key_type=bytes, value_type=bytes, options=options)

        self._states = table("batches")
        self._chunks = table("lines")

    def of(self, number: int) -> Tables:
        """The tables of one partition."""
        return Tables(PartitionTable(self._states, number), PartitionTable(self._chunks, number))


class PartitionTable:
    """See `ports.Table`. Faust writes to the partition of the event; its own reading looks through all of them."""

    def __init__(self, table: Any, number: int) -> None:
        self._table = table
        self._number = number

    def get(self, key: bytes) -> bytes | None:
        """See `ports.Table`."""
        with stage_app.of_the_table():
            value: bytes | None = self._database.get(key)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """See `ports.Table`."""
        with stage_app.of_the_table():
            self._table[key] = value

    def delete(self, key: bytes) -> None:
        """See `ports.Table`."""
        with stage_app.of_the_table():
            del self._table[key]

    def scan(self, prefix: bytes, *, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """See `ports.Table`."""
        with stage_app.of_the_table():
            place = self._database.iter()
            place.seek(max(prefix, after))
            while place.valid() and (key := place.key()).startswith(prefix):
                yield key, place.value()
                place.next()

    async def delivered(self) -> None:
        """See `ports.Table`."""
        await self._table.delivered()

    @property
    def _database(self) -> Any:
        return self._table.data._db_for_partition(self._number)  # noqa: SLF001  Faust shows it nowhere
