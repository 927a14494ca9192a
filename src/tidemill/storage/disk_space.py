"""Free bytes of the disks that the log and the store are on, of which a reserve is kept.

Kafka ends when its disk is full, and with it whatever would make room again: a deletion is a record, too. So
nothing large is written once a disk is down to its reserve:

- the api takes no upload and no batch while less than twice the reserve is free: what it takes has to fit, with
  its results;
- ingest publishes no lines, and processors no results, while less than the reserve is free on a broker's disk;
- a store in a folder takes no object that would leave less than the reserve (`directory.py`).

Deletions, cancels and the state of batches go on: they are small.
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
"""How long one look may take."""

_log = logging.getLogger(__name__)

Free = Callable[[], Awaitable[int | None]]
"""Gives the free bytes of a disk; None where that cannot be known. Raises `OSError` where the question fails."""


class DiskFull(OSError):
    """A disk is down to its reserve; the text says which and by how much."""

    def __init__(self, disk: str, free: int, kept: int) -> None:
        super().__init__(errno.ENOSPC, f"the disk of the {disk} has {free} bytes free, and {kept} are kept")


class DiskSpace:
    """What was free at the last look. What is not known holds nothing up."""

    def __init__(self, reserve_bytes: int, disks: Mapping[str, Free]) -> None:
        """Know nothing yet.

        Args:
            reserve_bytes: What is to stay free on each disk; 0 keeps none.
            disks: How to ask each, `LOG` or `STORE`.
        """
        self._reserve_bytes = reserve_bytes
        self._disks = disks
        self._free: dict[str, int] = {}
        self._unknown: set[str] = set()
        """Disks that could not be asked at the last look; it is logged once, until they can be asked again."""
        self._looking: asyncio.Task[None] | None = None
        metrics.sample(metrics.DISK_FREE, lambda: dict(self._free))

    async def start(self) -> None:
        """Look once, then again and again until `stop`."""
        await self.look()
        self._looking = asyncio.create_task(self._look_again())

    async def stop(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()

    async def look(self) -> None:
        """Ask every disk once; one that does not answer is not known any more."""
        for disk, ask in self._disks.items():
            try:
                async with asyncio.timeout(LOOK_SECONDS_MAX):
                    free = await ask()
            except Exception as error:  # noqa: BLE001  whatever it was, what is not known holds nothing up
                if disk not in self._unknown:
                    self._unknown.add(disk)
                    _log.warning(
                        "the disk of the %s cannot be asked, and no reserve is kept on it: %r", disk, error
                    )
                free = None
            else:
                self._unknown.discard(disk)
            if free is None:
                self._free.pop(disk, None)
            else:
                self._free[disk] = free

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    def check(self, disk: str) -> None:
        """Ask for room for more of what was taken already.

        Raises:
            DiskFull: The disk is down to its reserve.
        """
        self._check(disk, self._reserve_bytes, 0)

    def accept(self, size: int) -> None:
        """Ask for room for something new.

        Args:
            size: Bytes that are known to come.

        Raises:
            DiskFull: A disk would be left with less than twice its reserve.
        """
        for disk in self._disks:
            self._check(disk, 2 * self._reserve_bytes, size)

    def _check(self, disk: str, kept: int, more: int) -> None:
        free = self._free.get(disk)
        if free is not None and free - more < kept:
            raise DiskFull(disk, free, kept)
