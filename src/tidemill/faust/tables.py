"""Faust's tables: one that waits for its changelog, and one partition's share of it."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faust
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery, ServiceStopped

from tidemill.faust import local_tables
from tidemill.kafka.producer import too_large
from tidemill.schemas.bounds import RECORD_BYTES_EXTRA, RECORD_BYTES_MAX
from tidemill.schemas.ports import RecordTooLarge


class BoundedRecovery(Recovery):  # type: ignore[misc]  # Faust is untyped here
    """A recovery that ends the process if a broker does not answer in time.

    Faust takes the timeout of a wait for a stop, and ends the recovery for good: the process would keep its
    partitions, and read nothing.
    """

    async def _wait(self, coro: Any, timeout: Any = None) -> None:  # noqa: ASYNC109  Faust's signature
        try:
            await super()._wait(coro, timeout)
        except ServiceStopped:
            if self.should_stop:
                raise
            raise TimeoutError(f"a step of the recovery took more than {timeout} s") from None


class PromptTableManager(TableManager):  # type: ignore[misc]  # Faust is untyped here
    """A table manager that starts at once, since a stage declares its tables before it starts its app.

    Faust's own sleeps for a second, in which modules may still add tables; only then does the app join its group.
    """

    _recovery: BoundedRecovery | None = None

    @property
    def recovery(self) -> BoundedRecovery:
        """The service that reads the tables of new partitions, and seeks in their inputs."""
        if self._recovery is None:
            self._recovery = BoundedRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery

    async def on_start(self) -> None:
        """Start as Faust does, without the sleep."""
        await self._update_channels()
        await self.recovery.start()

    async def on_rebalance(self, assigned: Any, revoked: Any, newly_assigned: Any, generation_id: int = 0) -> None:
        """Take over tables as Faust does, after the local files that belong to another log are deleted."""
        new = [(self._changelogs[tp.topic], tp.partition) for tp in newly_assigned if tp.topic in self._changelogs]
        if new:
            await local_tables.check(self.app.cluster, new, generation_id)
        await super().on_rebalance(assigned, revoked, newly_assigned, generation_id)


class DeliveredTable(faust.Table):  # type: ignore[misc]  # Faust is untyped here
    """A table that can wait until the broker has the changelog records of a partition.

    A flush of Faust's producer may return before it has sent everything, so the table keeps their futures. Each
    future stays until it is done, so that concurrent waiters all wait for it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._undelivered: defaultdict[int, list[asyncio.Future[Any]]] = defaultdict(list)

    def _new_store(self) -> Any:
        return local_tables.reopened(super()._new_store())

    def send_changelog(self, partition: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Send as Faust does, and keep the future.

        Raises:
            RecordTooLarge: Neither the changelog nor the table has the row.
        """
        if len(key) + len(value or b"") + RECORD_BYTES_EXTRA > RECORD_BYTES_MAX:
            raise too_large(self.changelog_topic.get_topic_name(), key, value)
        future = super().send_changelog(partition, key, value, *args, **kwargs)
        self._undelivered[partition].append(future)
        return future

    def _on_changelog_sent(self, fut: Any) -> None:
        """Advance the offset up to which the local table has its changelog, but not past rows of other processes.

        Faust stores the offset of its own last record. A successor may have written before that record, while this
        process was cut off from its group; this process would then never read the successor's rows.
        """
        record = fut.result()
        known = self.data.persisted_offset(record.topic_partition)
        if record.offset == (-1 if known is None else known) + 1:
            super()._on_changelog_sent(fut)

    async def delivered(self, partition: int) -> None:
        """Wait until the broker has every change of a partition made so far; raises the broker's error for any."""
        if sent := tuple(self._undelivered[partition]):
            await asyncio.wait(sent)
        self._undelivered[partition] = [future for future in self._undelivered[partition] if not future.done()]
        for future in sent:
            future.result()


class PartitionTable:
    """See `owned_table.Table`.

    Faust sets a key in the partition of the current event. Its reads search all partitions of the process, and its
    deletions take the key from all, or from the one that set it last. Here both concern this partition alone,
    because owners of different partitions have rows with equal keys.
    """

    def __init__(self, table: DeliveredTable, number: int) -> None:
        self._table = table
        self._number = number

    def get(self, key: bytes) -> bytes | None:
        """See `owned_table.Table`."""
        with _disk_errors():
            value: bytes | None = self._database.get(key)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """See `owned_table.Table`."""
        with _disk_errors():
            self._table[key] = value

    def delete(self, key: bytes) -> None:
        """See `owned_table.Table`."""
        with _disk_errors():
            self._table.on_key_del(key)
            self._database.delete(key)

    def scan(self, prefix: bytes, *, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """See `owned_table.Table`."""
        with _disk_errors():
            place = self._database.iter()
            place.seek(max(prefix, after))
            while place.valid() and (key := place.key()).startswith(prefix):
                yield key, place.value()
                place.next()

    async def delivered(self) -> None:
        """See `owned_table.Table`."""
        await self._table.delivered(self._number)

    @property
    def _database(self) -> Any:
        return self._table.data._db_for_partition(self._number)  # noqa: SLF001  not public


def declare_table(app: faust.App, name: str, partitions: int, *, cache_bytes: int) -> Any:
    """Declare a table of bytes; RocksDB takes `cache_bytes` for reads and half as much for writes."""
    # Faust removes options from the mapping, so each table gets its own.
    options = {"block_cache_size": cache_bytes, "write_buffer_size": cache_bytes // 2, "max_open_files": 256}
    return app.Table(name, partitions=partitions, key_type=bytes, value_type=bytes, options=options)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Raise the local database's errors as `OSError`: a full disk proves nothing against a record."""
    try:
        yield
    except (RecordTooLarge, OSError):
        raise
    except Exception as error:
        raise OSError(f"the table failed: {type(error).__name__}: {error}") from error
