"""The door to Kafka for whoever does not need Faust: send a record, follow a compacted topic."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.partitioner import murmur2

from tidemill import inflation, records
from tidemill.lease import Lease, Membership, guarded
from tidemill.schemas.bounds import ID_CHARS_MAX, RECORD_BYTES_MAX
from tidemill.schemas.codec import Headers
from tidemill.schemas.ports import RecordTooLarge
from tidemill.security import Kafka, client_options

REQUEST_MS_MAX = 10_000
"""How long one request to a broker may take before it is sent again."""
SEND_SECONDS_MAX = 10.0
"""How long `Log.send` waits for the acknowledgement."""
CONNECT_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 5.0
BACKOFF_SECONDS_MIN = 0.2
BACKOFF_SECONDS_MAX = 10.0
POLL_MS = 500
"""How long a follower waits for a record at a time; a record that arrives ends the wait at once."""
POLL_RECORDS_MAX = 500
"""Records applied in a row without giving way to other tasks."""

_log = logging.getLogger(__name__)

_FAULTS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError, AssertionError)
"""What a record can lead to by what it holds, whatever else is well; a store that fails raises others."""

records.tolerate()
inflation.bound()

TRANSIENT: Final = (OSError, KafkaError)
"""Failures of the log and of the store: they pass, and say nothing against what was tried."""

Apply = Callable[[str, bytes | None, int], object]
"""Takes a record: key, value (None is a tombstone), offset."""


class LogUnavailable(OSError):
    """The broker did not acknowledge in time. The record may have landed, or not; later it will not."""


def partition_of(key: str, partitions: int) -> int:
    """The partition that a key falls into: Kafka's default partitioner."""
    return int(murmur2(key.encode()) & 0x7FFFFFFF) % partitions


def producer(kafka: Kafka, *, compression: str | None = None, linger_ms: int = 0) -> AIOKafkaProducer:
    """A producer that loses and doubles nothing: all replicas acknowledge, and it is idempotent. Not yet started.

    Args:
        kafka: Where, and how to get in.
        compression: `lz4` pays off where records are large; none for small ones.
        linger_ms: How long a record waits for others to share its request.
    """
    return AIOKafkaProducer(
        **client_options(kafka),
        acks="all",
        enable_idempotence=True,
        request_timeout_ms=REQUEST_MS_MAX,
        max_request_size=RECORD_BYTES_MAX,
        compression_type=compression,
        linger_ms=linger_ms,
    )


def too_large(topic: str, key: str | bytes | None, value: bytes | None) -> RecordTooLarge:
    """The error of a record that does not fit, which quotes no more of it than the key."""
    shown = (key if isinstance(key, str) else (key or b"").decode(errors="backslashreplace"))[:ID_CHARS_MAX]
    size = len(value or b"")
    return RecordTooLarge(
        f"a record of {topic} under {shown!r} has {size} bytes; all of it may be {RECORD_BYTES_MAX}"
    )


class Log:
    """Appends records to topics. Starts and restarts its producer by itself; any number of tasks may use it."""

    def __init__(
        self, kafka: Kafka, *, send_seconds_max: float = SEND_SECONDS_MAX, lease: Lease | None = None
    ) -> None:
        self.membership = Membership()
        """In the group by which the process owns what it writes about."""
        self._kafka = kafka
        self._lease = lease
        self._send_seconds_max = send_seconds_max
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._abandoned: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect.

        Raises:
            LogUnavailable: No broker answers; the next `send` tries again.
        """
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                await self._started()
        except (KafkaError, OSError) as error:
            raise LogUnavailable(type(error).__name__) from error

    async def send(
        self,
        topic: str,
        key: str | bytes | None,
        value: bytes | None,
        *,
        headers: Headers = (),
        partition: int | None = None,
    ) -> int:
        """Append a record; on return every in-sync replica has it.

        Without a partition the key chooses it, as in every other client of Kafka.

        Returns:
            Its offset; -1 where the broker had it already and did not say.

        Raises:
            LogUnavailable: There was no acknowledgement in time. The record may have landed, or not.
            RecordTooLarge: It is above `RECORD_BYTES_MAX`.
        """
        current = sent = None
        try:
            async with asyncio.timeout(self._send_seconds_max):
                current = await self._started()
                sent = await current.send(
                    topic,
                    value,
                    key=key.encode() if isinstance(key, str) else key,
                    headers=list(headers),
                    partition=partition,
                )
                record = await sent
        except MessageSizeTooLargeError as error:
            raise too_large(topic, key, value) from error
        except (KafkaError, OSError) as error:
            # An idempotent producer never gives up a record by itself: one that its sender was told is refused
            # would land when the broker is back, beside the sender's second try. So it goes with its producer.
            if current is not None and (sent is not None or _is_broken(current)):
                self._abandon(current)
            raise LogUnavailable(type(error).__name__) from error
        return int(record.offset)

    async def stop(self) -> None:
        """Send what is under way and disconnect; waits at most `STOP_SECONDS_MAX` for each."""
        current, self._producer = self._producer, None
        if current is not None:
            await _stop(current)
        if self._abandoned:
            await asyncio.wait(self._abandoned, timeout=STOP_SECONDS_MAX)

    async def _started(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                fresh = producer(self._kafka)
                if self._lease is not None:
                    guarded(fresh.client, self._lease.check, self.membership.held)
                try:
                    await fresh.start()
                except BaseException:
                    await _stop(fresh)
                    raise
                self._producer = fresh
            return self._producer

    def _abandon(self, current: AIOKafkaProducer) -> None:
        """Stop a producer without sending what it holds; other senders of it run into their time limit."""
        if self._producer is not current:
            return
        self._producer = None
        _cancel_sending(current)
        stopping = asyncio.create_task(_stop(current), name="stop a producer")
        self._abandoned.add(stopping)
        stopping.add_done_callback(self._abandoned.discard)


@dataclass(frozen=True, kw_only=True)
class Tail:
    """Where a topic ends, and in which cluster."""

    cluster: str
    end: int
    """The offset that the next record will get."""


class Follower:
    """Reads a topic of one partition from an offset on, without a consumer group, for as long as it lives.

    A broker that is away is waited for; a record whose `apply` raises is tried again after the same wait. One that
    fails again for what it holds is left out.
    """

    def __init__(
        self,
        kafka: Kafka,
        topic: str,
        apply: Apply,
        *,
        start: int = 0,
        resume: Callable[[Tail], int] | None = None,
        applied: Callable[[], object] | None = None,
    ) -> None:
        """Nothing is read before `start()`.

        Args:
            kafka: Where, and how to get in.
            topic: Its name.
            apply: Called for each record, in order.
            start: The first offset to read. A topic that ends before it is another one, and read from 0.
            resume: Asked at each connection for the first offset to read; undoes what was not yet `applied`.
            applied: Called after each run of at most `POLL_RECORDS_MAX` records, for who commits in batches.
        """
        self._kafka = kafka
        self._partition = TopicPartition(topic, 0)
        self._apply = apply
        self._applied = applied
        self._resume = resume or self._from_position
        self._position = start
        self._end = 0
        self._caught_up = asyncio.Event()
        self._moved = asyncio.Event()
        self._failed = -1
        """Offset of the record that failed last."""
        self._consumer: AIOKafkaConsumer | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to read, in a task of its own."""
        self._task = asyncio.create_task(self._run(), name=f"follow {self._partition.topic}")

    async def stop(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def caught_up(self) -> None:
        """Wait until everything was applied that the topic held when it was first connected to."""
        await self._caught_up.wait()

    async def abreast(self) -> None:
        """Wait until everything was applied that the topic holds at this moment; a round trip, if that is so.

        Raises:
            KafkaError: No broker answers.
            LogUnavailable: It is not connected.
        """
        if self._consumer is None:
            raise LogUnavailable("not connected")
        end = (await self._consumer.end_offsets([self._partition]))[self._partition]
        while self._position < end:
            self._moved.clear()
            await self._moved.wait()

    async def current(self) -> None:
        """The same, however long a broker is away."""
        while True:
            try:
                await self.abreast()
            except (KafkaError, OSError):
                await asyncio.sleep(BACKOFF_SECONDS_MIN)
            else:
                return

    @property
    def is_caught_up(self) -> bool:
        """Whether `caught_up()` would return at once."""
        return self._caught_up.is_set()

    @property
    def position(self) -> int:
        """The offset after the last record that was applied."""
        return self._position

    async def _run(self) -> None:
        pause_seconds = BACKOFF_SECONDS_MIN
        while True:
            before = self._position
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001  whatever it was, a follower goes on
                if self._position != before:
                    pause_seconds = BACKOFF_SECONDS_MIN
                _log.warning(
                    "following %s broke off at %d (%s); again in %.1f s",
                    self._partition.topic, self._position, type(error).__name__, pause_seconds,
                )  # fmt: skip
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, BACKOFF_SECONDS_MAX)

    async def _follow(self) -> None:
        consumer = AIOKafkaConsumer(
            **client_options(self._kafka),
            request_timeout_ms=REQUEST_MS_MAX,
            fetch_max_wait_ms=POLL_MS,
            max_poll_records=POLL_RECORDS_MAX,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                await consumer.start()
                consumer.assign([self._partition])
                self._end = (await consumer.end_offsets([self._partition]))[self._partition]
                self._position = self._resume(Tail(cluster=await _cluster(self._kafka), end=self._end))
            consumer.seek(self._partition, self._position)
            self._consumer = consumer
            while True:
                await self._poll(consumer)
        finally:
            self._consumer = None
            await _stop(consumer)

    async def _poll(self, consumer: AIOKafkaConsumer) -> None:
        if not self._caught_up.is_set() and self._position >= self._end:
            self._caught_up.set()
        position = self._position
        for record in (await consumer.getmany(self._partition, timeout_ms=POLL_MS)).get(self._partition, ()):
            if record.offset < position:
                self._position = 0
                raise LogUnavailable("the topic was made anew")
            self._take(record)
            position = record.offset + 1
        if position > self._position:
            if self._applied is not None:
                self._applied()
            self._position = position
            self._moved.set()
        else:
            # The last offsets of a topic may hold no record: compaction and transactions leave gaps.
            self._position = max(position, await consumer.position(self._partition))
            self._moved.set()

    def _take(self, record: ConsumerRecord) -> None:
        try:
            self._apply((record.key or b"").decode(errors="replace"), record.value, record.offset)
        except _FAULTS as error:
            if self._failed != record.offset:
                self._failed = record.offset
                raise
            topic, kind = self._partition.topic, type(error).__name__
            _log.exception("record %d of %s is left out (%s)", record.offset, topic, kind)

    def _from_position(self, tail: Tail) -> int:
        return self._position if self._position <= tail.end else 0


async def reachable(kafka: Kafka) -> None:
    """Ask any broker for the cluster's metadata, over a connection of its own.

    Raises:
        KafkaError: No broker answers.
    """
    client = AIOKafkaClient(**client_options(kafka), request_timeout_ms=REQUEST_MS_MAX)
    try:
        await client.bootstrap()
    finally:
        await client.close()


async def _cluster(kafka: Kafka) -> str:
    admin = AIOKafkaAdminClient(**client_options(kafka), request_timeout_ms=REQUEST_MS_MAX)
    try:
        await admin.start()
        return str((await admin.describe_cluster()).get("cluster_id") or "")
    finally:
        await admin.close()


def _cancel_sending(current: AIOKafkaProducer) -> None:
    # There is no public way to stop one without sending first.
    current._sender.sender_task.cancel()  # noqa: SLF001


def _is_broken(current: AIOKafkaProducer) -> bool:
    """Whether a producer has met a fault that it may not go on after."""
    return bool(current._sender.sender_task.done())  # noqa: SLF001  it says so nowhere else


async def _stop(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    """Close a client, bounded: one whose broker is away would wait for it."""
    with suppress(KafkaError, OSError):
        async with asyncio.timeout(STOP_SECONDS_MAX):
            await client.stop()
