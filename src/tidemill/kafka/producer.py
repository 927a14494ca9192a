"""Appends records to topics through a producer that is replaced after a fault."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)
from aiokafka.partitioner import murmur2
from aiokafka.producer.message_accumulator import MessageAccumulator
from aiokafka.producer.sender import SendProduceReqHandler

from tidemill import metrics
from tidemill.configuration.security import Kafka, client_options
from tidemill.instruments import Buckets
from tidemill.kafka.connection import (
    CONNECT_SECONDS_MAX,
    REQUEST_MS_MAX,
    STOP_SECONDS_MAX,
    LogRefuses,
    LogUnavailable,
    stop,
)
from tidemill.kafka.freeze_guard import guard_requests
from tidemill.schemas.bounds import ID_CHARS_MAX, RECORD_BYTES_MAX
from tidemill.schemas.log.codec import Headers
from tidemill.schemas.ports import RecordTooLarge

SEND_SECONDS_MAX: Final = 10.0
"""How long `Log.send` waits for the acknowledgement."""
REFUSALS: Final = (
    MessageSizeTooLargeError, RecordListTooLargeError, TopicAuthorizationFailedError, PolicyViolationError,
)  # fmt: skip
"""Errors that stay until an administrator changes the topic."""
BATCH_BYTES: Final = 16 << 10
"""The most that one request carries to one partition, unless a single record is larger."""

_log: Final = logging.getLogger(__name__)


class Outage:
    """Counts records that are not appended; logs once that Kafka acknowledges none, and once that it does."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self.since: float | None = None
        """When the first of them failed; None if the last ones were appended."""
        self._last = 0.0

    def fail(self) -> None:
        """Count a record."""
        metrics.PRODUCE_FAILURES.inc()
        self._last = self._clock()
        if self.since is None:
            self.since = self._last
            _log.warning("Kafka does not acknowledge records of this process; work stands still until it answers")

    def end(self) -> None:
        """Note that a record was appended; if one partition alone fails, others do not end the outage."""
        now = self._clock()
        if self.since is not None and now - self._last > SEND_SECONDS_MAX:
            _log.warning("Kafka acknowledges records again, after %.0f s", now - self.since)
            self.since = None


_outage: Final = Outage()
_produced: Final = Buckets(metrics.SHORT_SECONDS)
metrics.PRODUCE_DURATION.sample(lambda: {(): _produced})


def partition_of(key: str, partitions: int) -> int:
    """The partition of a key, by Kafka's default partitioner."""
    return int(murmur2(key.encode()) & 0x7FFFFFFF) % partitions


Partitioner = Callable[[bytes, Sequence[int], Sequence[int]], int]
"""The partition of a record, by its key, all partitions of its topic, and those that have a leader."""


def producer(
    kafka: Kafka,
    *,
    compression: str | None = None,
    linger_ms: int = 0,
    batch_bytes: int = BATCH_BYTES,
    partitioner: Partitioner | None = None,
) -> AIOKafkaProducer:
    """Make an idempotent producer whose records all in-sync replicas acknowledge; it is not started yet.

    `lz4` or `zstd` compress large records, and would not shrink small ones. A record waits for `linger_ms` for
    others to share its request, which carries at most `batch_bytes` to a partition. By default the partition is
    that of `partition_of`.
    """
    return AIOKafkaProducer(
        **client_options(kafka),
        acks="all",
        enable_idempotence=True,
        request_timeout_ms=REQUEST_MS_MAX,
        max_request_size=RECORD_BYTES_MAX,
        max_batch_size=batch_bytes,
        compression_type=compression,
        linger_ms=linger_ms,
        **({} if partitioner is None else {"partitioner": partitioner}),
    )


def rest_between_requests(client: AIOKafkaProducer, rest: Callable[[], Awaitable[object]]) -> None:
    """Await `rest` after each produce request: records that arrive meanwhile share the next one to the broker.

    A record that arrives later does not wait. A second call has no effect.
    """
    sender = client._sender  # noqa: SLF001  not public
    if getattr(sender, "is_resting", False):
        return

    async def send(node: int, batches: Any) -> None:
        await SendProduceReqHandler(sender, batches).do(node)
        await rest()
        sender._in_flight.remove(node)  # noqa: SLF001
        sender._muted_partitions.difference_update(batches)  # noqa: SLF001

    sender._send_produce_req, sender.is_resting = send, True  # noqa: SLF001


def too_large(topic: str, key: str | bytes | None, value: bytes | None) -> RecordTooLarge:
    """The error for a record above `RECORD_BYTES_MAX`; it quotes the beginning of the key and nothing else."""
    shown = (key if isinstance(key, str) else (key or b"").decode(errors="backslashreplace"))[:ID_CHARS_MAX]
    size = len(value or b"")
    return RecordTooLarge(f"a record of {topic} under {shown!r} has {size} bytes; its limit is {RECORD_BYTES_MAX}")


class Sent(NamedTuple):
    """A record in the queue of a producer."""

    future: "asyncio.Future[Any]"
    by: AIOKafkaProducer


class Producer:
    """Starts a producer with the first record, and replaces it after a fault. Any number of tasks may use it.

    An idempotent producer never drops a record by itself: once the broker is back, it would append a record that
    its caller has given up and sent again. So after a fault the old producer stops without sending its queue, and
    every caller that waits for one of these records gets an error.
    """

    def __init__(self, new: Callable[[], AIOKafkaProducer]) -> None:
        """Connect nothing yet; `new` makes a producer, not started."""
        self._new = new
        self._current: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._abandoned: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect before the first record.

        Raises:
            LogUnavailable: No broker answers; the next record connects again.
        """
        await self._started()

    async def enqueue(
        self,
        topic: str,
        key: str | bytes | None,
        value: bytes | None,
        *,
        headers: Headers = (),
        partition: int | None = None,
    ) -> Sent:
        """Queue a record, and wait while the queue is full; `delivered` waits for its acknowledgement.

        Raises:
            LogUnavailable: No broker answers; the record is not queued.
            RecordTooLarge: It is above `RECORD_BYTES_MAX`.
        """
        try:
            current = await self._started()
        except LogUnavailable:
            _outage.fail()
            raise
        try:
            future = await current.send(
                topic,
                value,
                key=key.encode() if isinstance(key, str) else key,
                headers=list(headers),
                partition=partition,
            )
        except MessageSizeTooLargeError as error:
            raise too_large(topic, key, value) from error
        except KafkaError as error:
            raise LogUnavailable(type(error).__name__) from error
        begun = monotonic()

        def ended(done: "asyncio.Future[Any]") -> None:
            # A caller that is cancelled does not retrieve the exception.
            if not done.cancelled() and done.exception() is None:
                _produced.observe(monotonic() - begun)
                if _outage.since is not None:
                    _outage.end()

        future.add_done_callback(ended)
        return Sent(future, current)

    async def delivered(self, sent: Sent, seconds_max: float | None = None) -> int:
        """Wait until every in-sync replica has a record; returns its offset, or -1 if the broker sent none.

        Raises:
            LogUnavailable: No acknowledgement came in time. If the record is not in the log yet, it never will be.
            LogRefuses: It will not be while the topic is as it is.
        """
        try:
            if not sent.future.done():
                async with asyncio.timeout(seconds_max):
                    await sent.future
            return int(sent.future.result().offset)
        except (KafkaError, TimeoutError) as error:
            self.abandon(sent)
            kind = LogRefuses if isinstance(error, REFUSALS) else LogUnavailable
            raise kind(type(error).__name__) from error

    def abandon(self, sent: Sent) -> None:
        """Replace the producer of a record, so that the record is appended now or never."""
        _outage.fail()
        if self._current is sent.by:
            self._current = None
            self._stop_soon(sent.by)

    async def stop(self) -> None:
        """Send the queue and disconnect, within `STOP_SECONDS_MAX` for each step."""
        current, self._current = self._current, None
        if current is not None:
            await stop(current)
        if self._abandoned:
            await asyncio.wait(self._abandoned, timeout=STOP_SECONDS_MAX)

    async def _started(self) -> AIOKafkaProducer:
        if (current := self._current) is not None and not _sender(current).done():
            return current
        async with self._starting:
            if (current := self._current) is not None:
                if not _sender(current).done():
                    return current
                # Its sender task has ended on a fatal error.
                self._current = None
                self._stop_soon(current)
            self._current = await self._start()
            return self._current

    async def _start(self) -> AIOKafkaProducer:
        fresh = self._new()
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                await fresh.start()
        except BaseException as error:
            await stop(fresh)
            if isinstance(error, KafkaError | OSError):
                raise LogUnavailable(type(error).__name__) from error
            raise
        metrics.PRODUCERS.inc()
        return fresh

    def _stop_soon(self, current: AIOKafkaProducer) -> None:
        stopping = asyncio.create_task(_give_up(current), name="stop a producer")
        self._abandoned.add(stopping)
        stopping.add_done_callback(self._abandoned.discard)


async def _give_up(current: AIOKafkaProducer) -> None:
    """Stop a producer without sending its queue; requests in flight finish."""
    _sender(current).cancel()
    await asyncio.wait([_sender(current)], timeout=STOP_SECONDS_MAX)
    # The callers that wait for queued records would wait for ever.
    _fail_queue(current._message_accumulator)  # noqa: SLF001  not public
    await stop(current)


def _fail_queue(queue: MessageAccumulator) -> None:
    # A batch that the client has queued again removes itself, when it fails, from those that are on their way.
    queue._pending_batches.update(itertools.chain(*queue._batches.values()))  # noqa: SLF001
    queue.fail_all(KafkaTimeoutError())
    for batch in queue._pending_batches:  # noqa: SLF001
        # No caller waits for it, and asyncio logs an error that no code has asked for.
        batch._drain_waiter.exception()  # noqa: SLF001


def _sender(current: AIOKafkaProducer) -> "asyncio.Task[None]":
    task: asyncio.Task[None] = current._sender.sender_task  # noqa: SLF001  not public
    return task


class Log(Producer):
    """Appends records to topics within `SEND_SECONDS_MAX`; any number of tasks may use it."""

    def __init__(
        self,
        kafka: Kafka,
        *,
        before_request: Callable[[], Awaitable[None]] | None = None,
        rest: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Connect nothing yet; each request first awaits `before_request`, until the process may write.

        For `rest` see `rest_between_requests`.
        """
        super().__init__(self._make)
        self._kafka = kafka
        self._before_request, self._rest = before_request, rest

    async def send(
        self,
        topic: str,
        key: str | bytes | None,
        value: bytes | None,
        *,
        headers: Headers = (),
        partition: int | None = None,
    ) -> int:
        """Append a record, and wait until every in-sync replica has it.

        Without a partition, Kafka's default partitioner chooses one by the key.

        Returns:
            Its offset; -1 if the broker did not return one.

        Raises:
            LogUnavailable: No acknowledgement came in time. The record may have been appended.
            RecordTooLarge: It is above `RECORD_BYTES_MAX`.
        """
        sent = None
        try:
            async with asyncio.timeout(SEND_SECONDS_MAX):
                sent = await self.enqueue(topic, key, value, headers=headers, partition=partition)
                return await self.delivered(sent)
        except TimeoutError as error:
            if sent is None:
                _outage.fail()
            else:
                self.abandon(sent)
            raise LogUnavailable(type(error).__name__) from error

    def _make(self) -> AIOKafkaProducer:
        fresh = producer(self._kafka)
        if self._before_request is not None:
            guard_requests(fresh.client, self._before_request)
        if self._rest is not None:
            rest_between_requests(fresh, self._rest)
        return fresh
