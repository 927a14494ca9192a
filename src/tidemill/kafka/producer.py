"""Appends records to topics."""

import asyncio

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.partitioner import murmur2

from tidemill.configuration.security import Kafka, client_options
from tidemill.kafka.connection import CONNECT_SECONDS_MAX, REQUEST_MS_MAX, STOP_SECONDS_MAX, LogUnavailable, stop
from tidemill.kafka.freeze_guard import Lease, Membership, guarded
from tidemill.schemas.bounds import ID_CHARS_MAX, RECORD_BYTES_MAX
from tidemill.schemas.log.codec import Headers
from tidemill.schemas.ports import RecordTooLarge

SEND_SECONDS_MAX = 10.0
"""How long `Log.send` waits for the acknowledgement."""


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
            await stop(current)
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
                    await stop(fresh)
                    raise
                self._producer = fresh
            return self._producer

    def _abandon(self, current: AIOKafkaProducer) -> None:
        """Stop a producer without sending what it holds; other senders of it run into their time limit."""
        if self._producer is not current:
            return
        self._producer = None
        _cancel_sending(current)
        stopping = asyncio.create_task(stop(current), name="stop a producer")
        self._abandoned.add(stopping)
        stopping.add_done_callback(self._abandoned.discard)


def _cancel_sending(current: AIOKafkaProducer) -> None:
    # There is no public way to stop one without sending first.
    current._sender.sender_task.cancel()  # noqa: SLF001


def _is_broken(current: AIOKafkaProducer) -> bool:
    """Whether a producer has met a fault that it may not go on after."""
    return bool(current._sender.sender_task.done())  # noqa: SLF001  it says so nowhere else
