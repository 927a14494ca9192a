"""Follows the catalog of servers and models in its topic, and changes it.

Any process may write, without a lock. A writer checks its change, writes it, and reads on until its own records.
If records of another writer lie before its own, it checks its change again on top of those, and writes the result:
the merged settings, or the former ones if the change is not possible any more.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from typing import Any, Final

from tidemill.configuration import catalog, changes
from tidemill.configuration.catalog import FILE, PARTITIONS, Applied, Contents, Entry, Fold, Key, Partitions
from tidemill.configuration.security import Kafka
from tidemill.kafka import history
from tidemill.kafka.admin import check_kept
from tidemill.kafka.connection import LogUnavailable
from tidemill.kafka.follower import Follower
from tidemill.kafka.offsets import is_unused
from tidemill.retrying import pause_seconds
from tidemill.schemas import fingerprint_of
from tidemill.schemas.log import topics
from tidemill.schemas.ports import Sender

TRIES_MAX: Final = 10
PAUSE_SECONDS: Final = 0.05
PAUSE_SECONDS_MAX: Final = 1.0
"""Bounds of the pauses between tries, which grow and are random, so that two writers do not stay in step."""
WAIT_LOG_SECONDS: Final = 10.0
"""Time between two lines in the log of a process that waits for the catalog."""

Plan = Callable[[Contents], Mapping[Key, Entry]]
"""The entries to write, given the current contents; raises if the change cannot be made."""

_log = logging.getLogger(__name__)


class Catalog:
    """The servers and models that this process has read from the topic so far."""

    def __init__(self, kafka: Kafka | None) -> None:
        """Read nothing before `start()`; without Kafka the caller applies the records."""
        self._fold = Fold()
        self._contents: Contents | None = None
        self._listeners: list[Callable[[], object]] = []
        self._changed = asyncio.Event()
        self._lock = asyncio.Lock()
        self._recent: list[tuple[str, bytes | None, int]] = []
        """The records since a change of this process began."""
        self._follower = None
        if kafka is not None:
            self._follower = Follower(kafka, topics.CATALOG.name, self.apply, applied=self.applied)

    @property
    def contents(self) -> Contents:
        """The present contents."""
        if self._contents is None:
            self._contents = self._fold.contents()
        return self._contents

    def listen(self, changed: Callable[[], object]) -> None:
        """Call a function after each change; it must not raise."""
        self._listeners.append(changed)

    async def start(self) -> None:
        """Begin to follow the topic."""
        if self._follower is not None:
            await self._follower.start()

    async def stop(self) -> None:
        """Stop following."""
        if self._follower is not None:
            await self._follower.stop()

    @property
    def follower(self) -> Follower:
        """The follower of the topic."""
        assert self._follower is not None
        return self._follower

    async def filled(self) -> None:
        """Wait until the topic is read and has the servers and models of a first settings file."""
        while not (await self._is_read() and self.contents.applied is not None):
            self._changed.clear()
            try:
                async with asyncio.timeout(WAIT_LOG_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                _log.warning(
                    "waiting for servers and models: the api writes those of its settings to %s",
                    topics.CATALOG.name,
                )

    async def _is_read(self) -> bool:
        try:
            async with asyncio.timeout(WAIT_LOG_SECONDS):
                if self._follower is not None:
                    await self._follower.caught_up()
        except TimeoutError:
            return False
        return True

    async def catch_up(self) -> None:
        """Wait until all records are folded that the topic has now.

        Raises:
            LogUnavailable: The log does not answer.
        """
        if self._follower is not None:
            await self._follower.catch_up()

    def apply(self, key: str, value: bytes | None, offset: int) -> None:
        """Fold a record; raises `ValueError` if it is not one of the topic."""
        if self._lock.locked():
            self._recent.append((key, value, offset))
        self._contents = None
        self._fold.apply(key, value, offset)

    def applied(self) -> None:
        """Tell the listeners."""
        self._changed.set()
        for changed in self._listeners:
            changed()

    async def change(self, log: Sender, plan: Plan) -> Contents:
        """Write a change.

        Args:
            log: Appends to the topic.
            plan: Called again with newer contents if another process writes at the same time.

        Returns:
            The contents with the change.

        Raises:
            LogUnavailable: The log does not answer, or other processes keep writing at the same time.
            Exception: Raised by `plan`; then nothing has changed.
        """
        async with self._lock:
            await self.catch_up()
            self._recent.clear()
            base = self.contents
            entries = dict(plan(base))
            for tries in range(TRIES_MAX):
                offsets = [await self._send(log, key, entry) for key, entry in catalog.in_order(entries)]
                await self.catch_up()
                if not offsets or not self._others(offsets, before=offsets[-1]):
                    return self.contents
                await asyncio.sleep(pause_seconds(tries, first=PAUSE_SECONDS, longest=PAUSE_SECONDS_MAX))
                await self.catch_up()
                base = _with(base, self._others(offsets))
                self._recent.clear()
                try:
                    again = dict(plan(base))
                except Exception:
                    await self._restore(log, base, entries)
                    raise
                entries = {**_restored(base, entries), **again}
                found = self.contents.entries
                if all(key in found and found[key].present == one.present for key, one in entries.items()):
                    return self.contents
            raise LogUnavailable("other changes at the same time")

    async def fill(
        self, log: Sender, settings: Mapping[Key, Mapping[str, Any]], *, author: str, again: bool
    ) -> bool:
        """Apply the servers and models of a settings file, unless they were applied last.

        Args:
            log: Appends to the topic.
            settings: As `catalog.settings_by_key` gives them.
            author: Name of the file.
            again: Whether a file that differs from the one applied last is applied, too.

        Returns:
            Whether it was applied.

        Raises:
            LogUnavailable: The log does not answer.
            ValueError: The catalog would contradict itself.
        """
        await self.catch_up()
        contents = self.contents
        if changes.is_applied(contents, settings) or (contents.applied is not None and not again):
            if why := changes.waiting(contents, settings):
                _log.warning("%s: `tidemill apply` applies it", why)
            return False
        at = int(time.time())
        await self.change(log, lambda found: changes.of_settings(found, settings, author=author, at=at))
        await self.note_applied(log, Applied(digest=fingerprint_of(settings), author=author, at=at))
        return True

    async def note_applied(self, log: Sender, applied: Applied) -> None:
        """Record which settings file was applied last."""
        await log.send(topics.CATALOG.name, FILE, applied.model_dump_json().encode())
        await self.catch_up()

    async def keep_partitions(self, log: Sender, count: int) -> None:
        """Record the number of partitions of the topics, if they are new.

        Raises:
            LogUnavailable: The log does not answer.
            PartitionsChanged: Batches were written to another number of partitions.
        """
        await self.catch_up()
        kept = self.contents.partitions
        if kept == count:
            return
        # Streams begin without a command.
        used = (topics.COMMANDS, topics.INTAKE, topics.OUTCOMES)
        if kept is not None and not await is_unused(self.follower.kafka, *used):
            check_kept(kept, count)
        await log.send(topics.CATALOG.name, PARTITIONS, Partitions(count=count).model_dump_json().encode())
        await self.catch_up()

    def _others(self, own: list[int], *, before: int | None = None) -> list[tuple[str, bytes | None, int]]:
        """The recent records except those at our own offsets; all of them, or those before an offset."""
        return [one for one in self._recent if one[2] not in own and (before is None or one[2] < before)]

    async def _restore(self, log: Sender, base: Contents, entries: Mapping[Key, Entry]) -> None:
        for key, entry in catalog.in_order(_restored(base, entries)):
            await self._send(log, key, entry)

    async def _send(self, log: Sender, key: Key, entry: Entry) -> int:
        value = entry.model_dump_json(exclude={"revision"}).encode()
        return await log.send(topics.CATALOG.name, key, value)


async def read(kafka: Kafka) -> Contents:
    """The present contents.

    Raises:
        LogUnavailable: No broker answers.
    """
    fold = Fold()
    async with (
        history.reading(kafka) as reader,
        aclosing(reader.records(topics.CATALOG.name)) as records,
    ):
        async for record in records:
            with suppress(ValueError):
                fold.apply((record.key or b"").decode(errors="replace"), record.value, record.offset)
    return fold.contents()


def _with(contents: Contents, records: Iterable[tuple[str, bytes | None, int]]) -> Contents:
    fold = Fold.of(contents)
    for record in records:
        fold.apply(*record)
    return fold.contents()


def _restored(base: Contents, entries: Mapping[Key, Entry]) -> dict[Key, Entry]:
    """The entries that undo a change: the former ones, or removals."""
    return {
        key: base.entries.get(key) or entry.model_copy(update={"removed": True}) for key, entry in entries.items()
    }
