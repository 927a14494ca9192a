"""Deletes a table's local files that do not belong to its changelog, so that Faust rebuilds them from it.

Faust trusts the files of a partition as long as their offset is not after the end of the changelog, and crashes if
it is. But an operator may put the state of one installation under the log of another, restore an older log beside
newer state, or leave half a copy. The files of a partition therefore have the identity of their changelog topic.
"""

import gc
import logging
import shutil
from collections.abc import Callable, Iterable
from typing import Any, Final

from tidemill.configuration.security import Kafka
from tidemill.kafka.connection import topic_identities
from tidemill.kafka.history import reading
from tidemill.retrying import retry
from tidemill.schemas import ids

CHANGELOG: Final = b"__tidemill\0changelog__"
"""The key of the identity, like Faust's key of the offset."""
_DAMAGED: Final = ("Corruption", "IO error: No such file or directory", "Invalid argument")
"""Beginnings of RocksDB's errors that the files cause; others may end by themselves: a lock, a full disk."""

log = logging.getLogger("tidemill.stage")


async def check(kafka: Kafka, tables: Iterable[tuple[Any, int]], generation_id: int) -> None:
    """Delete the files of these partitions of tables that do not belong to their changelogs, and open all.

    The partitions were assigned with this generation of the group; after the next one it checks no more.
    """
    found = list(tables)
    ends = await retry("reading the ends of changelogs", lambda: _changelogs(kafka, found))
    for table, number in found:
        identity, end = ends[_topic(table), number]
        # A scan that has not ended keeps a database of former owners open, and locked, for a while.
        if await table.data._try_open_db_for_partition(number, generation_id=generation_id) is None:  # noqa: SLF001
            return
        check_files(table.data, number, identity, end)


async def _changelogs(kafka: Kafka, tables: Iterable[tuple[Any, int]]) -> dict[tuple[str, int], tuple[str, int]]:
    """The identity of each partition's topic, and the offset of its next record."""
    numbers: dict[str, list[int]] = {}
    for table, number in tables:
        numbers.setdefault(_topic(table), []).append(number)
    identities = await topic_identities(kafka, numbers)
    async with reading(kafka) as reader:
        return {
            (topic, number): (identities[topic], end)
            for topic, some in numbers.items()
            for number, (_, end) in (await reader.ends(topic, some)).items()
        }


def check_files(store: Any, number: int, identity: str, end: int) -> None:
    """Delete the files of a partition unless they belong to this changelog; `end` is its next record's offset."""
    database = store._db_for_partition(number)  # noqa: SLF001  not public
    offset, known = database.get(store.offset_key), database.get(CHANGELOG)
    if (fault := _fault(offset, known, identity, end)) is not None:
        del database
        store._dbs.pop(number)  # noqa: SLF001
        # RocksDB closes a database with its last reference.
        gc.collect()
        _delete(store, number, fault)
        database, known = store._db_for_partition(number), None  # noqa: SLF001
    if known is None or known.decode() != identity:
        database.put(CHANGELOG, identity.encode())


def _fault(offset: bytes | None, known: bytes | None, identity: str, end: int) -> str | None:
    """Why files with this offset and identity do not belong to a changelog."""
    if known is None:
        return None if offset is None else "do not name their log"
    if not ids.is_same_topic(known.decode(), identity):
        return "belong to another log"
    if offset is not None and int(offset) >= end:
        return f"are newer than the log: offset {int(offset)} of {end}"
    return None


def reopened(store: Any) -> Any:
    """The same store of a table, which deletes files of a partition that cannot be opened because of damage."""
    store._open_for_partition = _Opening(store, store._open_for_partition)  # noqa: SLF001  not public
    return store


class _Opening:
    def __init__(self, store: Any, opened: Callable[[int], Any]) -> None:
        self._store, self._opened = store, opened

    def __call__(self, number: int) -> Any:
        try:
            return self._opened(number)
        except Exception as error:
            if not str(error).startswith(_DAMAGED):
                raise
            _delete(self._store, number, f"are damaged ({str(error).partition(':')[0]})")
            return self._opened(number)


def _delete(store: Any, number: int, fault: str) -> None:
    folder = store.partition_path(number)
    log.warning("the files of partition %d of table %s %s: rebuilding them", number, store.table_name, fault)
    shutil.rmtree(folder)


def _topic(table: Any) -> str:
    name: str = table.changelog_topic.get_topic_name()
    return name
