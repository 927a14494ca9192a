"""Follows compacted topics of one partition each, without a consumer group."""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from tidemill.configuration.security import Kafka, client_options
from tidemill.kafka.connection import (
    CONNECT_SECONDS_MAX,
    REQUEST_MS_MAX,
    LogUnavailable,
    stop,
    topic_identities,
)
from tidemill.kafka.offsets import Offsets
from tidemill.retrying import pause_seconds, reason
from tidemill.schemas.ports import boottime

CATCH_UP_SECONDS_MAX = 10.0
"""How long a call to catch up waits, of one follower or of several."""
POLL_MS = 3_000
"""How long one poll waits for a record: a request of an idle follower costs client and broker a millisecond."""
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
    """The end of a topic, and its identity; see `connection.topic_identities`."""

    identity: str
    end: int
    """The offset that the next record will get."""


class Follower:
    """Applies the records of a topic with one partition, from the beginning or from where `resume` says.

    It reconnects with back-off while the broker is unavailable, and retries a record whose `apply` raises. A
    record whose content fails twice is skipped.
    """

    catch_up_records: ClassVar[int] = 0
    """Records that all followers of this process have passed on their way to `caught_up`. Later ones do not count:
    other processes write them, however this one fares."""

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

        Between two runs it rests for `rest_seconds`: records that arrive meanwhile share a request to the broker.
        A record that arrives after a pause does not wait.

        `resume` is called at each connection: it undoes records that are not `applied` yet, and returns the first
        offset to read. `applied` is called after each run of records, so that they can be committed together.
        """
        self.partition = TopicPartition(topic, 0)
        self._apply = apply
        self._applied = applied
        self._resume = resume or self._from_position
        self.rest = functools.partial(sleep, rest_seconds) if rest_seconds else None
        self._offsets = Offsets(kafka)
        self.position = 0
        """The offset of the next record."""
        self.is_connected = False
        self._current = 0, boottime()
        """When it had all records of its topic, as far as it knows: the time of its leader's answer in
        milliseconds, and that of `boottime`."""
        self._end = 0
        self._caught_up = asyncio.Event()
        self._moved = asyncio.Event()
        self._failed: set[int] = set()
        """Offsets of records of this run that have failed once."""
        self._waiters = 0
        """Tasks in `catch_up`."""
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start a task that reads."""
        start_together(self)

    async def stop(self) -> None:
        """Stop reading; this stops the followers that share its consumer, too."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
        await self._offsets.close()

    async def caught_up(self) -> None:
        """Wait until all records are applied that the topic had at the first connection."""
        await self._caught_up.wait()

    async def catch_up(self) -> None:
        """Wait until all records are applied that the topic has now; takes at least one round trip.

        Raises:
            LogUnavailable: The follower is not connected, or does not get there in `CATCH_UP_SECONDS_MAX`.
        """
        await catch_up([self], self.partition.topic)

    async def _catch_up(self) -> None:
        if not self.is_connected:
            raise LogUnavailable("not connected")
        # On the consumer's connection the request would wait behind a fetch that waits for records.
        end = (await self._offsets.next([self.partition])).get(self.partition)
        if end is None:
            raise LogUnavailable("its leader does not answer")
        self._waiters += 1
        try:
            while self.position < end:
                self._moved.clear()
                await self._moved.wait()
                if not self.is_connected:
                    raise LogUnavailable("the connection is lost")
        finally:
            self._waiters -= 1

    @property
    def kafka(self) -> Kafka:
        """The cluster."""
        return self._offsets.kafka

    @property
    def is_caught_up(self) -> bool:
        """Whether `caught_up()` would return at once."""
        return self._caught_up.is_set()

    def begin(self, tail: Tail) -> None:
        """Set the offset to read from, at a new connection."""
        self._end = tail.end
        self.position = self._resume(tail)
        self.is_connected = True
        self._look()

    def disconnect(self) -> None:
        """Note that the connection is lost."""
        self.is_connected = False
        self._moved.set()

    async def take(self, records: Sequence[ConsumerRecord]) -> None:
        """Apply the next records."""
        position, size = self.position, 0
        for record in records:
            if record.offset < position:
                self.position = 0
                raise LogUnavailable("the topic was created anew")
            self._apply_record(record)
            position = record.offset + 1
            size += len(record.value or b"")
            if size >= RUN_BYTES_MAX:
                await self._end_run(position)
                size = 0
        if position > self.position:
            await self._end_run(position)
        self._look()

    def move(self, position: int) -> None:
        """Skip a gap: compaction and transactions leave some, also at the end of a topic."""
        self._pass(max(position, self.position))
        self._look()

    def see(self, end: int, fetched_ms: int) -> None:
        """Note the end of the topic by the last answer of its leader, which the client got at a Unix time.

        The time only tells one answer from the next: the clock may be stepped.
        """
        if self.position >= end and fetched_ms != self._current[0]:
            self._current = fetched_ms, boottime()

    @property
    def age_seconds(self) -> float:
        """The time since the follower had all records of its topic."""
        return boottime() - self._current[1]

    @property
    def is_awaited(self) -> bool:
        """Whether a task waits until the follower has reached an offset."""
        return bool(self._waiters) or not self.is_caught_up

    def _pass(self, position: int) -> None:
        if not self.is_caught_up:
            Follower.catch_up_records += position - self.position
        self.position = position
        self._moved.set()

    def _look(self) -> None:
        if self.position >= self._end:
            self._caught_up.set()

    async def _end_run(self, position: int) -> None:
        if self._applied is not None:
            self._applied()
        self._pass(position)
        self._failed.clear()
        # The consumer returns fetched records without yielding to other tasks.
        await asyncio.sleep(0)

    def _apply_record(self, record: ConsumerRecord) -> None:
        try:
            self._apply((record.key or b"").decode(errors="replace"), record.value, record.offset)
        except _FAULTS as error:
            if record.offset not in self._failed:
                self._failed.add(record.offset)
                raise
            topic, kind = self.partition.topic, type(error).__name__
            _log.exception("record %d of %s is skipped (%s)", record.offset, topic, kind)

    def _from_position(self, tail: Tail) -> int:
        return self.position if self.position <= tail.end else 0


class TimedFollower(Follower):
    """A follower that knows the time of each record."""

    record_at = 0.0
    """The time in the log of the record that is applied, Unix seconds."""

    def _apply_record(self, record: ConsumerRecord) -> None:
        self.record_at = record.timestamp / 1000
        super()._apply_record(record)


async def catch_up(followers: Iterable[Follower], *topics: str) -> None:
    """Wait until the followers of these topics have applied all records that the log has now.

    Raises:
        LogUnavailable: One of them is not connected, or does not get there in `CATCH_UP_SECONDS_MAX`.
    """
    try:
        async with asyncio.timeout(CATCH_UP_SECONDS_MAX):
            for follower in followers:
                if follower.partition.topic in topics:
                    await follower._catch_up()  # noqa: SLF001  one bound for all of them
    except TimeoutError as error:
        raise LogUnavailable("its records are not read in time") from error


def start_together(*followers: Follower) -> None:
    """Start followers of different topics that share a consumer: one request fetches the records of all.

    They rest as the first one does. When one fails, all connect again.
    """
    task = asyncio.create_task(_run(followers), name=f"follow {_names(followers)}")
    for follower in followers:
        follower.task = task


def _names(followers: Sequence[Follower]) -> str:
    return ", ".join(follower.partition.topic for follower in followers)


async def _run(followers: Sequence[Follower]) -> None:
    failures = 0
    while True:
        before = [follower.position for follower in followers]
        try:
            await _follow({follower.partition: follower for follower in followers})
        except Exception as error:  # noqa: BLE001  a follower continues after any error
            positions = [follower.position for follower in followers]
            if positions != before:
                failures = 0
            pause = pause_seconds(failures)
            failures += 1
            _log.warning(
                "following %s failed at %s (%s); next attempt in %.1f s",
                _names(followers), ", ".join(map(str, positions)), reason(error), pause,
            )  # fmt: skip
            await asyncio.sleep(pause)


async def _follow(followers: Mapping[TopicPartition, Follower]) -> None:
    first = next(iter(followers.values()))
    consumer = AIOKafkaConsumer(
        **client_options(first.kafka),
        request_timeout_ms=REQUEST_MS_MAX,
        fetch_max_wait_ms=POLL_MS,
        # By default the client checks for work five times a second.
        consumer_timeout_ms=POLL_MS,
        max_poll_records=RUN_RECORDS_MAX,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            await consumer.start()
            consumer.assign(list(followers))
            ends = await consumer.end_offsets(list(followers))
            found = await topic_identities(first.kafka, {partition.topic for partition in followers})
        for partition, follower in followers.items():
            follower.begin(Tail(identity=found[partition.topic], end=ends[partition]))
            consumer.seek(partition, follower.position)
        while True:
            records = await _poll(consumer, followers)
            is_busy = records >= RUN_RECORDS_MAX or any(follower.is_awaited for follower in followers.values())
            if first.rest is not None and records and not is_busy:
                await first.rest()
    finally:
        for follower in followers.values():
            follower.disconnect()
        await stop(consumer)


async def _poll(consumer: AIOKafkaConsumer, followers: Mapping[TopicPartition, Follower]) -> int:
    """Apply the next records of all topics; returns their number."""
    found = await consumer.getmany(timeout_ms=POLL_MS)
    for partition, records in found.items():
        await followers[partition].take(records)
    for partition, follower in followers.items():
        if partition not in found and (not found or follower.is_awaited):
            follower.move(await consumer.position(partition))
        end, fetched_ms = consumer.highwater(partition), consumer.last_poll_timestamp(partition)
        if end is not None and fetched_ms is not None:
            follower.see(end, fetched_ms)
    return sum(map(len, found.values()))
