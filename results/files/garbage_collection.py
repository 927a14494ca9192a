"""Deletes the objects of batches that are over.

Parts are deleted at once. Results that were too large for a record stay as long as the log may have the records
that refer to them, because a rebuild of the files needs both (`rebuild.py`).
"""

import logging
from collections.abc import Awaitable, Callable, Sequence

from tidemill.schemas import ids
from tidemill.schemas.log.part import LARGE_PREFIX, PARTS_PREFIX, file_key, index_key, part_prefix
from tidemill.schemas.ports import Store
from tidemill.storage.owner import StoreFault

log = logging.getLogger(__name__)


class GarbageCollection:
    """The objects of one partition's batches.

    `held` waits until this process certainly owns the partition: another owner may need the objects.
    """

    def __init__(self, store: Store, confirm: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._confirm = confirm

    async def clear(self, batch_id: str) -> None:
        """Remove the parts of a batch that is over; if that fails, the next owner's `sweep` does it."""
        try:
            await self._remove(part_prefix(batch_id))
        except OSError as error:
            _report(error, "the parts of %s could not be removed", batch_id)

    async def sweep(self, is_over: Callable[[str], bool]) -> None:
        """Remove the parts of all batches that are over."""
        verdicts: dict[str, bool] = {}
        try:
            async for key in self._store.keys(PARTS_PREFIX):
                batch_id = key.split("/")[1]
                if batch_id not in verdicts:
                    verdicts[batch_id] = is_over(batch_id)
                if verdicts[batch_id]:
                    await self._delete(key)
        except OSError as error:
            _report(error, "parts of batches that are over could not be removed")

    async def forget(self, batch_ids: Sequence[str]) -> int:
        """Remove the large results of batches, up to the first failure; returns the number of finished batches."""
        done = 0
        try:
            for batch_id in batch_ids:
                await self._remove(f"{LARGE_PREFIX}{batch_id}/")
                done += 1
        except OSError as error:
            _report(error, "large results of batches could not be removed")
        return done

    async def erase(self, batch_id: str, kinds: Sequence[str]) -> None:
        """Remove all objects of a deleted batch, with files of these kinds.

        Raises:
            OSError: The store failed.
        """
        for kind in kinds:
            # A prefix for the files of all writers: the writer's name follows the id.
            key = file_key(ids.derived_file_id(batch_id, kind))
            await self._remove(key)
            await self._remove(index_key(key))
        for prefix in (part_prefix(batch_id), f"{LARGE_PREFIX}{batch_id}/"):
            await self._remove(prefix)

    async def _remove(self, prefix: str) -> None:
        async for key in self._store.keys(prefix):
            await self._delete(key)

    async def _delete(self, key: str) -> None:
        await self._confirm()
        await self._store.delete(key)


def _report(error: OSError, text: str, *about: str) -> None:
    # The store itself says once why it deletes nothing.
    if not isinstance(error, StoreFault):
        log.error(text, *about, exc_info=error)
