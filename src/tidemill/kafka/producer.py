"""Appends records to topics through a producer that is replaced after a fault."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError
from aiokafka.partitioner import murmur2

from tidemill.configuration.security import Kafka, client_options
from tidemill.kafka.connection import CONNECT_SECONDS_MAX, REQUEST_MS_MAX, STOP_SECONDS_MAX, LogUnavailable, stop
from tidemill.kafka.freeze_guard import Lease, Membership, guarded
from tidemill.schemas.bounds import ID_CHARS_MAX, RECORD_BYTES_MAX
from tidemill.schemas.log.codec import Headers
from tidemill.schemas.ports import RecordTooLarge

SEND_SECONDS_MAX: Final = 10.0
"""How long `Log.send` waits for the acknowledgement."""
BATCH_BYTES: Final = 16 << 10
"""What one request carries to one partition, unless a record alone is larger."""


def partition_of(key: str, partitions: int) -> int:
    """The partition that a key falls into: Kafka's default partitioner."""
    return int(murmur2(key.encode()) & 0x7FFFFFFF) % partitions


def producer(
    kafka: Kafka, *, compression: str | None = None, linger_ms: int = 0, batch_bytes: int = BATCH_BYTES
) -> AIOKafkaProducer:
    """A producer that loses and doubles nothing: all replicas acknowledge, and it is idempotent. Not yet started.

    Args:
        kafka: Where, and how to get in.
        compression: `lz4` pays off where records are large; none for small ones.
        linger_ms: How long a record waits for others to share its request.
        batch_bytes: What one request may carry to one partition.
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
    )


def too_large(topic: str, key: str | bytes | None, value: bytes | None) -> RecordTooLarge:
    """The error of a record that does not fit, which quotes no more of it than the key."""
    shown = (key if isinstance(key, str) else (key or b"").decode(errors="backslashreplace"))[:ID_CHARS_MAX]
    size = len(value or b"")
    return RecordTooLarge(
        f"a record of {topic} under {shown!r} has {size} bytes; all of it may be {RECORD_BYTES_MAX}"
    )


class Sent(NamedTuple):
    """A record that a producer has taken."""

    future: "asyncio.Future[Any]"
    by: AIOKafkaProducer


class Producer:
    """Starts a producer with the first record, and replaces it after a fault. Any number of tasks may use it.

    An idempotent producer never gives a record up by itself: one that its sender took for lost would land when the
    broker is back, beside the sender's second try. So after a fault it is stopped without sending what it holds,
    and everyone who waits for one of these records gets an error.
    """

    def __init__(self, new: Callable[[], AIOKafkaProducer]) -> None:
        """Connect nothing yet; `new` makes a producer that is not started."""
        self._new = new
        self._current: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._abandoned: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect, so that the first record need not wait for it.

        Raises:
            LogUnavailable: No broker answers; the next record tries again.
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
        """Have a record sent; `delivered` says what became of it. Waits while too much is under way.

        Raises:
            LogUnavailable: No broker answers, and the record is not sent.
            RecordTooLarge: It is above `RECORD_BYTES_MAX`.
        """
        current = await self._started()
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
        # A sender that breaks off does not ask for its answers.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return Sent(future, current)

    async def delivered(self, sent: Sent, seconds_max: float | None = None) -> int:
        """Wait until every in-sync replica has a record, and return its offset; -1 if the broker did not say.

        Raises:
            LogUnavailable: There was no acknowledgement in time. The record may have landed; later it will not.
        """
        try:
            if not sent.future.done():
                async with asyncio.timeout(seconds_max):
                    await sent.future
            return int(sent.future.result().offset)
        except (KafkaError, TimeoutError) as error:
            self.abandon(sent)
            raise LogUnavailable(type(error).__name__) from error

    def abandon(self, sent: Sent) -> None:
        """Give up the producer of a record, which therefore lands now or never."""
        if self._current is sent.by:
            self._current = None
            self._stop_soon(sent.by)

    async def stop(self) -> None:
        """Send what is under way and disconnect; waits at most `STOP_SECONDS_MAX` for each."""
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
                # It has met a fault that it may not go on after.
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
        return fresh

    def _stop_soon(self, current: AIOKafkaProducer) -> None:
        stopping = asyncio.create_task(_give_up(current), name="stop a producer")
        self._abandoned.add(stopping)
        stopping.add_done_callback(self._abandoned.discard)


async def _give_up(current: AIOKafkaProducer) -> None:
    """Stop a producer without sending what it holds; requests that are under way come to their end."""
    _sender(current).cancel()
    await asyncio.wait([_sender(current)], timeout=STOP_SECONDS_MAX)
    # Their senders would wait for ever.
    current._message_accumulator.fail_all(KafkaTimeoutError())  # noqa: SLF001  there is no public way
    await stop(current)


def _sender(current: AIOKafkaProducer) -> "asyncio.Task[None]":
    task: asyncio.Task[None] = current._sender.sender_task  # noqa: SLF001  it shows its state nowhere else
    return task


class Log:
    """Appends records to topics, within a time; any number of tasks may use it."""

    def __init__(
        self, kafka: Kafka, *, send_seconds_max: float = SEND_SECONDS_MAX, lease: Lease | None = None
    ) -> None:
        self.membership = Membership()
        """In the group by which the process owns what it writes about."""
        self._kafka = kafka
        self._lease = lease
        self._send_seconds_max = send_seconds_max
        self._producer = Producer(self._new)

    async def start(self) -> None:
        """Connect.

        Raises:
            LogUnavailable: No broker answers; the next `send` tries again.
        """
        await self._producer.start()

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
        sent = None
        try:
            async with asyncio.timeout(self._send_seconds_max):
                sent = await self._producer.enqueue(topic, key, value, headers=headers, partition=partition)
                return await self._producer.delivered(sent)
        except TimeoutError as error:
            if sent is not None:
                self._producer.abandon(sent)
            raise LogUnavailable(type(error).__name__) from error

    async def stop(self) -> None:
        """See `Producer.stop`."""
        await self._producer.stop()

    def _new(self) -> AIOKafkaProducer:
        fresh = producer(self._kafka)
        if self._lease is not None:
            guarded(fresh.client, self._lease.check, self.membership.held)
        return fresh
