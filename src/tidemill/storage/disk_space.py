"""Keeps a reserve of free bytes on the disks of the log and of the store.

Kafka stops when its disk is full, and then no deletion can free space, since a deletion is a record, too. So large
writes stop at the reserve:

- the api accepts an upload or a batch only while twice the reserve is free, since its results must fit too;
- ingest publishes no lines, and processors no results, while a broker has less than the reserve free;
- a store in a folder writes no object that would leave less than the reserve (`directory.py`).

Deletions, cancellations and states of batches continue: they are small.
"""

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from tidemill import metrics

LOG: Final = "log"
STORE: Final = "store"
LOOK_SECONDS: Final = 5.0
LOOK_SECONDS_MAX: Final = 20.0
"""How long one disk may take to answer."""

_log = logging.getLogger(__name__)

Free = Callable[[], Awaitable[int | None]]
"""Returns the free bytes of a disk, or None if they are not available; raises `OSError` if the request fails."""


class DiskFull(OSError):
    """A disk is down to its reserve; the text has the disk and the numbers."""

    def __init__(self, disk: str, free: int, kept: int) -> None:
        super().__init__(errno.ENOSPC, f"the disk of the {disk} has {free} bytes free, and {kept} are reserved")


class DiskSpace:
    """The free bytes at the last look; a disk that does not answer blocks no writes."""

    def __init__(self, reserve_bytes: int, disks: Mapping[str, Free]) -> None:
        """Check no disk yet; a reserve of 0 bytes disables the checks of `LOG` and `STORE`."""
        self._reserve_bytes = reserve_bytes
        self._disks = disks
        self._free: dict[str, int] = {}
        self._unknown: set[str] = set()
        """Disks that did not answer at the last look, so that each outage is logged once."""
        self._looking: asyncio.Task[None] | None = None
        metrics.DISK_FREE.sample(lambda: dict(self._free))
        metrics.DISK_RESERVE.sample(lambda: dict.fromkeys(disks, reserve_bytes))

    async def start(self) -> None:
        """Look now, and every `LOOK_SECONDS` until `stop`."""
        await self.look()
        self._looking = asyncio.create_task(self._keep_looking())

    async def stop(self) -> None:
        """Stop looking."""
        if self._looking is not None:
            self._looking.cancel()

    async def look(self) -> None:
        """Update the free bytes of every disk."""
        for disk, ask in self._disks.items():
            try:
                async with asyncio.timeout(LOOK_SECONDS_MAX):
                    free = await ask()
            except Exception as error:  # noqa: BLE001  a disk without an answer blocks no writes
                if disk not in self._unknown:
                    self._unknown.add(disk)
                    _log.warning(
                        "the free bytes of the disk of the %s are unknown, so it has no reserve: %r", disk, error
                    )
                free = None
            else:
                self._unknown.discard(disk)
            if free is None:
                self._free.pop(disk, None)
            else:
                self._free[disk] = free

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    def check(self, disk: str) -> None:
        """Check for room for work that the service has accepted.

        Raises:
            DiskFull: The disk is down to its reserve.
        """
        self._check(disk, self._reserve_bytes, 0)

    def accept(self, size: int) -> None:
        """Check for room for new work of this size in bytes.

        Raises:
            DiskFull: A disk would be left with less than twice its reserve.
        """
        for disk in self._disks:
            self._check(disk, 2 * self._reserve_bytes, size)

    def _check(self, disk: str, kept: int, more: int) -> None:
        free = self._free.get(disk)
        if free is not None and free - more < kept:
            raise DiskFull(disk, free, kept)
