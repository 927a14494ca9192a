"""What batches that are over have left in the store.

Their parts go at once. Results that were too large for a record stay as long as the log may have the records that
refer to them: the files can be made again from both (`rebuild.py`).
"""

import logging
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final

from tidemill.schemas.part import LARGE_PREFIX, PARTS_PREFIX
from tidemill.schemas.ports import Clock, Store

log = logging.getLogger(__name__)

OUTLIVED: Final = 2
"""A broker drops whole segments, so a record may be there for twice as long as it has to be."""


class Leftovers:
    """Of the batches of one partition.

    Args:
        store: Where they are.
        clock: Unix time.
        kept_seconds: How long the log keeps what a batch needs; infinite while that is not known.
    """

    def __init__(self, store: Store, clock: Clock, kept_seconds: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._kept_seconds = kept_seconds
        self._large: dict[str, float] = {}
        """Batches with large results that are kept, and when they ended."""

    async def clear(self, over: Mapping[str, float]) -> None:
        """Remove what these batches need no more, and what has had its time of those before.

        What fails is left to the next take-over.

        Args:
            over: When each ended, Unix seconds.
        """
        try:
            await self._clear(over)
        except OSError:
            log.exception("what batches that are over have left could not be removed")

    async def _clear(self, over: Mapping[str, float]) -> None:
        only = f"{next(iter(over))}/" if len(over) == 1 else ""
        await self._remove(PARTS_PREFIX + only, over.keys())
        async for key in self._store.keys(LARGE_PREFIX + only):
            if (batch_id := _batch_of(key)) in over:
                self._large[batch_id] = over[batch_id]
        gone_at = self._clock() - OUTLIVED * self._kept_seconds()
        for batch_id in [name for name, ended_at in self._large.items() if ended_at < gone_at]:
            await self._remove(f"{LARGE_PREFIX}{batch_id}/", {batch_id})
            del self._large[batch_id]

    async def _remove(self, prefix: str, batch_ids: AbstractSet[str]) -> None:
        async for key in self._store.keys(prefix):
            if _batch_of(key) in batch_ids:
                await self._store.delete(key)


def _batch_of(key: str) -> str:
    return key.split("/")[1]
