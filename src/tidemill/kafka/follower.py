"""Follows a compacted topic of one partition, without a consumer group."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from tidemill.configuration.security import Kafka, client_options
from tidemill.kafka.connection import (
    CONNECT_SECONDS_MAX,
    REQUEST_MS_MAX,
    LogUnavailable,
    cluster_id,
    stop,
)
from tidemill.kafka.offsets import Offsets
from tidemill.retrying import pause_seconds, reason

POLL_MS = 500
"""How long one poll waits for a record."""
RUN_RECORDS_MAX = 32
RUN_BYTES_MAX = 64 * 1024
"""The follower applies records in runs of at most this size, and yields to other tasks after each run."""

_log = logging.getLogger(__name__)

_FAULTS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError, AssertionError)
"""Errors that the content of a record can cause; a failing store raises others."""

Apply = Callable[[str, bytes | None, int], object]
"""Called with a record: key, value (None is a tombstone), offset."""


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The end of a topic, and its cluster."""

    cluster: str
    end: int
    """The offset that the next record will get."""


class Follower:
    """Applies the records of a topic of one partition, from the beginning or where `resume` says.

    It reconnects with back-off while the broker is unavailable, and retries a record whose `apply` raises. A
    record whose content fails twice is skipped.
    """

    def __init__(
        self,
        kafka: Kafka,
        topic: str,
        apply: Apply,
        *,
        resume: Callable[[Tail], int] | None = None,
        applied: Callable[[], object] | None = None,
        rest_seconds: float = 0.0,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Read nothing before `start()`; `apply` gets each record, in order.

        Between two runs it rests for `rest_seconds`: records that come meanwhile share a request to the broker.
        One that comes after a pause does not wait.

        `resume` is called at each connection: it undoes records that are not `applied` yet, and returns the first
        offset to read. `applied` is called after each run of records, so that they can be committed together.
        """
        self._kafka = kafka
        self._partition = TopicPartition(topic, 0)
        self._apply = apply
        self._applied = applied
        self._resume = resume or self._from_position
        self._rest_seconds, self._sleep = rest_seconds, sleep
        self._offsets = Offsets(kafka)
        self._position = 0
        self._end = 0
        self._caught_up = asyncio.Event()
        self._moved = asyncio.Event()
        self._failed = -1
        """Offset of the last record that failed."""
        self._consumer: AIOKafkaConsumer | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start a task that reads."""
        self._task = asyncio.create_task(self._run(), name=f"follow {self._partition.topic}")

    async def stop(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._offsets.close()

    async def caught_up(self) -> None:
        """Wait until all records are applied that the topic had at the first connection."""
        await self._caught_up.wait()

    async def catch_up(self) -> None:
        """Wait until all records are applied that the topic has now; takes at least one round trip.

        Raises:
            LogUnavailable: The follower is not connected, or no broker answers.
        """
        if self._consumer is None:
            raise LogUnavailable("not connected")
        # On the consumer's connection the request would wait behind a fetch that waits for records.
        end = (await self._offsets.next([self._partition])).get(self._partition)
        if end is None:
            raise LogUnavailable("its leader does not answer")
        while self._position < end:
            self._moved.clear()
            await self._moved.wait()

    @property
    def is_caught_up(self) -> bool:
        """Whether `caught_up()` would return at once."""
        return self._caught_up.is_set()

    async def _run(self) -> None:
        failures = 0
        while True:
            before = self._position
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001  a follower continues after any error
                if self._position != before:
                    failures = 0
                pause = pause_seconds(failures)
                failures += 1
                _log.warning(
                    "following %s failed at %d (%s); next attempt in %.1f s",
                    self._partition.topic, self._position, reason(error), pause,
                )  # fmt: skip
                await asyncio.sleep(pause)

    async def _follow(self) -> None:
        consumer = AIOKafkaConsumer(
            **client_options(self._kafka),
            request_timeout_ms=REQUEST_MS_MAX,
            fetch_max_wait_ms=POLL_MS,
            max_poll_records=RUN_RECORDS_MAX,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                await consumer.start()
                consumer.assign([self._partition])
                self._end = (await consumer.end_offsets([self._partition]))[self._partition]
                self._position = self._resume(Tail(cluster=await cluster_id(self._kafka), end=self._end))
            consumer.seek(self._partition, self._position)
            self._consumer = consumer
            while True:
                records = await self._poll(consumer)
                if self._rest_seconds and 0 < records < RUN_RECORDS_MAX and self.is_caught_up:
                    await self._sleep(self._rest_seconds)
        finally:
            self._consumer = None
            await stop(consumer)

    async def _poll(self, consumer: AIOKafkaConsumer) -> int:
        """Apply the next records; returns their number."""
        if not self._caught_up.is_set() and self._position >= self._end:
            self._caught_up.set()
        position, size = self._position, 0
        records = (await consumer.getmany(self._partition, timeout_ms=POLL_MS)).get(self._partition, [])
        for record in records:
            if record.offset < position:
                self._position = 0
                raise LogUnavailable("the topic was created anew")
            self._apply_record(record)
            position = record.offset + 1
            size += len(record.value or b"")
            if size >= RUN_BYTES_MAX:
                await self._end_run(position)
                size = 0
        if position > self._position:
            await self._end_run(position)
        else:
            # Compaction and transactions leave gaps, also at the end of a topic.
            self._position = max(position, await consumer.position(self._partition))
            self._moved.set()
        return len(records)

    async def _end_run(self, position: int) -> None:
        if self._applied is not None:
            self._applied()
        self._position = position
        self._moved.set()
        # The consumer returns fetched records without yielding to other tasks.
        await asyncio.sleep(0)

    def _apply_record(self, record: ConsumerRecord) -> None:
        try:
            self._apply((record.key or b"").decode(errors="replace"), record.value, record.offset)
        except _FAULTS as error:
            if self._failed != record.offset:
                self._failed = record.offset
                raise
            topic, kind = self._partition.topic, type(error).__name__
            _log.exception("record %d of %s is skipped (%s)", record.offset, topic, kind)

    def _from_position(self, tail: Tail) -> int:
        return self._position if self._position <= tail.end else 0
