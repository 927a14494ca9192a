"""A log in memory, for catalogs."""

from collections.abc import Awaitable, Callable

from tidemill.kafka.catalog import Catalog


class Log:
    """A log that both catalogs read at once; `before` runs before the next record."""

    def __init__(self, *readers: Catalog) -> None:
        self.records: list[tuple[str, bytes | None]] = []
        self.before: Callable[[], Awaitable[object]] | None = None
        self._readers = readers

    async def send(self, topic: str, key: str, value: bytes | None, *, headers: object = ()) -> int:
        """Append a record."""
        del topic, headers
        if (before := self.before) is not None:
            self.before = None
            await before()
        self.records.append((key, value))
        for reader in self._readers:
            reader.apply(key, value, len(self.records) - 1)
        return len(self.records) - 1
