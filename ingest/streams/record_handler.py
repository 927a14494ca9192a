"""Hands the records of one partition of the intake to its streams, in groups, and wakes streams when they are due.

Unknown keys are looked up once for all records of a group.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Final

from tidemill.ingest import batch_records
from tidemill.ingest.streams.partition import Partition
from tidemill.ingest.streams.stream import GROUP_LINES_MAX, GROUP_RECORDS_MAX, Resources
from tidemill.kafka.partitions.owner import Bounds, Record
from tidemill.retrying import retry
from tidemill.schemas.log import intake, topics
from tidemill.schemas.log.intake import IntakeError
from tidemill.schemas.resources.batch import Status

BOUNDS: Final = Bounds(
    records=GROUP_RECORDS_MAX, bytes=4 << 20, lines=GROUP_LINES_MAX, records_per_call=GROUP_RECORDS_MAX
)

Learn = Callable[[Iterable[str]], Awaitable[None]]
"""Looks up which of some credentials are keys."""


class Cancels:
    """The batches of streams that users asked to cancel, as `tidemill.batches` shows."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._ids: set[str] = set()

    def __contains__(self, batch_id: str) -> bool:
        return batch_id in self._ids

    def apply(self, key: str, value: bytes | None, offset: int) -> None:
        """Apply a record of `tidemill.batches`."""
        if value is None or b'"stream":' not in value:
            return
        if (record := batch_records.decoded(value, offset)) is None:
            return
        if record.batch.status is Status.CANCELLING:
            self._ids.add(key)
            self._wake()
        else:
            self._ids.discard(key)


class RecordHandler:
    """See `owner.PartitionWork`."""

    def __init__(
        self,
        number: int,
        partition: Partition,
        resources: Resources,
        *,
        learn: Learn,
        cancels: Cancels,
        caught_up: Callable[[], Awaitable[None]],
    ) -> None:
        """Handle no record yet.

        Args:
            number: The partition's number.
            partition: The partition.
            resources: What it shares with the others of the process.
            learn: Looks up the credentials of records.
            cancels: The batches that users cancelled.
            caught_up: Waits until keys, batches and files are known.
        """
        self._number = number
        self._partition = partition
        self._sender = resources.sender
        self._monotonic = resources.monotonic
        self._learn = learn
        self._cancels = cancels
        self._caught_up = caught_up
        self._due_at: float | None = None
        self._is_due_at_known = False
        self._starting: asyncio.Future[int] | None = None

    def start(self) -> None:
        """See `owner.PartitionWork`."""
        send = functools.partial(
            self._sender.send,
            topics.INTAKE.name,
            "tick",
            None,
            headers=[(intake.TICK, b"1")],
            partition=self._number,
        )
        self._starting = asyncio.ensure_future(retry("sending a tick", send, faults=Exception))

    async def load(self) -> None:
        """See `owner.PartitionWork`."""
        await self._caught_up()
        await self._partition.load()

    async def handle(self, records: list[Record]) -> None:
        """See `owner.PartitionWork`."""
        self._is_due_at_known = False
        await self._learn(_secrets(records))
        await self._partition.take(records)

    def is_due(self) -> bool:
        """See `owner.PartitionWork`."""
        if not self._is_due_at_known:
            self._due_at, self._is_due_at_known = self._partition.due_at, True
        return self._due_at is not None and self._due_at <= self._monotonic()

    async def tick(self) -> None:
        """See `owner.PartitionWork`."""
        self._is_due_at_known = False
        await self._partition.tick(self._cancels.__contains__)

    async def leave(self) -> None:
        """See `owner.PartitionWork`."""
        await self._partition.leave()

    def abandon(self) -> None:
        """See `owner.PartitionWork`."""
        self._partition.abandon()


def _secrets(records: Iterable[Record]) -> Iterator[str]:
    """The credentials of records; a record without a valid one is skipped."""
    for record in records:
        with suppress(IntakeError):
            yield intake.secret(intake.own_headers(record.headers))
